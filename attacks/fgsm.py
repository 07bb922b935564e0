"""Fast gradient sign method, Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from robustkit.attacks.losses import LOSSES, check_classes
from robustkit.errors import BadInput
from robustkit.methods import Attack, Rows, State
from robustkit.threats import Threat
from robustkit.views import GradientView


@dataclass(frozen=True)
class FGSM(Attack):
    """One steepest-ascent step of length eps in the threat's norm, from the clean image."""

    loss: Literal["ce", "margin", "dlr"] = "ce"

    name = "fgsm"
    paper = "Goodfellow et al. 2015"
    version = 2
    iterations = 1

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise BadInput(f"fgsm: unknown loss {self.loss!r}: known: {', '.join(LOSSES)}")

    def attempts(self, classes: int) -> int:
        check_classes(self.loss, classes)
        return 1

    def init(self, rows: Rows, view: GradientView, threat: Threat) -> State:  # type: ignore[override]
        return {"p": threat.zero(rows.x)}

    def step(self, rows: Rows, state: State, view: GradientView, threat: Threat) -> State:  # type: ignore[override]
        gradient, _ = view.gradient(state["p"], LOSSES[self.loss])
        return {"p": threat.project(rows.x, threat.step(rows.x, state["p"], gradient, rows.eps), rows.eps)}
