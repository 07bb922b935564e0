"""Logit squeezing, Kannan et al. 2018, https://arxiv.org/abs/1803.06373. A control: it is known to be broken.

As clean logit pairing, it makes margins small and the loss hard to climb instead of the model robust
(Mosbach et al. 2018, https://arxiv.org/abs/1810.12042).
Deliberate deviation: the learning rate follows one cycle.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from robustkit.defenses.augment import noisy
from robustkit.defenses.logit_pairing import apart
from robustkit.defenses.recipe import Minibatch, Objective, Recipe


@dataclass(frozen=True)
class LogitSqueezing(Recipe):
    """Minimises the cross-entropy of noisy images and the size of their logits.

    Gives robustness to weak attacks only: a known-broken control for an evaluation.

    Fields: weight of the squared norm of the logits; sigma, the standard deviation of the Gaussian
    noise on every image.
    """

    weight: float = 0.5
    sigma: float = 0.5

    name = "logit-squeezing"
    positional = ("weight",)
    paper = "Kannan et al. 2018"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.weight >= 0, "weight", "a weight of at least 0, for example 0.5")
        self.require(self.sigma >= 0, "sigma", "a standard deviation of at least 0, for example 0.5")

    def bind(self, network: nn.Module) -> Objective:
        def loss(batch: Minibatch) -> Tensor:
            logits = network(noisy(batch.x, batch.key, self.sigma))
            return functional.cross_entropy(logits, batch.y) + self.weight * apart(logits, 0 * logits)

        return loss
