"""Adversarial logit pairing, Kannan et al. 2018, https://arxiv.org/abs/1803.06373.

The figures of the paper did not stand (Engstrom et al. 2018, https://arxiv.org/abs/1807.10272): on
small images it is adversarial training with a regulariser, and has to be evaluated as such.
Deliberate deviations: the inner PGD, its growing budget and the schedule are those of `pgd`.
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


@dataclass(frozen=True)
class LogitPairing(AdversarialTraining):
    """Minimises the cross-entropy of clean and PGD images and pulls the logits of each pair together.

    Fields: those of `pgd`; weight of the squared distance of a pair's logits; clean, the share of
    the clean images in the cross-entropy (1/2 is the paper's mixed minibatch, 1 pairs only).
    """

    weight: float = 0.5
    clean: float = 0.5

    name = "logit-pairing"
    paper = "Kannan et al. 2018"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.weight >= 0, "weight", "a weight of at least 0, for example 0.5")
        self.require(0 <= self.clean <= 1, "clean", "a share from 0 to 1, for example 0.5")

    def bind(self, network: nn.Module) -> Objective:
        inner = Inner(PGD(steps=self.steps, step_size=self.step_size), network, family(self.threat, self.eps))

        def loss(batch: Minibatch) -> Tensor:
            worst = inner(batch, ramp(batch.progress, 0.0, self.rise))
            clean, adversarial = network(batch.x), network(worst)
            losses = [functional.cross_entropy(logits, batch.y) for logits in (clean, adversarial)]
            return self.clean * losses[0] + (1 - self.clean) * losses[1] + self.weight * apart(clean, adversarial)

        return loss


def apart(one: Tensor, other: Tensor) -> Tensor:
    """Mean over the images of the squared distance of logits (R,K), divided by K."""
    return functional.mse_loss(one, other)
