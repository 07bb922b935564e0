"""Momentum iterative FGSM, Dong et al. 2018, https://arxiv.org/abs/1710.06081.

The momentum gathers gradients over their l1 norm, as the paper has it; peers that gather their
signs lose what the momentum is for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.attacks.pgd import PGD
from robustkit.errors import BadInput
from robustkit.methods import Rows, State
from robustkit.numerics import wide
from robustkit.threats import Threat
from robustkit.views import GradientView


@dataclass(frozen=True)
class MIFGSM(PGD):
    """PGD from the clean image along gathered gradients; fields as in PGD, and decay of the momentum."""

    steps: int = 10
    random_start: bool = False
    decay: float = 1.0

    name = "mi-fgsm"
    paper = "Dong et al. 2018"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay < 0:
            raise BadInput(f"{self.name}: decay is at least 0, found {self.decay}")

    def init(self, rows: Rows, view: GradientView, threat: Threat) -> State:  # type: ignore[override]
        start = super().init(rows, view, threat)
        return start | {"momentum": torch.zeros_like(start["p"])}

    def direction(self, state: State, gradient: Tensor) -> Tensor:
        scale = wide(gradient.flatten(1).abs().sum(1).clamp(min=1e-30), gradient)
        state["momentum"] = self.decay * state["momentum"] + gradient / scale
        return state["momentum"]
