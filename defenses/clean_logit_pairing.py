"""Clean logit pairing, Kannan et al. 2018, https://arxiv.org/abs/1803.06373. A control: it is known to be broken.

It makes the margins small everywhere, so that the loss has many flat and misleading places; attacks
that take the logits' scale out of the loss, or that start often enough, find what PGD does not
(Mosbach et al. 2018, https://arxiv.org/abs/1810.12042).
Deliberate deviations: every image is paired with another one of the minibatch, in one circle instead
of two halves, and the learning rate follows one cycle.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from robustkit.defenses.augment import noisy
from robustkit.defenses.logit_pairing import apart
from robustkit.defenses.recipe import Minibatch, Objective, Question, Recipe


@dataclass(frozen=True)
class CleanLogitPairing(Recipe):
    """Minimises the cross-entropy of noisy images and pulls the logits of unrelated images together.

    Gives robustness to weak attacks only: a known-broken control for an evaluation.

    Fields: weight of the squared distance of a pair's logits; sigma, the standard deviation of the
    Gaussian noise on every image.
    """

    weight: float = 0.5
    sigma: float = 0.5

    name = "clean-logit-pairing"
    positional = ("weight",)
    paper = "Kannan et al. 2018"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.weight >= 0, "weight", "a weight of at least 0, for example 0.5")
        self.require(self.sigma >= 0, "sigma", "a standard deviation of at least 0, for example 0.5")

    def question(self, file: str) -> Question:
        return Question(file, "linf:0.3")

    def bind(self, network: nn.Module) -> Objective:
        def loss(batch: Minibatch) -> Tensor:
            logits = network(noisy(batch.x, batch.key, self.sigma))
            return functional.cross_entropy(logits, batch.y) + self.weight * self.penalty(logits)

        return loss

    def penalty(self, logits: Tensor) -> Tensor:
        """What is weighed against the cross-entropy of logits (R,K): how far apart those of neighbours in the minibatch are."""
        return apart(logits, logits.roll(1, 0))
