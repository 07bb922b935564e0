"""Training on interval bounds, Gowal et al. 2018, https://arxiv.org/abs/1810.12715.

Deliberate deviations: schedules are shares of the training instead of step counts, the learning
rate stays high until late, and after the ramps the clean loss may have no weight at all (kappa=0),
which proves more at small budgets (as Shi et al. 2021, https://arxiv.org/abs/2103.17268).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor, nn
from torch.nn import functional

from robustkit.certify import trace, worst_logits
from robustkit.defenses.recipe import Minibatch, Objective, Recipe
from robustkit.defenses.schedules import late_decay, ramp


@dataclass(frozen=True)
class IntervalTraining(Recipe):
    """Minimises k x cross-entropy(clean) + (1 - k) x cross-entropy(worst logits in the l_inf ball).

    The worst logits come from the certifier's own interval bounds, the last layer merged with the
    margins and the ball cut to the [0,1] box.

    Fields: eps, the budget trained for, best above the one to be certified; kappa, what k falls to
    from 1; warmup, the share of the training on clean images only; rise, the share at which the
    growing budget reaches eps and the falling k reaches kappa; keep, the share until which the
    learning rate stays at its peak.
    """

    epochs: int = 40
    lr: float = 0.003
    eps: Fraction = Fraction(3, 20)
    kappa: float = 0.0
    warmup: float = 0.05
    rise: float = 0.4
    keep: float = 0.6

    name = "ibp"
    positional = ("eps",)
    paper = "Gowal et al. 2018"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 < self.eps <= 1, "eps", "a budget above 0 and at most 1, for example 0.12")
        self.require(0 <= self.kappa <= 1, "kappa", "a weight from 0 to 1, for example 0.5")
        self.require(0 <= self.warmup < self.rise <= 1, "rise", f"a share above warmup = {self.warmup} and at most 1, for example 0.4")
        self.require(0 <= self.keep < 1, "keep", "a share from 0 and below 1, for example 0.9")

    def rate(self, progress: float) -> float:
        return late_decay(progress, keep=self.keep)

    def bind(self, network: nn.Module) -> Objective:
        graph = trace(network)

        def loss(batch: Minibatch) -> Tensor:
            if batch.progress == 0:
                graph.network(tuple(batch.x.shape[1:]))  # what the certifier does not know is refused now, not after the warm-up
            grown = ramp(batch.progress, self.warmup, self.rise)
            clean = 1 - grown * (1 - self.kappa)
            total = batch.x.new_zeros(())
            if clean > 0:
                total = total + clean * functional.cross_entropy(network(batch.x), batch.y)
            if grown > 0:
                worst = worst_logits(graph, batch.x, batch.y, float(self.eps) * grown)
                total = total + (1 - clean) * functional.cross_entropy(worst, batch.y)
            return total

        return loss
