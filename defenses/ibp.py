"""Training on interval bounds, Gowal et al. 2018, https://arxiv.org/abs/1810.12715.

Deliberate deviations: schedules are shares of the training instead of step counts, the learning
rate stays high until late, and after the ramps the clean loss may have no weight at all (kappa=0),
which proves more at small budgets (as Shi et al. 2021, https://arxiv.org/abs/2103.17268, whose start
and regulariser are options).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustkit.certify.backward import State
from robustkit.certify.graph import Network
from robustkit.certify.interval import worst_logits
from robustkit.defenses.bound_training import BoundTraining, margins_after
from robustkit.defenses.recipe import Minibatch


@dataclass(frozen=True)
class IntervalTraining(BoundTraining):
    """Minimises k x cross-entropy(clean) + (1 - k) x cross-entropy(worst logits in the l_inf ball).

    The worst logits come from the certifier's own interval bounds, the last layer merged with the
    margins and the ball cut to the [0,1] box.

    Fields: eps, the budget trained for, best above the one to be certified; kappa, what k falls to
    from 1; warmup, the share of the training on clean images only; rise, the share at which the
    growing budget reaches eps and the falling k reaches kappa; keep, the share until which the
    learning rate stays at its peak; start, the first weights: usual (PyTorch's) or tight (Shi et al.'s,
    with which bounds do not explode); regularise, the weight of their regulariser, which falls to 0 as
    the budget grows; tolerance, the ratio of widths or of active to inactive neurons that it is content with.
    """

    name = "ibp"
    paper = "Gowal et al. 2018"

    def check(self, network: Network) -> None:
        """Intervals have a rule for whatever could be traced."""

    def worst(self, network: Network, batch: Minibatch, eps: float, grown: float, state: State | None) -> Tensor:
        return worst_logits(network, batch.x, batch.y, eps) if state is None else -margins_after(state, batch.y)
