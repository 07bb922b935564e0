"""The last layer of a network whose values still change within the budget, and a linear readout of it.

Where a saturated function stands in front of the logits, they are the same all over the ball: no search
sees where it goes. What goes into that function still changes. A readout of it, fitted to the classes
that the model gives to images and random points of their balls, says which way the model's answer lies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit import streams
from robustkit.classifier import Classifier, frozen_copy
from robustkit.errors import BadInput
from robustkit.numerics import exact_mode, pad_rows, padded
from robustkit.threats import Threat

LOOKED_AT, POINTS = 64, 4
"""Images, and random points in each one's ball, by which a layer's values are seen to change."""

NEAR = 1 / 64
"""Share of the budget that these points may use: near an image, what is saturated stays as it is, and all else moves a little."""

ALIVE = 0.9
"""Share of a layer's values that have to change around the median image."""

CHANGE = 1e-5
"""A value changes that moves by more than this share of what it moves between images."""

_PART = 256
RIDGE = 1e-3
"""Share of the mean variance of the features that is added to every variance."""


@dataclass(frozen=True)
class Layer:
    """One output of one module: its name, and which of the module's calls in a forward."""

    name: str
    call: int


class Features:
    """Images (N,C,H,W) to the values (N,D) of one layer."""

    def __init__(self, classifier: Classifier, layer: Layer) -> None:
        assert isinstance(classifier.module, nn.Module)
        self.classifier, self.layer, self.seen, self.calls = classifier, layer, torch.zeros(0), 0
        self.network = frozen_copy(classifier.module)
        self.network.get_submodule(layer.name).register_forward_hook(self._hear)

    def _hear(self, module: nn.Module, given: object, found: Tensor) -> None:
        if self.calls == self.layer.call:
            self.seen = found.detach().flatten(1).clone()
        self.calls += 1

    def __call__(self, x: Tensor) -> Tensor:
        parts = []
        with torch.no_grad(), exact_mode():
            for part in torch.split(x, _PART):
                self.calls = 0
                self.network(self.classifier.normalise(pad_rows(part.clone(), padded(len(part)))))
                parts.append(self.seen[: len(part)])
        self.classifier.forwards += len(x)
        return torch.cat(parts)


@dataclass(frozen=True)
class Readout:
    """Scores (N,K) of images, linear in the features of a live layer."""

    features: Features
    weight: Tensor
    """(D,K)"""
    bias: Tensor
    """(K,)"""

    def __call__(self, x: Tensor) -> Tensor:
        return self.features(x) @ self.weight + self.bias


def live_layer(classifier: Classifier, threat: Threat, x: Tensor, eps: float, keys: Tensor) -> Layer:
    """The last layer whose values change in the balls around images x (N,C,H,W); raises BadInput where there is none."""
    if not isinstance(classifier.module, nn.Module) or classifier.random:
        raise BadInput("the readout needs the layers of an nn.Module that gives the same answer every time")
    images = [x, *(scattered(threat, x, NEAR * eps, streams.child(keys, draw)) for draw in range(POINTS))]
    every = [_outputs(classifier, image) for image in images]
    for layer in reversed(every[0]):
        values = [found[layer] for found in every if layer in found]
        if len(values) == len(every) and _changes(values):
            return layer
    raise BadInput("no layer of the model has values that change within the budget: nothing to read out")


def scattered(threat: Threat, x: Tensor, eps: float, keys: Tensor) -> Tensor:
    """Images as far from x (N,C,H,W) as random points of the ball are."""
    return threat.apply(x, threat.random(x, torch.full((len(x),), eps, dtype=torch.float64, device=x.device), keys))


def _outputs(classifier: Classifier, x: Tensor) -> dict[Layer, Tensor]:
    """What every layer without parts of its own gives for images x, in the order of the forward."""
    assert isinstance(classifier.module, nn.Module)
    network = frozen_copy(classifier.module)
    found: dict[Layer, Tensor] = {}
    calls: dict[str, int] = {}

    def hear(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: object, out: object) -> None:
            layer = Layer(name, calls.get(name, 0))
            calls[name] = layer.call + 1
            if isinstance(out, Tensor) and out.is_floating_point() and out.dim() > 1 and len(out) == rows:
                found[layer] = out.detach()[: len(x)].flatten(1).double()

        return hook

    for name, module in network.named_modules():
        if name and not list(module.children()):
            module.register_forward_hook(hear(name))
    rows = padded(len(x))
    with torch.no_grad(), exact_mode():
        network(classifier.normalise(pad_rows(x.clone(), rows)))
    classifier.forwards += len(x)
    return found


def _changes(values: list[Tensor]) -> bool:
    """Whether enough of a layer's values (N,D), at images and at points around them, change for the median image."""
    spread = (values[0] - values[0].mean(0)).abs().mean(0).clamp(min=1e-12)
    moved = torch.stack([(value - values[0]).abs() / spread for value in values[1:]]).amax(0)
    return float((moved > CHANGE).double().mean(1).median()) >= ALIVE


def fit(features: Features, x: Tensor, answers: Tensor, classes: int) -> Readout:
    """The ridge regression of the model's answers (N,), one column a class, on the layer's values at images x."""
    values = features(x).double()
    mean, scale = values.mean(0), values.std(0).clamp(min=1e-12)
    points = (values - mean) / scale
    wanted = nn.functional.one_hot(answers, classes).double()
    middle = wanted.mean(0)
    count, size = points.shape
    ridge = RIDGE * count
    if size <= count:
        eye = torch.eye(size, dtype=points.dtype, device=points.device)
        weight = torch.linalg.solve(points.t() @ points + ridge * eye, points.t() @ (wanted - middle))
    else:  # the same by a system of the points' number instead of the features'
        eye = torch.eye(count, dtype=points.dtype, device=points.device)
        weight = points.t() @ torch.linalg.solve(points @ points.t() + ridge * eye, wanted - middle)
    weight = weight / scale[:, None]
    return Readout(features, weight.to(x.dtype), (middle - mean @ weight).to(x.dtype))
