"""Perturbations where nobody looks, Luo et al. 2018, https://arxiv.org/abs/1801.04693.

An eye sees a change of a pixel the better the smoother its surroundings: its sensitivity is one
over the standard deviation of the 3 x 3 values around it. The greedy form moves, step by step, the
values with the highest perturbation priority, gain over sensitivity. The paper bounds the visible
distance, the sum of |change| x sensitivity; here the threat's norm is the budget, and `distance`
adds the paper's bound where it is asked for.

Deliberate choices: the gain is the gradient of a loss of the logits (the paper: of probabilities,
which vanishes where the model is sure); the standard deviation is at least `floor`, as a black
border would else have an infinite sensitivity; beyond the border there is nothing (no padding
counts). The paper has no gradient form: `mode=pgd` ascends loss - penalty x distance, steps weighted
by one over the sensitivity, and the weights fade to one over the first half of the steps, so that
early hits are hard to see and the second half, plain PGD, still reaches the best point of the ball.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from robustkit.attacks.losses import LOSSES, check_classes
from robustkit.errors import BadInput
from robustkit.methods import Attack, Rows, State
from robustkit.numerics import choose, wide
from robustkit.threats import Threat
from robustkit.views import GradientView

NEIGHBOURHOOD = 3


@dataclass(frozen=True)
class LocalVariance(Attack):
    """Changes the values first that lie in uneven surroundings, where a change is hard to see.

    Fields: steps; mode, greedy (a few values a step) or pgd (all, in weighted steps); pixels, the
    share of all values that a greedy step moves; step_size, the length of a step as a share of eps
    (greedy: 1/4, pgd: as in PGD); distance, the largest visible distance allowed; penalty on it (pgd);
    loss; floor of the standard deviation.
    """

    steps: int = 100
    mode: Literal["greedy", "pgd"] = "greedy"
    pixels: Fraction = Fraction(1, 20)
    step_size: Fraction | None = None
    distance: Fraction | None = None
    penalty: float = 0.0
    loss: Literal["ce", "margin", "dlr"] = "margin"
    floor: Fraction = Fraction(1, 255)

    name = "local-variance"
    positional = ("steps",)
    threats = ("linf", "l2", "l1")
    paper = "Luo et al. 2018"

    def __post_init__(self) -> None:
        self._require(self.steps >= 1, "steps", "a whole number of at least 1")
        self._require(self.mode in ("greedy", "pgd"), "mode", "greedy or pgd")
        self._require(0 < self.pixels <= 1, "pixels", "a share of all values in (0,1], for example 1/20")
        self._require(self.step_size is None or self.step_size > 0, "step_size", "a share of eps above 0, for example 1/4")
        self._require(self.distance is None or self.distance > 0, "distance", "a visible distance above 0")
        self._require(self.penalty >= 0, "penalty", "a number of at least 0")
        self._require(self.penalty == 0 or self.mode == "pgd", "penalty", "0 with mode=greedy (write mode=pgd)")
        self._require(self.loss in LOSSES, "loss", ", ".join(LOSSES))
        self._require(self.floor > 0, "floor", "a standard deviation above 0, for example 1/255")

    def _require(self, holds: bool, field: str, expected: str) -> None:
        if not holds:
            raise BadInput(f"{self.name}: {field} = {getattr(self, field)}: expected {expected}")

    @property
    def iterations(self) -> int:
        return self.steps

    @property
    def share(self) -> float:
        """Step length as a share of eps."""
        if self.step_size is not None:
            return float(self.step_size)
        return 0.25 if self.mode == "greedy" else min(1.0, max(0.1, 2.5 / self.steps))

    def attempts(self, classes: int) -> int:
        check_classes(self.loss, classes)
        return 1

    def init(self, rows: Rows, view: GradientView, threat: Threat) -> State:  # type: ignore[override]
        never = torch.zeros(len(rows), dtype=torch.bool, device=rows.x.device)
        return {"p": threat.zero(rows.x), "spread": local_deviation(rows.x).clamp(min=float(self.floor)), "over": never}

    def step(self, rows: Rows, state: State, view: GradientView, threat: Threat) -> State:  # type: ignore[override]
        p, spread = state["p"], state["spread"]
        gradient, _ = view.gradient(p, LOSSES[self.loss])
        ahead = self._greedy(rows, p, gradient * spread, threat) if self.mode == "greedy" else self._pgd(rows, p, gradient, spread, threat)
        ahead = threat.project(rows.x, ahead, rows.eps)
        if self.distance is None:
            return state | {"p": ahead}
        over = visible_distance(ahead, spread) > float(self.distance)
        return state | {"p": choose(over, p, ahead), "over": state["over"] | over}

    def _greedy(self, rows: Rows, p: Tensor, priority: Tensor, threat: Threat) -> Tensor:
        """The values of highest priority that still have room, each moved by the same amount."""
        eps = wide(rows.eps.to(p.dtype), p)
        up = torch.minimum(1 - rows.x - p, eps - p)
        room = torch.where(priority > 0, up, torch.minimum(rows.x + p, eps + p))
        weight = (priority.abs() * (room > 1e-6)).flatten(1)
        count = max(1, round(float(self.pixels) * weight.shape[1]))
        top = weight.topk(count, dim=1)
        chosen = torch.zeros_like(weight).scatter(1, top.indices, (top.values > 0).to(weight.dtype)).view_as(p)
        most = {"linf": 1.0, "l2": count**-0.5, "l1": 1 / count}[threat.name]
        moved: Tensor = priority.sign() * chosen * (eps * self.share * most)
        return p + moved

    def _pgd(self, rows: Rows, p: Tensor, gradient: Tensor, spread: Tensor, threat: Threat) -> Tensor:
        """A steepest step, each value's part of it scaled by a weight that fades to 1."""
        if self.penalty:
            gradient = gradient - self.penalty * p.sign() / spread
        left = wide((1 - 2 * (rows.steps + 1) / self.steps).clamp(min=0).to(p.dtype), p)
        weight = (spread / spread.flatten(1).amax(1).view_as(left)) ** left
        image = threat.apply(rows.x, p)  # only the step itself is weighted, so it is made from there
        moved: Tensor = threat.step(image, torch.zeros_like(p), gradient, rows.eps * self.share) * weight
        return p + moved


def local_deviation(x: Tensor) -> Tensor:
    """(N,C,H,W) standard deviation of the 3 x 3 values around each, those beyond the border left out."""

    def mean(values: Tensor) -> Tensor:
        return functional.avg_pool2d(values, NEIGHBOURHOOD, stride=1, padding=NEIGHBOURHOOD // 2, count_include_pad=False)

    wide = x.double()
    found: Tensor = (mean(wide.square()) - mean(wide).square()).clamp(min=0).sqrt().to(x.dtype)
    return found


def visible_distance(p: Tensor, spread: Tensor) -> Tensor:
    """(N,) the paper's distance of a change: the sum of |change| x sensitivity, one over the deviation."""
    return (p.abs() / spread).flatten(1).sum(1)
