"""Natural evolution strategies, Ilyas et al. 2018, https://arxiv.org/abs/1804.08598: gradients from queries alone.

Loss values at antithetic Gaussian points around the current one estimate its gradient; a step goes
along its running mean, and gets shorter where the loss no longer moves. Three settings of the paper:
scores (here), the scores of only the k likeliest classes, and the class alone (nes_partial.py).
With sampler=(low-frequency:1/4) the points vary in low frequencies only (Guo et al. 2019).

Deliberate deviations from the paper and its code: lengths are shares of eps, so that one set of
constants serves every budget. The points of the estimate are kept within the budget, so each of them
may be the witness, and no query is spent on asking whether the current point is one. The loss is the
log of the odds of the class, of which cross-entropy is an increasing function, because cross-entropy
rounds to zero for a confident model. Every query counts, the successful one and the Judge's included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from robustkit.attacks import nes_partial, starting
from robustkit.attacks.sampling import PLAIN, Sampler, around, at_step, sampler, sampler_spec
from robustkit.errors import BadInput
from robustkit.methods import Attack, Rows, State
from robustkit.numerics import choose
from robustkit.spec import Spec
from robustkit.threats import Threat
from robustkit.threats.norms import limits, shorten_
from robustkit.views import ScoreView

if TYPE_CHECKING:
    from robustkit.classifier import Classifier
    from robustkit.data import Data

Mode = Literal["query-limited", "partial", "label-only"]
_QUERIES = {"query-limited": 10_000, "partial": 100_000, "label-only": 100_000}


@dataclass(frozen=True)
class NES(Attack):
    """Follows gradients that are estimated from queries at random points.

    Fields: mode; queries in all (10 000, or 100 000 where little is shown); samples, points of an
    estimate (48, or 96 for label-only); sigma, their distance per value (1/50, or 1/10 for label-only),
    and rate and least_rate, the longest and the shortest step, all as shares of eps; momentum;
    plateau, estimates without progress after which the step is divided by drop; sampler; restarts. For
    partial and label-only: top, classes whose scores are shown; threshold of the loss below which the
    ball shrinks; proxies, random points within proxy_radius (a share of eps) whose classes stand for
    a score.
    """

    mode: Mode = "query-limited"
    queries: int | None = None
    samples: int | None = None
    sigma: Fraction | None = None
    rate: Fraction = Fraction(1, 5)
    least_rate: Fraction = Fraction(1, 100)
    momentum: float = 0.9
    plateau: int = 5
    drop: float = 2.0
    sampler: Spec = PLAIN
    restarts: int = 1
    top: int = 1
    threshold: float = 0.2
    proxies: int = 4
    proxy_radius: Fraction = Fraction(1, 10)

    name = "nes"
    positional = ("mode", "queries")
    access = "score"
    threats = ("linf", "l2")
    paper = "Ilyas et al. 2018"
    version = 3

    def __post_init__(self) -> None:
        if self.mode not in _QUERIES:
            raise BadInput(f"nes: unknown mode {self.mode!r}: known: {', '.join(_QUERIES)}")
        if self.points < 2 or self.points % 2:
            raise BadInput(f"nes: samples come in pairs x + z, x - z: expected an even number of at least 2, found {self.samples}")
        if min(self.restarts, self.top, self.proxies, self.plateau - 1) < 1:
            raise BadInput("nes: restarts, top and proxies are at least 1, plateau at least 2")
        if min(self.spread, self.least_rate, self.proxy_radius) <= 0 or not self.least_rate <= self.rate:
            raise BadInput("nes: sigma, proxy_radius, rate and least_rate are shares of eps above 0, least_rate at most rate")
        if not 0 <= self.momentum < 1 or self.drop <= 1:
            raise BadInput("nes: momentum lies in [0,1), drop is above 1")
        if self.mode == "label-only" and self.top != 1:
            raise BadInput(f"nes: label-only sees one class, top={self.top} needs mode=partial")
        object.__setattr__(self, "sampler", sampler_spec(self.sampler))
        object.__setattr__(self, "access", "decision" if self.mode == "label-only" else "score")
        object.__setattr__(self, "bounded", self.mode == "query-limited")
        if self.iterations < 1:
            raise BadInput(f"nes: queries={self.queries} does not pay for one step: {self.mode} needs {self.per_step + 2}")

    @property
    def noise(self) -> Sampler:
        """The sampler itself."""
        return sampler(self.sampler)

    @property
    def points(self) -> int:
        """Points of one estimate."""
        return self.samples if self.samples is not None else 96 if self.mode == "label-only" else 48

    @property
    def spread(self) -> Fraction:
        """Sigma as a share of eps: in the paper 0.001 of 0.05; classes alone only change over a longer way."""
        return self.sigma if self.sigma is not None else Fraction(1, 10 if self.mode == "label-only" else 50)

    @property
    def width(self) -> int:
        return self.points * (self.proxies if self.mode == "label-only" else 1)

    @property
    def per_step(self) -> int:
        """Queries of one step."""
        return self.width + (0 if self.mode == "query-limited" else nes_partial.PROPOSALS)

    @property
    def iterations(self) -> int:
        total = self.queries if self.queries is not None else _QUERIES[self.mode]
        spent = 1 if self.mode == "query-limited" else 2  # the Judge's confirmation; asking about the start
        return (total - spent) // self.per_step

    def cost(self, classes: int) -> float:
        return float(self.restarts * self.iterations * self.per_step)

    def prepare(self, pool: Callable[[], Data], classifier: Classifier, threat: Threat, eps: float, seed: int) -> dict[str, Any]:
        return {} if self.mode == "query-limited" else starting.classified(pool, classifier)

    def init(self, rows: Rows, view: ScoreView, threat: Threat) -> State:  # type: ignore[override]
        state = self.fresh(rows)
        if self.mode != "query-limited":
            return state | nes_partial.begin(self, rows, view, threat)
        first = rows.attempt == 0
        start = threat.random(rows.x, rows.eps, rows.key)
        state["p"] = choose(first, threat.zero(rows.x), start)
        return state

    def step(self, rows: Rows, state: State, view: ScoreView, threat: Threat) -> State:  # type: ignore[override]
        if self.mode != "query-limited":
            return nes_partial.advance(self, rows, state, view, threat)
        p = state["p"]
        noise, points = self.draw(rows, p, threat)
        logits = view.many(self.inside(rows, points, threat))
        aimed = rows.target >= 0
        odds = log_odds(logits, torch.where(aimed, rows.target, rows.y))
        loss = torch.where(aimed[:, None], odds, -odds)  # to be lowered
        state = self.follow(state, estimate(loss, noise), loss.mean(1))
        moved = threat.step(rows.x, p, -state["mean"], state["rate"] * rows.eps)
        return state | {"p": threat.project(rows.x, moved, rows.eps)}

    def inside(self, rows: Rows, points: Tensor, threat: Threat) -> Tensor:
        """Points (R,S,...) moved into the budget; the tensor may be reused."""
        if threat.name == "linf":  # the ball and the box are one box, the same in every step
            low, high = limits(rows.x, rows.eps)
            return points.clamp_(low[:, None], high[:, None])
        # images are cut off at the box in any case, which only brings them nearer
        return shorten_(points.flatten(0, 1), rows.eps.repeat_interleave(points.shape[1])).view_as(points)

    def fresh(self, rows: Rows) -> State:
        """Memory of the estimates: their running mean, the step's share of eps, the last losses and how many they are."""
        count, device = len(rows), rows.x.device
        return {
            "mean": torch.zeros_like(rows.x),
            "rate": torch.full((count,), float(self.rate), dtype=torch.float64, device=device),
            "losses": torch.zeros(count, self.plateau, device=device),
            "known": torch.zeros_like(rows.steps),
        }

    def draw(self, rows: Rows, p: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
        """(R,S/2,C,H,W) the standard normal noise of an estimate, and the points (R,S,C,H,W) around p at sigma times it."""
        noise = self.noise.draw(at_step(rows.key, rows.steps), self.points // 2, tuple(p.shape[1:]))
        return noise, around(p, noise, self.length(rows, self.spread, threat))

    def length(self, rows: Rows, share: Fraction, threat: Threat) -> Tensor:
        """(R,) float32 change per value that is a `share` of eps in the threat's norm."""
        values = rows.x[0].numel() ** 0.5 if threat.name == "l2" else 1.0
        return (rows.eps * (float(share) / values)).to(rows.x.dtype)

    def follow(self, state: State, gradient: Tensor, loss: Tensor) -> State:
        """Take up one estimate and its (R,) loss; the step is shortened on a plateau."""
        losses = torch.cat([state["losses"][:, 1:], loss[:, None]], dim=1)
        known = state["known"] + 1
        stuck = (known >= self.plateau) & (losses[:, -1] > losses[:, 0])
        return state | {
            "mean": torch.lerp(gradient, state["mean"], self.momentum),
            "rate": torch.where(stuck, (state["rate"] / self.drop).clamp(min=float(self.least_rate)), state["rate"]),
            "losses": losses,
            "known": torch.where(stuck, 0, known),
        }


def estimate(loss: Tensor, noise: Tensor) -> Tensor:
    """Gradient (up to its scale) from losses (R,S) at `around(p, noise)`; the noise is used up."""
    half = noise.shape[1]
    slope = (loss[:, :half] - loss[:, half:]).to(noise.dtype).nan_to_num_(0.0, 0.0, 0.0)
    return noise.mul_(slope.view(*slope.shape, *[1] * (noise.dim() - 2))).sum(1)


def log_odds(logits: Tensor, own: Tensor) -> Tensor:
    """(R,S) log of how much likelier all other classes together are than class `own` (R,), for logits (R,S,K)."""
    at = own[:, None, None].expand(-1, logits.shape[1], 1)
    return logits.scatter(2, at, -torch.inf).logsumexp(2) - logits.gather(2, at)[:, :, 0]
