"""TRADES, Zhang et al. 2019, https://arxiv.org/abs/1901.08573.

Deliberate deviations: 7 inner steps of eps/4 instead of 40 of 0.01, a budget that grows over the
first part of the training and one-cycle Adam, all as in `pgd`, so that minutes are enough; the
search starts in a small ball of the threat's own norm instead of from Gaussian noise of 0.001.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from robustkit.attacks.pgd import PGD
from robustkit.defenses.inner import Inner
from robustkit.defenses.pgd import AdversarialTraining, family
from robustkit.defenses.recipe import Minibatch, Objective
from robustkit.defenses.schedules import ramp
from robustkit.methods import Rows, State
from robustkit.threats import Threat
from robustkit.views import GradientView

START = 0.01
"""Share of the budget within which the search starts: at the image itself the divergence has no slope."""


@dataclass(frozen=True)
class Trades(AdversarialTraining):
    """Minimises the clean cross-entropy and beta x the divergence of the worst prediction in the ball from the clean one.

    Fields: those of `pgd`; beta, what robustness is worth: 1 for MNIST, 6 for CIFAR-10 in the paper.
    """

    beta: float = 1.0

    name = "trades"
    paper = "Zhang et al. 2019"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.beta >= 0, "beta", "a weight of at least 0, for example 1 or 6")

    def bind(self, network: nn.Module) -> Objective:
        inner = Inner(Divergence(steps=self.steps, step_size=self.step_size), network, family(self.threat, self.eps))

        def loss(batch: Minibatch) -> Tensor:
            worst = inner(batch, ramp(batch.progress, 0.0, self.rise))
            clean, moved = network(batch.x), network(worst)
            return functional.cross_entropy(clean, batch.y) + self.beta * divergence(clean, moved).mean()

        return loss


@dataclass(frozen=True)
class Divergence(PGD):
    """PGD that moves the prediction away from the clean one, whatever the label, from next to the image."""

    name = "trades-inner"

    def init(self, rows: Rows, view: GradientView, threat: Threat) -> State:  # type: ignore[override]
        start = threat.random(rows.x, START * rows.eps, rows.key)
        return {"p": start, "clean": view.classifier.search(rows.x).detach()}

    def step(self, rows: Rows, state: State, view: GradientView, threat: Threat) -> State:  # type: ignore[override]
        gradient, _ = view.gradient(state["p"], lambda logits, y, target: divergence(state["clean"], logits))
        return state | {"p": threat.project(rows.x, threat.step(rows.x, state["p"], gradient, rows.eps * self.share), rows.eps)}


def divergence(clean: Tensor, other: Tensor) -> Tensor:
    """(R,) Kullback-Leibler divergence of the prediction of logits `other` (R,K) from that of `clean`."""
    known = clean.log_softmax(1)
    return (known.exp() * (known - other.log_softmax(1))).sum(1)
