"""PGD on a stand-in: a small network fitted to the answers of the attacked model, which is asked for classes only.

Papernot et al. 2017, https://arxiv.org/abs/1602.02697: a substitute is trained on images labelled by the
model, then on images that it moves itself, labelled by the model again, and so on. Here those are the points
that an attack on the substitute ends at, inside the budget: where substitute and model disagree, it learns most.

Deliberate deviations: the first images are a thousand of the training split and random points of their balls
(there a handful of one's own); the model is asked at every step of the attack, not at its end only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from robustkit import streams
from robustkit.attacks.live_layer import scattered
from robustkit.attacks.losses import LOSSES
from robustkit.attacks.pgd import PGD
from robustkit.errors import BadInput
from robustkit.methods import Rows, State
from robustkit.models.architecture import build
from robustkit.threats import Threat
from robustkit.views import View

if TYPE_CHECKING:
    from robustkit.classifier import Classifier
    from robustkit.data import Data

_BATCH, _RATE, _STEPS = 128, 2e-3, 5
"""Of the training: images a step, learning rate, and steps of the attack that makes new images."""


@dataclass(frozen=True)
class StandIn(PGD):
    """PGD on a small network fitted to the model's answers. Fields as in PGD; rounds of moving images and training on them."""

    steps: int = 40
    restarts: int = 2
    loss: Literal["ce", "margin", "dlr"] = "margin"
    rounds: int = 5
    epochs: int = 3

    name = "stand-in"
    access = "decision"
    paper = "Papernot et al. 2017"
    version = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 0 or self.epochs < 1:
            raise BadInput(f"stand-in: rounds are at least 0 and epochs at least 1, found {self.rounds}, {self.epochs}")

    def prepare(self, pool: Callable[[], Data], classifier: Classifier, threat: Threat, eps: float, seed: int) -> dict[str, Any]:
        data = pool()
        x = data.x.to(classifier.device)
        keys = streams.row_keys(seed, "stand-in", data.index).to(x.device)
        network = build(_architecture(tuple(x.shape[1:]), classifier.classes or 2), seed).to(x.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
        images = [x, scattered(threat, x, eps, keys)]
        answers = [_answers(classifier, one) for one in images]
        for number in range(self.rounds + 1):
            self._train(network, optimizer, torch.cat(images), torch.cat(answers), seed + number)
            if number < self.rounds:
                images.append(_moved(network, threat, x, answers[0], eps, streams.child(keys, number)))
                answers.append(_answers(classifier, images[-1]))
        network.eval().requires_grad_(False)
        return {"stand-in": network}

    def _train(self, network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.enable_grad():
            for _ in range(self.epochs):
                for part in torch.split(torch.randperm(len(x), generator=generator).to(x.device), _BATCH):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(network(x[part]), y[part]).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()

    def step(self, rows: Rows, state: State, view: View, threat: Threat) -> State:
        p = state["p"]
        view.decisions(p)
        network, loss = view.shared["stand-in"], LOSSES[self.loss]
        gradient = threat.gradient(rows.x, p, lambda image: loss(network(image), rows.y, rows.target))[0]
        return state | {"p": threat.project(rows.x, threat.step(rows.x, p, gradient, rows.eps * self.share), rows.eps)}


def _answers(classifier: Classifier, x: Tensor) -> Tensor:
    return torch.cat([classifier.logits(part).argmax(1) for part in torch.split(x, 256)])


def _moved(network: nn.Module, threat: Threat, x: Tensor, y: Tensor, eps: float, keys: Tensor) -> Tensor:
    """(N,C,H,W) where a short attack on the stand-in leads from images x with answers y."""
    budget = torch.full((len(x),), eps, dtype=torch.float64, device=x.device)
    p = threat.random(x, budget, keys)
    none = torch.full_like(y, -1)
    for _ in range(_STEPS):
        gradient = threat.gradient(x, p, lambda image: LOSSES["margin"](network(image), y, none))[0]
        p = threat.project(x, threat.step(x, p, gradient, budget / 2), budget)
    return threat.apply(x, p)


def _architecture(shape: tuple[int, ...], classes: int) -> str:
    """A small network for images (C,H,W): strided convolutions until 8 pixels are left."""
    channels, height, width = shape
    layers, wide = [f"conv({channels},32,3,p1)-relu"], 32
    while min(height, width) > 7 and len(layers) < 5:
        layers.append(f"conv({wide},{min(64, 2 * wide)},3,s2,p1)-relu")
        wide, height, width = min(64, 2 * wide), (height + 1) // 2, (width + 1) // 2
    return f"{'-'.join(layers)}-flatten-linear({wide * height * width},128)-relu-linear(128,{classes})"
