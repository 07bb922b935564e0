"""Input diversity, Xie et al. 2019, https://arxiv.org/abs/1803.06978: gradients through random resizing and padding.

Every sample draws its own size and place at every step (peers resize a whole batch alike).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from robustkit import streams
from robustkit.attacks.losses import LOSSES
from robustkit.attacks.mi_fgsm import MIFGSM
from robustkit.errors import BadInput
from robustkit.methods import Rows, State
from robustkit.threats import Threat
from robustkit.views import GradientView


@dataclass(frozen=True)
class DIFGSM(MIFGSM):
    """MI-FGSM on images that are, with `probability`, shrunk by up to 1 - `smallest` and padded back."""

    probability: float = 0.5
    smallest: float = 0.9

    name = "di-fgsm"
    paper = "Xie et al. 2019"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.probability <= 1 or not 0 < self.smallest <= 1:
            raise BadInput(f"{self.name}: probability lies in [0,1], smallest in (0,1]")

    def step(self, rows: Rows, state: State, view: GradientView, threat: Threat) -> State:  # type: ignore[override]
        p = state["p"]
        grid = self._grid(rows)
        gradient, _ = view.gradient(p, LOSSES[self.loss], lambda image: _sample(image, grid))
        ahead = threat.step(rows.x, p, self.direction(state, gradient), rows.eps * self.share)
        return state | {"p": threat.project(rows.x, ahead, rows.eps)}

    def _grid(self, rows: Rows) -> Tensor:
        """(R,H,W,2) where each pixel of the shrunk, padded image is read; beyond the border means padding."""
        height, width = rows.x.shape[2:]
        keys = streams.child(rows.key, rows.steps + 1)
        drawn = streams.uniform(keys, (4,))
        scale = torch.where(drawn[:, 0] < self.probability, self.smallest + (1 - self.smallest) * drawn[:, 1], 1.0)
        places = [torch.linspace(-1, 1, n, device=scale.device) for n in (height, width)]
        shift = (1 - scale)[:, None] * (2 * drawn[:, 2:] - 1)
        down = (places[0] - shift[:, :1]) / scale[:, None]
        across = (places[1] - shift[:, 1:]) / scale[:, None]
        return torch.stack([across[:, None, :].expand(-1, height, -1), down[:, :, None].expand(-1, -1, width)], dim=3)


def _sample(image: Tensor, grid: Tensor) -> Tensor:
    return functional.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
