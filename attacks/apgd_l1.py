"""Auto-PGD for the l1 ball, Croce & Hein 2021, https://arxiv.org/abs/2103.01208.

Steps along the largest values of the gradient, as many as the best point so far has changed, less a
third; the step length starts anew whenever that point has become sparser, and shrinks otherwise. The
search begins in a ball of three times the budget, goes on in one of twice and ends in the ball itself:
what it meets outside is no witness, and only counted. Deliberate deviations: values that the box holds
are no part of a step, and the number of values is rounded down, so that two may become one (rounded up,
as in the authors' code, it stays up to a tenth short of the best point of a linear model).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from robustkit import streams
from robustkit.attacks.losses import LOSSES, check_classes
from robustkit.attacks.targets import likeliest_wrong
from robustkit.errors import BadInput
from robustkit.methods import Attack, Rows, State
from robustkit.numerics import choose, constant, wide
from robustkit.threats import Threat
from robustkit.threats.sparse import signs_of_largest
from robustkit.views import GradientView

BALLS = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))
"""Radii in budgets, and shares of the steps."""
_SPARSER, _SHRINK, _SHORTEST, _DENSITY = 0.95, 1.5, 0.1, 1.5


@dataclass(frozen=True)
class APGDL1(Attack):
    """Sparse steps in shrinking l1 balls. Fields: loss (`dlr-targeted` runs one attempt for each of the
    `targets` likeliest wrong classes), steps, restarts, targets, eot (draws a gradient of a random model
    is averaged over, 0 for what the model declares)."""

    loss: Literal["ce", "dlr", "dlr-targeted"] = "ce"
    steps: int = 100
    restarts: int = 5
    targets: int = 5
    eot: int = 0

    name = "apgd-l1"
    positional = ("loss",)
    threats = ("l1",)
    paper = "Croce & Hein 2021"
    bounded = False

    def __post_init__(self) -> None:
        if min(self.restarts, self.targets) < 1 or self.steps < len(BALLS):
            what = f"found {self.steps}, {self.restarts}, {self.targets}"
            raise BadInput(f"apgd-l1: steps are at least {len(BALLS)}, restarts and targets at least 1, {what}")
        if self.eot < 0:
            raise BadInput(f"apgd-l1: eot is a number of draws, 0 for what the model declares, found {self.eot}")
        if self.loss not in ("ce", "dlr", "dlr-targeted"):
            raise BadInput(f"apgd-l1: unknown loss {self.loss!r}: known: ce, dlr, dlr-targeted")

    @property
    def iterations(self) -> int:
        return self.steps

    def attempts(self, classes: int) -> int:
        check_classes(self.loss, classes)
        return self.restarts * (min(self.targets, classes - 1) if self.loss == "dlr-targeted" else 1)

    def target(self, logits: Tensor, y: Tensor, attempt: Tensor) -> Tensor:
        if self.loss != "dlr-targeted":
            return super().target(logits, y, attempt)
        return likeliest_wrong(logits, y, attempt, self.targets)

    @cached_property
    def radii(self) -> tuple[float, ...]:
        """In budgets, of the ball that the point of every step lies in, and of the last one."""
        counts = [math.ceil(share * self.steps) for _, share in BALLS[:-1]]
        last = self.steps + 1 - sum(counts)
        return tuple(radius for (radius, _), count in zip(BALLS, (*counts, last)) for _ in range(count))

    def init(self, rows: Rows, view: GradientView, threat: Threat) -> State:  # type: ignore[override]
        p = threat.project(rows.x, streams.normal(rows.key, tuple(rows.x.shape[1:])), self.radii[0] * rows.eps)  # sparse, as it is long
        zeros = torch.zeros_like(rows.eps, dtype=torch.float32)
        return {"p": p, "best": p, "best_gradient": torch.zeros_like(p), "highest": zeros, "length": zeros, "changed": zeros}

    def step(self, rows: Rows, state: State, view: GradientView, threat: Threat) -> State:  # type: ignore[override]
        p = state["p"]
        radius, ahead, fresh = self._balls(rows.steps)
        gradient, value = view.gradient(p, LOSSES["ce" if self.loss == "ce" else "dlr"])
        higher = fresh | (value > state["highest"])
        best, best_gradient = choose(higher, p, state["best"]), choose(higher, gradient, state["best_gradient"])
        changed = (best != 0).flatten(1).sum(1).float()
        sparser = ~fresh & (changed < _SPARSER * state["changed"])
        whole = rows.eps.float() * radius
        length = torch.where(fresh | sparser, whole, torch.maximum(state["length"] / _SHRINK, _SHORTEST * whole))
        p, gradient = choose(sparser, best, p), choose(sparser, best_gradient, gradient)
        image = rows.x + p
        gradient = gradient * torch.where(gradient > 0, image < 1, image > 0)
        moved = p + signs_of_largest(gradient, changed / _DENSITY) * wide(length, p)
        moved = choose(ahead < radius, best, moved)
        return {
            "p": threat.project(rows.x, moved, rows.eps * ahead),
            "best": best,
            "best_gradient": best_gradient,
            "highest": torch.where(higher, value, state["highest"]),
            "length": length,
            "changed": changed,
        }

    def _balls(self, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For (R,) steps made: the radius of the ball, that of the next point, and whether the ball has just been entered."""
        radii = constant((self.radii[0] + 1, *self.radii), torch.float32, steps.device)
        at = steps.clamp(max=self.steps - 1) + 1
        return radii[at], radii[at + 1], radii[at] < radii[at - 1]
