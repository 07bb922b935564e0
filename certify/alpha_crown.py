"""alpha-CROWN: Xu et al. 2021, "Fast and Complete: Enabling Complete Verification with Massively
Parallel Incomplete Verifiers", arXiv 2011.13824. The method is in optimise.py.

Deviations: those of crown.py; slopes start from CROWN's, and only what it leaves open is optimised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustkit.certify.backward import bound_margins, bound_nodes
from robustkit.certify.binding import Propagating
from robustkit.certify.crown_ibp import CrownIBP
from robustkit.certify.graph import Network
from robustkit.certify.optimise import optimise
from robustkit.certify.region import Region
from robustkit.certify.relaxed import check_relaxations
from robustkit.errors import BadInput


@dataclass(frozen=True)
class AlphaCrown(Propagating):
    """CROWN with relaxation slopes found by gradient ascent: the tightest bound here, and the slowest.

    Fields: steps of the ascent; intermediate, whether the slopes of hidden neurons' bounds are
    optimised as well (optimised) or only those of the margins (fixed, about ten times faster); lr,
    the learning rate.
    """

    steps: int = 20
    intermediate: Literal["optimised", "fixed"] = "optimised"
    lr: float = 0.1

    name = "alpha-crown"
    positional = ("steps",)
    paper = "Xu et al. 2021, arXiv 2011.13824"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise BadInput(f"{self.name}: steps is at least 1, found {self.steps}")
        if self.intermediate not in ("optimised", "fixed"):
            raise BadInput(f"{self.name}: intermediate is optimised or fixed, found {self.intermediate!r}")
        if not self.lr > 0:
            raise BadInput(f"{self.name}: lr is above 0, found {self.lr}")

    @property
    def cost(self) -> float:  # type: ignore[override]
        """Forward-equivalents of a sample that CROWN leaves open."""
        return 500.0 + self.steps * (900.0 if self.intermediate == "optimised" else 90.0)

    def check(self, network: Network) -> None:
        check_relaxations(network)

    def margins(self, network: Network, region: Region, y: Tensor) -> Tensor:
        margins, state, left, others = CrownIBP().start(network, region, y)
        if state is None:
            return margins.amin(1)
        bound_nodes(state, "adaptive")
        found = torch.maximum(margins[left], bound_margins(state, y[left], others[left], state.relax("adaptive")))
        margins[left] = found
        worst = margins.amin(1)
        fresh = torch.ones_like(left, dtype=torch.bool)
        fresh[1:] = left.diff() > 0  # positions repeat where they are few
        opened = (fresh & (found <= 0).any(1) & torch.isfinite(found).all(1)).nonzero()[:, 0]
        rows = left[opened]
        options = {"steps": self.steps, "rate": self.lr, "hidden": self.intermediate == "optimised"}
        worst[rows] = optimise(state.pick(opened), y[rows], others[rows], found[opened], **options)  # type: ignore[arg-type]
        return worst
