"""Training with Gaussian noise: the base network of a smoothed classifier, Cohen et al. 2019, https://arxiv.org/abs/1902.02918.

What is deployed is `smooth:(MODEL),sigma=...` with the sigma of the training, not the network alone.
This is also the training of PixelDP (Lecuyer et al. 2019, https://arxiv.org/abs/1802.03471) with its
noise layer at the input, which then has sensitivity 1: one draw of the layer an image and step.
Deliberate deviation: one-cycle Adam instead of SGD with steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from robustkit.defenses.augment import noisy
from robustkit.defenses.recipe import Minibatch, Objective, Question, Recipe
from robustkit.spec import number_text


@dataclass(frozen=True)
class GaussianTraining(Recipe):
    """Minimises the cross-entropy of images with Gaussian noise, one fresh draw an image and epoch.

    Fields: sigma, the standard deviation of the noise in units of the [0,1] box; noisy images are
    not clipped, as those that the smoothed classifier votes on are not.
    """

    sigma: Fraction = Fraction(1, 2)

    name = "smoothing"
    positional: ClassVar[tuple[str, ...]] = ("sigma",)
    paper = "Cohen et al. 2019"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 < self.sigma <= 100, "sigma", "a standard deviation above 0, for example 0.25 or 0.5")

    def question(self, file: str) -> Question:
        sigma = number_text(self.sigma)
        return Question(f"smooth:({file}),sigma={sigma}", f"l2:{sigma}", ("smoothing",), images=50, suite="rand")

    def bind(self, network: nn.Module) -> Objective:
        def loss(batch: Minibatch) -> Tensor:
            return functional.cross_entropy(network(noisy(batch.x, batch.key, float(self.sigma))), batch.y)

        return loss
