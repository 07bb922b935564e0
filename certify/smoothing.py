"""Randomized smoothing: CERTIFY of Cohen et al. 2019, https://arxiv.org/abs/1902.02918.

A radius around every image in which the answer of the smoothed classifier cannot change, with
probability 1 - alpha over the draws: Gaussian noise in l2, uniform and Laplace noise in l1 (Yang
et al. 2020, https://arxiv.org/abs/2002.08118). Their arguments ask of the base classifier only that
its answers lie in [0,1] (Salman et al. 2019, https://arxiv.org/abs/1906.04584, spell it out): they
hold for the vote and for the mean of softmax scores alike, each with the confidence bounds that
belong to it. Deliberate deviations: only images on which the selection gives the label are sampled
on, and where a budget is asked for, sampling ends once it is out of reach but for 1 in 10 000, which
can only lose certificates. With `looks` above 1 it also ends as soon as the budget is reached; each
look then takes an equal share of alpha, so the stated level holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from robustkit import streams
from robustkit.certify.confidence import Drawn
from robustkit.errors import BadInput
from robustkit.methods import StatisticalCertifier
from robustkit.models.smoothed import Smoothed, Smoothing, smoothed
from robustkit.verdict.evidence import Floats

if TYPE_CHECKING:
    from robustkit.classifier import Classifier
    from robustkit.threats import Threat


STRICTER = 20
"""Halvings of alpha at which radii are given as well: enough for a million images that are to be right all at once."""


def radius_of(noise: str, probability: Any, scale: float) -> Floats:
    """Radius that a lower bound of the top class's probability gives, rounded down; 0 for at most 1/2.

    Args:
        scale: sigma, the half width of uniform noise, or Laplace's b.
    """
    p = np.asarray(probability, dtype=np.float64)
    safe = np.clip(p, 0.5, 1 - 1e-16)
    if noise == "gaussian":
        found = scale * ndtri(safe)
    elif noise == "uniform":
        found = 2 * scale * (safe - 0.5)
    else:
        found = -scale * np.log(2 * (1 - safe))
    return np.where(p > 0.5, np.maximum(found * (1 - 1e-12), 0), 0.0)


@dataclass(frozen=True)
class SmoothingCertifier(StatisticalCertifier):
    """Radii of a smoothed classifier, by counting votes or averaging scores.

    Fields: sigma, noise and aggregate (vote or mean), what the model says where left out; n draws; n0
    draws that select the class; alpha, the share of images on which it may err; looks.
    """

    sigma: Fraction | None = None
    n: int = 10_000
    n0: int = 100
    alpha: Fraction = Fraction(1, 1000)
    noise: str = ""
    looks: int = 1
    aggregate: str = ""

    noises: ClassVar[tuple[str, ...]] = ("gaussian", "uniform", "laplace")
    name = "smoothing"
    positional = ("sigma", "n")
    threats: ClassVar[tuple[str, ...]] = ("l2", "l1")
    guarantee = "statistical(alpha)"
    paper = "Cohen et al. 2019"
    version = 2

    def __post_init__(self) -> None:
        if self.sigma is not None and self.sigma <= 0:
            raise BadInput(f"smoothing: sigma is {float(self.sigma):g}: expected a standard deviation above 0")
        if self.aggregate not in ("", "vote", "mean"):
            raise BadInput(f"{self.name}: unknown aggregate {self.aggregate!r}: expected vote (of classes) or mean (of softmax scores)")
        if not 0 < self.alpha < 1:
            raise BadInput(f"smoothing: alpha is {float(self.alpha):g}: expected a probability above 0 and below 1, such as 0.001")
        if self.n0 < 1 or self.n < self.n0:
            raise BadInput(f"smoothing: n is {self.n}, n0 {self.n0}: expected n at least n0, n0 at least 1")
        if not 1 <= self.looks <= 10:
            raise BadInput(f"smoothing: looks is {self.looks}: expected 1 to 10")
        object.__setattr__(self, "guarantee", f"statistical({float(self.alpha):g})")

    @property
    def cost(self) -> float:  # type: ignore[override]
        return float(self.n + self.n0)

    def subject(self, classifier: Classifier) -> Classifier:
        """The classifier smoothed as the fields say, itself where they say nothing or it is smoothed already."""
        if self.sigma is None or classifier.random:
            return classifier
        how: Any = {"noise": self.noise, "aggregate": self.aggregate}
        return smoothed(classifier, Smoothing(self.sigma, **{key: value for key, value in how.items() if value}))

    @property
    def certifying(self) -> set[int]:
        """Draws after which certificates are given: n, 3n/10, n/10, 3n/100, ... (`looks` of them)."""
        return {(3 if k % 2 else 1) * self.n // 10 ** ((k + 1) // 2) for k in range(self.looks)} - {0}

    @property
    def schedule(self) -> list[int]:
        """Draws after which is looked whether to go on, the last n."""
        certifying, every = self.certifying, {self.n * k // 10 for k in range(1, 11)} | {3 * self.n // 10**k for k in range(2, 7)}
        return sorted(certifying | {draws for draws in every if draws >= min(64, self.n)})

    def sample(self, classifier: Classifier, threat: Threat, seed: int) -> Callable[..., tuple[Tensor, ...]]:
        self.accepts(threat)
        network = classifier.module
        if not isinstance(network, Smoothed):
            raise BadInput(
                f"smoothing certifies smoothed classifiers, {classifier.spec or 'this model'} is none: name smooth:(MODEL),sigma=0.25"
            )
        held = network.smoothing
        if (self.sigma is not None and self.sigma != held.sigma) or (self.noise and self.noise != held.noise):
            raise BadInput(f"smoothing: the model is smoothed by sigma={held.sigma}, noise={held.noise}: a certificate for another model")
        if self.aggregate and self.aggregate != held.aggregate:
            raise BadInput(
                f"{self.name}: a certificate for aggregate={self.aggregate} says nothing about a model that answers by {held.aggregate}: "
                f"leave aggregate out, or name smooth:(MODEL),sigma={held.sigma},aggregate={self.aggregate}"
            )
        if held.noise not in self.noises:
            raise BadInput(f"{self.name} certifies under {' or '.join(self.noises)} noise, the model has {held.noise} noise")
        family = "l2" if held.noise == "gaussian" else "l1"
        if threat.name != family:
            raise BadInput(f"{held.noise} noise certifies {family}, not {threat.name}: use --threat {family}:..., or other noise")

        def work(index: Tensor, x: Tensor, y: Tensor, eps: Tensor | None, tick: Callable[[], None]) -> tuple[Tensor, ...]:
            keys = streams.row_keys(seed, self.digest, index).to(x.device)
            return self._radii(classifier, network, keys, x, y, eps, tick)

        return work

    def judged(self, drawn: Drawn, label: NDArray[np.int64], alpha: float, how: Smoothing) -> tuple[Floats, Floats]:
        """(lower bound of the label's probability (R,), radius (R,)) that the draws prove with confidence 1 - alpha."""
        bound = drawn.least(label, alpha)
        return bound, radius_of(how.noise, bound, how.scale)

    def _radii(
        self,
        classifier: Classifier,
        network: Smoothed,
        keys: Tensor,
        x: Tensor,
        y: Tensor,
        eps: Tensor | None,
        tick: Callable[[], None],
    ) -> tuple[Tensor, ...]:
        """(radius (R,) float64, -inf for none; lower bound of the label's probability less 1/2; draws (R,) int64;
        radii (R, STRICTER) but for alpha/2, alpha/4, ...)."""
        selected = network.sums(x, streams.child(keys, 0), 0, self.n0, tick)[0].argmax(1)
        draws = torch.full((len(x),), self.n0, dtype=torch.int64)
        radius, margin = np.full(len(x), -np.inf), np.full(len(x), -0.5)
        stricter = np.full((len(x), STRICTER), -np.inf)
        label, alive = y.cpu().numpy(), (selected == y).cpu().numpy()
        share = float(self.alpha) / self.looks
        drawn: Drawn | None = None
        wanted = None if eps is None else eps.cpu().numpy()
        done, certifying = 0, self.certifying
        for upto in self.schedule:
            at = np.flatnonzero(alive)
            if not len(at):
                break
            where = torch.from_numpy(at).to(x.device)
            sums, squares = (v.cpu().numpy() for v in network.sums(x[where], streams.child(keys[where], 1), done, upto, tick))
            if drawn is None:
                drawn = Drawn.none(len(x), sums.shape[1], network.smoothing.aggregate)
            drawn.add(at, sums, squares)
            draws[at] += upto - done
            drawn.draws = done = upto
            if upto in certifying:
                bound, found = self.judged(drawn.pick(at), label[at], share, network.smoothing)
                margin[at] = np.maximum(margin[at], bound - 0.5)
                radius[at] = np.where(found > 0, np.maximum(radius[at], found), radius[at])
                for k in range(STRICTER):
                    less = self.judged(drawn.pick(at), label[at], share / 2 ** (k + 1), network.smoothing)[1]
                    stricter[at, k] = np.where(less > 0, np.maximum(stricter[at, k], less), stricter[at, k])
            if wanted is not None:
                best = self.judged(drawn.pick(at).hoped(label[at], self.n), label[at], share, network.smoothing)[1]
                alive[at] = (radius[at] < wanted[at]) & (best >= wanted[at])
        classifier.forwards += int(draws.sum())
        return torch.from_numpy(radius), torch.from_numpy(margin), draws, torch.from_numpy(stricter)
