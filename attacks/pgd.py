"""Projected gradient descent, Madry et al. 2018, https://arxiv.org/abs/1706.06083."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from torch import Tensor

from robustkit.attacks.losses import LOSSES, check_classes
from robustkit.errors import BadInput
from robustkit.methods import Attack, Rows, State
from robustkit.threats import Threat
from robustkit.views import GradientView


@dataclass(frozen=True)
class PGD(Attack):
    """Steepest ascent of a loss with projection onto the threat's ball.

    Fields: steps; step, the length as a share of eps (default 2.5/steps, at most 1, and at least
    1/10); restarts; loss; random_start within the ball; eot, draws a gradient of a random model is
    averaged over (0: what the model declares). The last point is checked as well.
    """

    steps: int = 40
    step_size: Fraction | None = None
    restarts: int = 1
    loss: Literal["ce", "margin", "dlr"] = "ce"
    random_start: bool = True
    eot: int = 0

    name = "pgd"
    positional = ("steps",)
    paper = "Madry et al. 2018"
    version = 2

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise BadInput(f"{self.name}: steps and restarts are at least 1, found steps={self.steps}, restarts={self.restarts}")
        if self.eot < 0:
            raise BadInput(f"{self.name}: eot is a number of draws, 0 for what the model declares, found {self.eot}")
        if self.step_size is not None and self.step_size <= 0:
            raise BadInput(f"{self.name}: step_size is a share of eps above 0, found {self.step_size}")
        if self.loss not in LOSSES:
            raise BadInput(f"{self.name}: unknown loss {self.loss!r}: known: {', '.join(LOSSES)}")

    @property
    def iterations(self) -> int:
        return self.steps

    @property
    def share(self) -> float:
        """Step length as a share of eps."""
        return float(self.step_size) if self.step_size is not None else min(1.0, max(0.1, 2.5 / self.steps))

    def attempts(self, classes: int) -> int:
        check_classes(self.loss, classes)
        return self.restarts

    def init(self, rows: Rows, view: GradientView, threat: Threat) -> State:  # type: ignore[override]
        start = threat.random(rows.x, rows.eps, rows.key) if self.random_start else threat.zero(rows.x)
        return {"p": start}

    def step(self, rows: Rows, state: State, view: GradientView, threat: Threat) -> State:  # type: ignore[override]
        p = state["p"]
        gradient = self.direction(state, view.gradient(p, LOSSES[self.loss])[0])
        return state | {"p": threat.project(rows.x, threat.step(rows.x, p, gradient, rows.eps * self.share), rows.eps)}

    def direction(self, state: State, gradient: Tensor) -> Tensor:
        """What is followed, from the gradient at p."""
        return gradient
