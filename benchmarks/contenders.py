"""PGD as robustkit, Foolbox and torchattacks do it, and the least time the network itself needs.

Every contender is a function of a seed that attacks the same images once and returns the
adversarial images; the limit returns None.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robustkit import Classifier, Linf
from robustkit.attacks import PGD
from robustkit.torchvision_compat import torchvision

Run = Callable[[int], Tensor | None]


@dataclass(frozen=True)
class Case:
    """One comparison: a model, its images, and the attack everybody runs."""

    name: str
    classifier: Classifier
    x: Tensor
    y: Tensor
    eps: Fraction
    step_size: Fraction
    """Share of eps."""
    steps: int
    stop: Literal["first", "never"] = "first"

    @property
    def length(self) -> float:
        """Step length in units of the [0,1] box."""
        return float(self.eps * self.step_size)


class Deployed(nn.Module):
    """The network with its normalisation inside, as the peers want it, weights trainable as loaded."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        assert isinstance(classifier.original, nn.Module)
        self.net = copy.deepcopy(classifier.original).requires_grad_(True)
        self.normalise = classifier.normalise
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(self.normalise(x))
        return logits


def ours(case: Case, batch_size: int | Literal["auto"] = "auto") -> Run:
    """robustkit as a user calls it; the judge's re-check of every witness is part of the time."""
    attack = PGD(steps=case.steps, step_size=case.step_size)
    threat = Linf(case.eps)
    return lambda seed: attack(case.classifier, case.x, case.y, threat=threat, stop=case.stop, batch_size=batch_size, seed=seed).adversarial


def foolbox(case: Case) -> Run:
    """Foolbox's LinfPGD, one call for all images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, on import
        fb: Any = importlib.import_module("foolbox")
    model = fb.PyTorchModel(Deployed(case.classifier), bounds=(0, 1), device="cpu")
    attack = fb.attacks.LinfPGD(abs_stepsize=case.length, steps=case.steps, random_start=True)

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        _, clipped, _ = attack(model, case.x, case.y, epsilons=float(case.eps))
        found: Tensor = clipped
        return found

    return run


def torchattacks(case: Case) -> Run:
    """torchattacks' PGD, one call for all images. Raises ImportError where it is not installed."""
    torchvision()  # torchattacks imports it, and beside a CPU-only torch it has to be helped
    attack: Any = importlib.import_module("torchattacks").PGD(
        Deployed(case.classifier), eps=float(case.eps), alpha=case.length, steps=case.steps, random_start=True
    )

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        found: Tensor = attack(case.x, case.y)
        return found

    return run


def limit(case: Case) -> Run:
    """Nothing but steps x (forward + backward to the input) of the frozen network, all images at once."""
    classifier = case.classifier
    network: Any = classifier.module

    def run(seed: int) -> None:
        x = case.x.clone().requires_grad_()
        for _ in range(case.steps):
            loss = cross_entropy(network(classifier.normalise(x)), case.y, reduction="sum")
            torch.autograd.grad(loss, x)

    return run


def robust_accuracy(case: Case, adversarial: Tensor) -> float:
    """Share of images classified correctly before and after; out-of-budget pixels do not count."""
    change = (adversarial.double() - case.x.double()).abs().flatten(1).amax(1)
    legal = change <= float(case.eps) + 1e-7
    right = case.classifier.logits(case.x).argmax(1) == case.y
    fooled = case.classifier.logits(adversarial).argmax(1) != case.y
    return float((right & ~(fooled & legal)).float().mean())
