"""Search over rotations and shifts without gradients, Engstrom et al. 2019, https://arxiv.org/abs/1712.02779.

Either all points of a grid, or random points ("worst of k"). A grid is only an attack: it says
nothing about what lies between its points. Deliberate deviations: every sample ends at its first
hit, and the grid is gone through from its farthest points inwards, where most hits are (the
published code forwards all of it for every image and takes the point of highest loss).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from robustkit import streams
from robustkit.errors import BadInput
from robustkit.methods import Attack, Rows, State
from robustkit.threats import Rotation, Threat
from robustkit.views import View


@dataclass(frozen=True)
class RotationSearch(Attack):
    """Tries all rotations and shifts of a grid, or random ones. Fields: mode; angles and shifts (in
    either direction) of the grid, ends included; tries, the random points."""

    mode: Literal["grid", "random"] = "grid"
    angles: int = 31
    shifts: int = 5
    tries: int = 10

    name = "rotation"
    positional = ("mode",)
    access = "decision"
    threats = ("rotation",)
    paper = "Engstrom et al. 2019"

    def __post_init__(self) -> None:
        if self.mode not in ("grid", "random"):
            raise BadInput(f"rotation: mode is grid or random, found {self.mode!r}")
        if self.angles < 2 or self.shifts < 2:
            raise BadInput(f"rotation: angles and shifts are at least 2, the ends, found {self.angles} and {self.shifts}")
        if self.tries < 2:
            raise BadInput(f"rotation: tries is at least 2, found {self.tries}")

    @property
    def iterations(self) -> int:
        """One less than there are points: the Judge's confirmation tries the last."""
        return (self.angles * self.shifts**2 if self.mode == "grid" else self.tries) - 1

    def init(self, rows: Rows, view: View, threat: Threat) -> State:
        return self._state(rows, threat, rows.steps)

    def step(self, rows: Rows, state: State, view: View, threat: Threat) -> State:
        view.decisions(state["p"])
        return self._state(rows, threat, rows.steps + 1)

    def _state(self, rows: Rows, threat: Threat, number: Tensor) -> State:
        """The point each row tries next, and whether it is its last."""
        assert isinstance(threat, Rotation)
        if self.mode == "random":
            return {"p": threat.random(rows.x, rows.eps, streams.child(rows.key, number)), "over": number >= self.iterations}
        points = grid(threat, self.angles, self.shifts, rows.x.device)
        chosen = points[number.clamp(max=len(points) - 1)] * rows.eps[:, None]
        return {"p": threat.project(rows.x, chosen.to(rows.x.dtype), rows.eps), "over": number >= len(points) - 1}


@lru_cache(maxsize=16)
def grid(threat: Rotation, angles: int, shifts: int, device: torch.device) -> Tensor:
    """(M,3) float64 parameters of size at most 1, the largest first; what may not change does not. Made once."""
    counts = [count if most else 1 for count, most in zip((angles, shifts, shifts), threat.most)]
    axes = [(2 * torch.arange(count, dtype=torch.float64) - (count - 1)) / max(1, count - 1) for count in counts]
    points = torch.cartesian_prod(*axes)
    return points[points.abs().amax(1).argsort(descending=True, stable=True)].to(device)
