"""What a network makes of images at some of its layers, and the exact cosine neighbours there.

Features are flattened and scaled to unit length, so that similarity is a matrix product; the search
is exhaustive, on the device, class by class. (Subtracting the training mean afterwards, as
the authors of deep kNN do before an approximate search, would not change any neighbour.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustkit.errors import BadInput, unknown
from robustkit.fastlinear import linear, linear_of_inputs

OUTPUT = "output"
"""Name of the network's own output among its layers."""

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus)
_LARGEST = 4 * 2**30
"""Bytes of features that a bank may have."""


def default_layers(network: nn.Module) -> tuple[str, ...]:
    """All activations and the output; where there are no activation modules, all linear and convolution layers."""
    for kinds in (_ACTIVATIONS, (nn.Linear, nn.modules.conv._ConvNd)):
        found = [name for name, module in network.named_modules() if name and isinstance(module, kinds)]
        if found:
            break
    return (*found, OUTPUT)


class Layers(nn.Module):
    """Unit features of a network at some of its modules; of a module used several times, the last."""

    def __init__(self, network: nn.Module, names: Sequence[str] = ()) -> None:
        super().__init__()
        known = [OUTPUT, *(name for name, _ in network.named_modules() if name)]
        self.names = tuple(names) or default_layers(network)
        for name in self.names:
            if name not in known:
                raise unknown("layer", name, known)
        if len(set(self.names)) < len(self.names):
            raise BadInput(f"layers {', '.join(self.names)}: one is named twice: name each once")
        self.network = network

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N,D) features of unit length (zero where all are zero), one tensor a layer."""
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            def hook(module: nn.Module, inputs: Any, given: Any) -> None:
                if not isinstance(given, Tensor):
                    raise BadInput(f"layer {name} gives {type(given).__name__}: expected a tensor; choose other layers")
                seen[name] = functional.normalize(given.flatten(1), dim=1)

            return hook

        handles = [self._module(name).register_forward_hook(keep(name)) for name in self.names]
        try:
            self.network(x)
        finally:
            for handle in handles:
                handle.remove()
        unused = [name for name in self.names if name not in seen]
        if unused:
            raise BadInput(f"layer {unused[0]} has no part in the forward of the network: choose other layers")
        return [seen[name] for name in self.names]

    def _module(self, name: str) -> nn.Module:
        return self.network if name == OUTPUT else self.network.get_submodule(name)


@dataclass(frozen=True)
class Nearest:
    """The neighbours of N images at one layer."""

    similarity: Tensor
    """(N,k) cosines, highest first."""
    at: Tensor
    """(N,k) int64 positions in the bank."""
    closest: Tensor
    """(N,K) cosine of the nearest bank image of every class."""


class Bank(nn.Module):
    """Unit features of labelled images, sorted by class."""

    labels: Tensor

    def __init__(self, features: Sequence[Tensor], labels: Tensor, classes: int) -> None:
        """features: one (M,D) tensor a layer; labels (M,) sorted, every class at least once. Raises BadInput."""
        super().__init__()
        size = sum(f.numel() * f.element_size() for f in features)
        if size > _LARGEST:
            what = f"the features of {len(labels)} bank images take {size / 2**30:.1f} GiB"
            raise BadInput(f"{what}, at most {_LARGEST / 2**30:.0f} are held: name fewer or later layers, or lower bank")
        for i, feature in enumerate(features):
            self.register_buffer(f"layer{i}", feature)
        self.register_buffer("labels", labels)
        self.sizes = torch.bincount(labels, minlength=classes).tolist()
        self.layers, self.classes = len(features), classes
        if min(self.sizes) == 0:
            raise BadInput(f"the bank holds no image of class {self.sizes.index(0)}: raise bank, or give other data")

    def __len__(self) -> int:
        return len(self.labels)

    def features(self, layer: int) -> Tensor:
        """(M,D) features of one layer."""
        found: Tensor = getattr(self, f"layer{layer}")
        return found

    def search(self, features: Tensor, layer: int, k: int) -> Nearest:
        """The k bank images of highest cosine to each of (N,D) unit features, exactly."""
        nearest: list[Tensor] = []
        places: list[Tensor] = []
        closest: list[Tensor] = []
        first = 0
        for block in torch.split(self.features(layer), self.sizes):  # class by class
            found = linear(features, block)
            similarity, at = found.topk(min(k, len(block)), dim=1)
            nearest.append(similarity)
            places.append(at + first)
            closest.append(similarity[:, 0])
            first += len(block)
        similarity, order = torch.cat(nearest, 1).topk(k, dim=1)
        return Nearest(similarity, torch.cat(places, 1).gather(1, order), torch.stack(closest, 1))

    def votes(self, found: Nearest) -> Tensor:
        """(N,K) how many of the neighbours are of each class."""
        given = torch.zeros_like(found.closest)
        return given.scatter_add_(1, self.labels[found.at], torch.ones_like(found.similarity))

    def soft_votes(self, features: Tensor, layer: int, k: int, width: Tensor) -> Tensor:
        """(N,K) logarithm of a differentiable number of votes.

        A bank image counts sigmoid((cosine - that of the k-th neighbour) / width): nearly 1 well
        inside the neighbourhood; far outside, its logarithm falls linearly, so that the gradient never ends.
        """
        cosine = linear_of_inputs(features, self.features(layer))
        border = cosine.detach().topk(k, dim=1).values[:, -1:]
        inside = functional.logsigmoid((cosine - border) / width)
        return torch.stack([part.logsumexp(1) for part in torch.split(inside, self.sizes, dim=1)], 1)
