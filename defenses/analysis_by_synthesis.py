"""Training of analysis by synthesis, Schott et al. 2019, https://arxiv.org/abs/1805.09190.

Every class has its own variational autoencoder, which sees only that class's images; all are trained
side by side. The model and its inference are in robustkit/models/synthesis.py.

Deliberate deviations: the authors did not release their training. As in their appendix the weight of
the KL term begins at 10 and falls to 1, here over the first part of a shorter training, and the
learning rate follows one cycle. The factors of the classes that the paper fits for Binary ABS, on
training images, are fitted here too, by logistic regression: autoencoders that were trained for less
long explain the images of some classes better than those of others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from robustkit import streams
from robustkit.data import Data
from robustkit.defenses.recipe import Minibatch, Objective, Question, Recipe
from robustkit.errors import BadInput
from robustkit.models.architecture import output_shape, skeleton
from robustkit.models.synthesis import Synthesis, synthesis_of
from robustkit.models.vae import LAYOUTS, VAE
from robustkit.numerics import exact_mode

_NOISE = 5
"""Purpose of the draws from the posterior, apart from those of augmentation."""
_AT_ONCE = 128
"""Images whose energies are found at a time."""
_SHRINK = 1e-3
"""Penalty on the squares of the factors' logarithms, for classes without images."""


@dataclass(frozen=True)
class AnalysisBySynthesis(Recipe):
    """Trains one variational autoencoder for each class: squared error plus the KL term.

    Fields: epochs, batch, lr and shift as for every recipe; latent values of each autoencoder; weight
    of the KL term at the beginning, which falls to 1 in the share `fall` of the training; calibration,
    the training images on which the factors of the classes are fitted in the end, 0 to leave them at 1.
    """

    epochs: int = 12
    batch: int = 200
    lr: float = 0.003
    latent: int = 8
    weight: float = 10.0
    fall: float = 0.5
    calibration: int = 8000

    name = "abs"
    paper = "Schott et al. 2019"
    version = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(1 <= self.latent <= 64, "latent", "a whole number from 1 to 64")
        self.require(1 <= self.weight < 1e6, "weight", "a weight of at least 1, for example 10")
        self.require(self.calibration >= 0, "calibration", "a number of images, 0 to leave the factors at 1")
        self.require(0 < self.fall <= 1, "fall", "a share of the training, above 0 and at most 1")

    def finish(self, network: nn.Module, data: Data, seed: int, progress: bool | None) -> None:
        """Factors of the classes, from the energies of training images."""
        model = synthesis_of(network)
        chosen = streams.row_keys(seed, "factors", data.index).argsort(stable=True)[: self.calibration]
        energies = []
        hidden = None if progress is None else not progress
        with exact_mode():
            for part in tqdm(torch.split(chosen, _AT_ONCE), desc="fit factors", unit="batch", disable=hidden):
                energies.append(model.infer(data.images(part).to(model.factors.device))[0].cpu())
        if energies:
            model.factors.copy_(fitted_factors(torch.cat(energies), data.y[chosen]))

    def architecture(self, text: str, shape: tuple[int, int, int]) -> str:
        """An analysis by synthesis with as many classes; one that is asked for as text is taken as it is."""
        network = skeleton(text)
        if any(isinstance(part, Synthesis) for part in network.modules()):
            return text
        if shape[0] != 1 or shape[1] != shape[2] or shape[1] not in LAYOUTS:
            sides = " or ".join(f"{side}x{side}" for side in LAYOUTS)
            raise BadInput(f"recipe abs: images are {'x'.join(map(str, shape))}: it has autoencoders for grey images of {sides} pixels")
        return f"abs({output_shape(text, shape)[0]},{self.latent},{shape[1]})"

    def question(self, file: str) -> Question:
        return Question(file, "l2:1.5", ("abs",), images=20)

    def bind(self, network: nn.Module) -> Objective:
        try:
            vaes = synthesis_of(network).vaes
        except LookupError as problem:
            raise BadInput("recipe abs trains a network abs(...): leave --arch out, or write for example --arch 'abs(10,8)'") from problem

        def loss(batch: Minibatch) -> Tensor:
            weight = 1 + (self.weight - 1) * max(0.0, 1 - batch.progress / self.fall)
            parts = [(vae, (batch.y == number).nonzero()[:, 0]) for number, vae in enumerate(vaes)]
            losses = [free_energy(vae, batch.x[at], batch.key[at], weight) for vae, at in parts if len(at)]
            return torch.stack(losses).sum() / len(batch.y)

        return loss


def free_energy(vae: VAE, x: Tensor, keys: Tensor, weight: float) -> Tensor:
    """Sum over the images of |x - G(z)|^2 + weight KL, z drawn from the posterior by the images' keys."""
    mean, log_variance = vae.encode(x)
    z = mean + (log_variance / 2).exp() * streams.normal(streams.child(keys, _NOISE), (mean.shape[1],))
    divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
    return (x - vae.decode(z)).square().sum() + weight * divergence


def fitted_factors(energies: Tensor, y: Tensor) -> Tensor:
    """(K,) factors, their geometric mean 1, that make the softmax of minus the energies (N,K) likeliest for labels y (N,)."""
    energies = energies.double()
    logarithms = torch.zeros(energies.shape[1], dtype=torch.float64, requires_grad=True)
    scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logarithms, scale], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(-energies * ((logarithms - logarithms.mean()).exp() * scale.exp()), y) + _SHRINK * logarithms.square().sum()
        torch.autograd.backward(value)
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return (logarithms - logarithms.mean()).exp().detach().float()


def fill_published(network: nn.Module, weights: Sequence[Mapping[str, Tensor]]) -> None:
    """Put the authors' weights into a network `abs(10,8)`: the state dicts of their files ABS_0.net to ABS_9.net, in order.

    Their files are pickles, which robustkit does not open: read them where you trust them, with
    torch.load(file, map_location="cpu", weights_only=True). Raises BadInput where they do not fit.
    """
    vaes = synthesis_of(network).vaes
    if len(weights) != len(vaes):
        raise BadInput(f"{len(weights)} sets of weights for {len(vaes)} classes: expected one for each class, in order")
    for number, (vae, given) in enumerate(zip(vaes, weights)):
        counters = {key: value for key, value in vae.state_dict().items() if key.endswith("num_batches_tracked")}
        try:
            vae.load_state_dict(counters | dict(given))
        except RuntimeError as problem:
            why = " ".join(str(problem).split())
            raise BadInput(f"the weights of class {number} do not fit: {why}: expected the state dict of one VAE") from problem
