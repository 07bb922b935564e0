"""CROWN-IBP: Zhang et al. 2020, "Towards Stable and Efficient Training of Verifiably Robust Neural
Networks", arXiv 1906.06316.

Deviations: margins are cut with those of interval bounds; the input box is clipped to [0,1] and
rounded outward; a ball and the box are used together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustkit.certify.backward import bound_margins, bound_nodes, prepare
from robustkit.certify.binding import Propagating
from robustkit.certify.graph import Graph, Network
from robustkit.certify.interval import interval_margins
from robustkit.certify.region import Region
from robustkit.certify.relaxed import check_relaxations
from robustkit.certify.starts import other_classes
from robustkit.errors import BadInput


@dataclass(frozen=True)
class CrownIBP(Propagating):
    """Bounds hidden neurons by intervals and the margins by backward linear relaxation: cheap, much tighter than ibp.

    Fields: slope, the lower slope of an unstable ReLU: adaptive (0 or 1, whichever loses less
    area) or same (that of the upper line: the dual bound of Wong and Kolter).
    """

    slope: Literal["adaptive", "same"] = "adaptive"

    name = "crown-ibp"
    positional = ("slope",)
    paper = "Zhang et al. 2020, arXiv 1906.06316"
    cost = 60.0

    def __post_init__(self) -> None:
        if self.slope not in ("adaptive", "same"):
            raise BadInput(f"{self.name}: slope is adaptive or same, found {self.slope!r}")

    def check(self, network: Network) -> None:
        check_relaxations(network)

    def intervals(self, network: Network, region: Region, y: Tensor) -> Tensor:
        margins = interval_margins(network, region.low, region.high, y, region.ball)
        return margins.gather(1, other_classes(y, network.classes))

    def margins(self, network: Network, region: Region, y: Tensor, known: Tensor, real: int) -> Tensor:
        state = prepare(network, region, real)
        bound_nodes(state, None)
        found = bound_margins(state, y, other_classes(y, network.classes), state.relax(self.slope))
        return torch.maximum(known, found).amin(1)


def crown_margins(
    graph: Graph | Network,
    region: Region,
    y: Tensor,
    *,
    slope: str = "adaptive",
    intermediate: Literal["ibp", "crown"] = "crown",
) -> Tensor:
    """Lower bounds (N, K) of z_y - z_j over the region by backward relaxation; 0 in column y.

    Differentiable with respect to the module's parameters and the region: certified training
    minimises a loss of their negative (with intermediate="ibp": CROWN-IBP). Adaptive slopes of curved
    activations are taken as constants by the gradient.

    Args:
        graph: a Graph (weights are read now) or a Network.
        region: Region.around(x, eps, norm).
        y: (N,) int64 labels.
    """
    at = region.at
    network = graph if isinstance(graph, Network) else graph.network(tuple(at.shape[1:]), at.dtype)
    state, others = prepare(network, region), other_classes(y, network.classes)
    bound_nodes(state, slope if intermediate == "crown" else None)
    found = bound_margins(state, y, others, state.relax(slope))
    return found.new_zeros(len(y), network.classes).scatter(1, others, found)
