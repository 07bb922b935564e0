"""alpha-CROWN: Xu et al. 2021, "Fast and Complete: Enabling Complete Verification with Massively
Parallel Incomplete Verifiers", arXiv 2011.13824. The method is in optimise.py.

Deviations: those of crown.py; slopes start from CROWN's, and only what it leaves open is optimised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustkit.certify.backward import State, bound_margins, bound_nodes, prepare
from robustkit.certify.binding import Propagating
from robustkit.certify.crown_ibp import CrownIBP
from robustkit.certify.graph import Network
from robustkit.certify.optimise import optimise
from robustkit.certify.region import Region
from robustkit.certify.relaxed import check_relaxations
from robustkit.certify.starts import other_classes
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

    def intervals(self, network: Network, region: Region, y: Tensor) -> Tensor:
        return CrownIBP().intervals(network, region, y)

    def margins(self, network: Network, region: Region, y: Tensor, known: Tensor, real: int) -> Tensor:
        state, others = prepare(network, region, real), other_classes(y, network.classes)
        bound_nodes(state, "adaptive")
        found = torch.maximum(known, bound_margins(state, y, others, state.relax("adaptive")))
        return climbed(self, state, y, others, found)


def climbed(method: AlphaCrown, state: State, y: Tensor, others: Tensor, margins: Tensor) -> Tensor:
    """(N,) the worst of margins (N, K-1), after an ascent where that is open."""
    worst = margins.amin(1)
    opened = ((margins <= 0).any(1) & torch.isfinite(margins).all(1)).nonzero()[:, 0]
    opened = opened if state.real is None else opened[opened < state.real]
    hidden = method.intermediate == "optimised"
    worst[opened] = optimise(
        state.pick(opened), y[opened], others[opened], margins[opened], steps=method.steps, rate=method.lr, hidden=hidden
    )
    return worst
