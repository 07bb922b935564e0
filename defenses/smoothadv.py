"""SmoothAdv, Salman et al. 2019, https://arxiv.org/abs/1906.04584: adversarial training of a smoothed classifier.

The inner search attacks the soft smoothed classifier, the mean of the softmax scores over a few
draws of noise that stay the same for all its steps; the network then learns from the adversarial
image under the very same draws. Deployed as `smooth:(MODEL),sigma=...`.

Deliberate deviations: the inner PGD is this package's own, which ends inside ball and box; the
budget grows over a share of the training instead of a number of epochs; one-cycle Adam. By default
the loss is that of all draws (the authors' multi-noise variant), not of the first alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor, nn
from torch.nn import functional

from robustkit import streams
from robustkit.attacks.pgd import PGD
from robustkit.defenses.inner import Inner, TrainingView
from robustkit.defenses.pgd import family
from robustkit.defenses.recipe import Minibatch, Objective
from robustkit.defenses.schedules import ramp
from robustkit.defenses.smoothing import GaussianTraining
from robustkit.surface import pooled


@dataclass(frozen=True)
class SmoothAdv(GaussianTraining):
    """Minimises the cross-entropy of noisy images that PGD has moved against the smoothed classifier.

    Fields: those of `smoothing`; eps, the l2 budget in units of the [0,1] box; draws of noise an
    image; steps of the inner PGD, each of length 2 eps / steps; rise, the share of the training in
    which the budget grows from 0 to eps; every, whether all draws are learned from or only the first.
    """

    eps: Fraction = Fraction(1)
    draws: int = 2
    steps: int = 4
    rise: float = 0.3
    every: bool = True

    name = "smoothadv"
    positional = ("sigma", "eps")
    paper = "Salman et al. 2019"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.eps > 0, "eps", "an l2 budget above 0, for example 1")
        self.require(self.draws >= 1, "draws", "a whole number of at least 1")
        self.require(self.steps >= 1, "steps", "a whole number of at least 1")
        self.require(0 <= self.rise <= 1, "rise", "a share from 0 to 1, for example 0.3")

    def bind(self, network: nn.Module) -> Objective:
        attack = PGD(steps=self.steps, step_size=Fraction(2, self.steps), random_start=False)
        inner = Inner(attack, network, family("l2", self.eps), SharedNoise)
        assert isinstance(inner.view, SharedNoise)
        view = inner.view

        def loss(batch: Minibatch) -> Tensor:
            view.noise = noise = self.noise(batch)
            worst = inner(batch, ramp(batch.progress, 0.0, self.rise))
            kept = noise if self.every else noise[:, :1]
            logits = network((worst[:, None] + kept).flatten(0, 1))
            return functional.cross_entropy(logits, batch.y.repeat_interleave(kept.shape[1]))

        return loss

    def noise(self, batch: Minibatch) -> Tensor:
        """(R,draws,C,H,W) noise of every image of a minibatch."""
        shape = tuple(batch.x.shape[1:])
        drawn = streams.normal(streams.child(batch.key, 3), (self.draws, *shape))
        return drawn.mul_(float(self.sigma))


class SharedNoise(TrainingView):
    """Gradients of the soft smoothed network under `noise` (R,S,C,H,W), the same in every step."""

    noise: Tensor

    def answers(self, image: Tensor) -> Tensor:
        logits = self.classifier.search((image[:, None] + self.noise).flatten(0, 1))
        return pooled(logits, self.noise.shape[1])
