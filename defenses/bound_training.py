"""What certified training methods share: schedules, the mixture of clean and worst loss, the start
and the regulariser of Shi et al. 2021, https://arxiv.org/abs/2103.17268.

Deliberate deviations: schedules are shares of the training instead of step counts and straight;
batch norm enters the bounds with its running statistics, not with those of the minibatch; gradients
are not clipped.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from robustkit.certify.backward import State, bound_nodes
from robustkit.certify.graph import Network, Node, trace
from robustkit.certify.interval import interval_margins
from robustkit.certify.ops import Input
from robustkit.certify.region import Region
from robustkit.defenses.bound_balance import imbalance
from robustkit.defenses.bound_start import start_tight
from robustkit.defenses.recipe import Minibatch, Objective, Question, Recipe
from robustkit.defenses.schedules import late_decay, ramp
from robustkit.spec import number_text

LEAST = 1e-3
"""Share of the budget at which the regulariser looks before the budget has grown to that: rounding is far below."""


@dataclass(frozen=True)
class BoundTraining(Recipe):
    """Base of the recipes that minimise k x cross-entropy(clean) + (1 - k) x cross-entropy(worst logits in the l_inf ball).

    Fields: as in `ibp`.
    """

    epochs: int = 40
    lr: float = 0.003
    eps: Fraction = Fraction(3, 20)
    kappa: float = 0.0
    warmup: float = 0.05
    rise: float = 0.4
    keep: float = 0.6
    start: Literal["usual", "tight"] = "usual"
    regularise: float = 0.0
    tolerance: float = 0.5

    positional = ("eps",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 < self.eps <= 1, "eps", "a budget above 0 and at most 1, for example 0.12")
        self.require(0 <= self.kappa <= 1, "kappa", "a weight from 0 to 1, for example 0.5")
        self.require(0 <= self.warmup < self.rise <= 1, "rise", f"a share above warmup = {self.warmup} and at most 1, for example 0.4")
        self.require(0 <= self.keep < 1, "keep", "a share from 0 and below 1, for example 0.9")
        self.require(self.start in ("usual", "tight"), "start", "usual or tight")
        self.require(0 <= self.regularise < 1e6, "regularise", "a weight of at least 0, for example 0.5")
        self.require(0 < self.tolerance <= 1, "tolerance", "a ratio above 0 and at most 1, for example 0.5")

    def rate(self, progress: float) -> float:
        return late_decay(progress, keep=self.keep)

    def initialise(self, network: nn.Module, seed: int) -> None:
        if self.start == "tight":
            start_tight(network, seed)

    def question(self, file: str) -> Question:
        return Question(file, f"linf:{number_text(self.eps)}", ("ibp", "crown-ibp"))

    @abstractmethod
    def check(self, network: Network) -> None:
        """Raises BadInput where the network holds what the bounds have no rule for."""

    @abstractmethod
    def worst(self, network: Network, batch: Minibatch, eps: float, grown: float, state: State | None) -> Tensor:
        """(R,K) upper bounds of z_j - z_y in the ball of radius eps, 0 in column y.

        Args:
            grown: the share of the budget that has been reached.
            state: the intervals of all nodes, where the regulariser has computed them.
        """

    def bind(self, network: nn.Module) -> Objective:
        graph = trace(network)

        def loss(batch: Minibatch) -> Tensor:
            if batch.progress == 0:
                self.check(graph.network(tuple(batch.x.shape[1:]), batch.x.dtype))  # what has no rule is refused now, not after the warm-up
            grown = ramp(batch.progress, self.warmup, self.rise)
            clean, fading = 1 - grown * (1 - self.kappa), self.regularise * (1 - grown)
            total = batch.x.new_zeros(())
            if clean > 0:
                total = total + clean * functional.cross_entropy(network(batch.x), batch.y)
            if grown == 0 and fading == 0:
                return total
            seen = graph.network(tuple(batch.x.shape[1:]), batch.x.dtype)  # after the clean forward: batch norm has seen this minibatch
            state = None
            if fading > 0:
                state = intervals(seen, batch.x, float(self.eps) * max(grown, LEAST))
                total = total + fading * imbalance(state, self.tolerance)
            if grown > 0:
                worst = self.worst(seen, batch, float(self.eps) * grown, grown, state if grown >= LEAST else None)
                total = total + (1 - clean) * functional.cross_entropy(worst, batch.y)
            return total

        return loss


def intervals(network: Network, x: Tensor, eps: float) -> State:
    """Interval bounds of all nodes on the l_inf balls around x; differentiable, no values at the reference point."""
    state = State(network, Region.around(x, eps), [])
    bound_nodes(state, None)
    return state


def margins_after(state: State, y: Tensor) -> Tensor:
    """(R,K) interval bounds of z_y - z_j from intervals that are known: what is left is the last layer merged with the margins."""
    last = state.network.nodes[-1]
    before = last.inputs[0] if state.network.head is not None else len(state.network.nodes) - 1
    nodes = [Node(Input(), (), state.network.nodes[before].shape, last.place)]
    if state.network.head is not None:
        nodes.append(Node(last.op, (0,), last.shape, last.place))
    known = state.intervals[before]
    return interval_margins(Network(tuple(nodes)), known.low, known.high, y)
