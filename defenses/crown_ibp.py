"""CROWN-IBP training, Zhang et al. 2020, "Towards Stable and Efficient Training of Verifiably Robust
Neural Networks", https://arxiv.org/abs/1906.06316.

While the budget grows the margins are bounded backward over interval bounds of the hidden neurons,
which is tighter and steadier; their share b falls to `beta` meanwhile, and what is left are plain
interval bounds, which are cheaper and have the last word. Only the K - 1 margins of the label are
bounded.

Deliberate deviations: as in `ibp`, schedules are shares of the training and straight; the last
layer is merged with the margins in both bounds; no loss fusion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from robustkit.certify.backward import State, bound_margins, bound_nodes, prepare
from robustkit.certify.graph import Network
from robustkit.certify.interval import interval_margins
from robustkit.certify.region import Region
from robustkit.certify.relaxed import check_relaxations
from robustkit.certify.starts import other_classes
from robustkit.defenses.bound_training import BoundTraining, margins_after
from robustkit.defenses.recipe import Minibatch


@dataclass(frozen=True)
class CrownIntervalTraining(BoundTraining):
    """Trains like ibp, on margins that are at first those of backward linear bounds and become those of intervals.

    Fields: those of `ibp`; beta, what the share of the backward bounds falls to from 1 while the
    budget grows; slope, their lower slope of an unstable ReLU: adaptive (0 or 1, whichever loses less area)
    or same (that of the upper line).
    """

    beta: float = 0.0
    slope: Literal["adaptive", "same"] = "adaptive"

    name = "crown-ibp"
    paper = "Zhang et al. 2020"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.beta <= 1, "beta", "a share from 0 to 1, for example 0")
        self.require(self.slope in ("adaptive", "same"), "slope", "adaptive or same")

    def check(self, network: Network) -> None:
        check_relaxations(network)

    def worst(self, network: Network, batch: Minibatch, eps: float, grown: float, state: State | None) -> Tensor:
        share = 1 - grown * (1 - self.beta)
        region = Region.around(batch.x, eps)
        if share == 0:
            return -interval_margins(network, region.low, region.high, batch.y)
        known = prepare(network, region)
        if state is None:
            bound_nodes(known, None)
        else:
            known.intervals = state.intervals
        others = other_classes(batch.y, network.classes)
        backward = bound_margins(known, batch.y, others, known.relax(self.slope))
        forward = margins_after(known, batch.y).gather(1, others)
        mixed = share * backward + (1 - share) * forward
        return mixed.new_zeros(len(batch.y), network.classes).scatter(1, others, -mixed)
