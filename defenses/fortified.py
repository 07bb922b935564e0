"""Fortified networks, Lamb et al. 2018, https://arxiv.org/abs/1804.02485 (as state reification 2019, 1905.11382).

Denoising autoencoders at hidden layers are trained with the classifier: the noisy clean state has
to decode to the clean state, and the state of an adversarial example to that of its clean image.
No certificate comes with it, and published gains rest on attacks of fixed strength: what is left of
it under stronger ones has to be measured (`robustkit evaluate`).

Deliberate deviations: noise only in training unless `always`, the reference draws it at test time
too; the target of the reconstruction is a constant by default, else the classifier can please the
autoencoder by shrinking its states; no label smoothing; the inner PGD, its growing budget and the
schedule are those of `pgd`; the detector is `robustkit.defenses.fortify.reconstruction_error`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustkit.attacks.pgd import PGD
from robustkit.defenses.fortify import distance, fortified_text, states
from robustkit.defenses.inner import Inner
from robustkit.defenses.pgd import AdversarialTraining, family
from robustkit.defenses.recipe import Minibatch, Objective
from robustkit.defenses.schedules import ramp
from robustkit.errors import BadInput
from robustkit.models.architecture import skeleton
from robustkit.models.denoiser import denoisers


@dataclass(frozen=True)
class Fortified(AdversarialTraining):
    """Adversarial training of a network whose hidden states pass denoising autoencoders, which are trained with it.

    Fields: those of `pgd`; layers, the modules of the network behind which a denoiser stands
    (default the last flatten); hidden units of a denoiser; kernel, 0 for fully connected denoisers,
    else the odd kernel of convolutional ones; noise, the standard deviation added to the states in
    training, and when deployed too with always; reconstruction and adversarial, the weights of the
    two reconstruction losses; stop, whether no gradient flows into their targets; clean, the share
    of the clean images in the cross-entropy.
    """

    layers: tuple[str, ...] = ()
    hidden: int = 256
    kernel: int = 0
    noise: float = 0.1
    always: bool = False
    reconstruction: float = 1.0
    adversarial: float = 1.0
    stop: bool = True
    clean: float = 0.5

    name = "fortified"
    paper = "Lamb et al. 2018"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.hidden >= 1, "hidden", "a whole number of units of at least 1")
        self.require(self.kernel == 0 or self.kernel % 2 == 1, "kernel", "0 for fully connected denoisers, or an odd number")
        self.require(0 <= self.noise < 1000, "noise", "a standard deviation of at least 0, for example 0.1")
        self.require(self.reconstruction >= 0, "reconstruction", "a weight of at least 0, for example 1")
        self.require(self.adversarial >= 0, "adversarial", "a weight of at least 0, for example 1")
        self.require(0 <= self.clean <= 1, "clean", "a share from 0 to 1, for example 0.5")

    def architecture(self, text: str, shape: tuple[int, int, int]) -> str:
        """The network with its denoisers; one that has some already is taken as it is."""
        network = skeleton(text)
        if denoisers(network) and not self.layers:
            return text
        layers = self.layers or tuple(name for name, part in network.named_modules() if isinstance(part, nn.Flatten))[-1:]
        if not layers:
            raise BadInput(
                f"recipe fortified: the network {text!r} has no flatten layer: say where denoisers stand, for example layers=[3]"
            )
        kernel = f",k{self.kernel}" if self.kernel else ""
        inside = f"{self.hidden}{kernel},noise={self.noise}{',always' if self.always else ''}"
        return fortified_text(text, shape, layers, inside, self.kernel)

    def bind(self, network: nn.Module) -> Objective:
        if not denoisers(network):
            raise BadInput("recipe fortified: the network has no denoiser: put some into it with robustkit.defenses.fortify.fortify")
        inner = Inner(PGD(steps=self.steps, step_size=self.step_size), network, family(self.threat, self.eps))

        def loss(batch: Minibatch) -> Tensor:
            worst = inner(batch, ramp(batch.progress, 0.0, self.rise))
            with states(network) as clean:
                error = functional.cross_entropy(network(batch.x), batch.y)
            with states(network) as moved:
                worse = functional.cross_entropy(network(worst), batch.y)
            return self.clean * error + (1 - self.clean) * worse + self.decoding(clean, moved)

        return loss

    def decoding(self, clean: Sequence[tuple[Tensor, Tensor]], moved: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Both reconstruction losses, weighted, for the denoisers' (state, decoded state) of clean and moved images."""
        targets = [state.detach() if self.stop else state for state, _ in clean]
        plain = torch.stack([distance(decoded, target).mean() for (_, decoded), target in zip(clean, targets)]).sum()
        repaired = torch.stack([distance(decoded, target).mean() for (_, decoded), target in zip(moved, targets)]).sum()
        return self.reconstruction * plain + self.adversarial * repaired
