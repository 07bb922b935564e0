"""What certifiers that look inside a network share: the network at hand, and blocks of samples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from robustkit.certify.graph import Graph, Network
from robustkit.certify.region import Region
from robustkit.errors import BadInput
from robustkit.methods import Bound, Certifier
from robustkit.numerics import PAD, pad_rows

if TYPE_CHECKING:
    from robustkit.classifier import Classifier
    from robustkit.threats import Threat

BLOCK = {"cpu": PAD, "cuda": 8 * PAD}
"""Samples to a block, by device: always as many, filled up with the last one, whatever the batch, because kernels
choose their order of summation by the number of rows (measured on Intel: CROWN's margins move by 1e-7)."""


def graph_of(classifier: Classifier, name: str) -> Graph:
    """The graph of a classifier, its normalisation included; raises BadInput for a plain function."""
    if not isinstance(classifier.module, nn.Module):
        model = classifier.spec or getattr(classifier.module, "__name__", type(classifier.module).__name__)
        raise BadInput(f"the model {model} is no nn.Module: {name} must see inside the model, a plain function cannot be certified")
    return Graph(classifier.module, *((classifier.mean, classifier.std) if classifier.normalises else (None, None)))


class Propagating(Certifier):
    """A certifier whose bound is a function of the network and an input set."""

    threats = ("linf", "l2", "l1")
    folded: ClassVar[bool] = True
    """Whether scales may be folded into neighbouring operations."""

    def intervals(self, network: Network, region: Region, y: Tensor) -> Tensor | None:
        """(N, K-1) cheap lower bounds of z_y - z_j for the other classes j; what they settle is not bounded again.
        None where there are none."""
        return None

    @abstractmethod
    def margins(self, network: Network, region: Region, y: Tensor, known: Tensor, real: int) -> Tensor:
        """(N,) lower bounds of z_y - max other z over the region of each sample of a block.

        Args:
            known: (N, K-1) what `intervals` gave, -inf where nothing.
            real: the samples behind the first so many only fill the block up.
        """

    def check(self, network: Network) -> None:
        """Raises BadInput where the network holds what the certifier has no rule for."""

    def bind(self, classifier: Classifier, threat: Threat) -> Bound:
        """See Certifier. A snapshot of the weights is taken; operations are checked here where the
        classifier knows its input shape, else with the first images."""
        self.accepts(threat)
        bound = _Bound(self, graph_of(classifier, self.name), classifier.device, threat.name)
        if classifier.input_shape:
            bound.network(tuple(classifier.input_shape), torch.float32)
        return bound


class _Bound:
    """(x, y, eps) -> proven lower bound of z_y - max other z; -inf where it is no number."""

    def __init__(self, method: Propagating, graph: Graph, device: torch.device, norm: str) -> None:
        self.method, self.graph, self.device, self.norm = method, graph, device, norm
        self.networks: dict[tuple[tuple[int, ...], torch.dtype], Network] = {}

    def network(self, shape: tuple[int, ...], dtype: torch.dtype) -> Network:
        """The network in the dtype asked for, prepared and checked once."""
        if (shape, dtype) not in self.networks:
            found = self.graph.network(shape, dtype, copy=True, folded=self.method.folded)
            self.method.check(found)
            self.networks[shape, dtype] = found
        return self.networks[shape, dtype]

    def __call__(self, x: Tensor, y: Tensor, eps: Tensor) -> Tensor:
        count = len(x)
        if not count:
            return x.new_zeros(0, device=self.device)
        x, y, eps = x.to(self.device), y.to(self.device), eps.to(self.device)
        different = ((x != x[-1:]).flatten(1).any(1) | (y != y[-1]) | (eps != eps[-1])).nonzero()
        distinct = int(different[-1]) + 2 if len(different) else 1  # batches are filled up with their last row
        x, y, eps = x[:distinct], y[:distinct], eps[:distinct]
        with torch.no_grad():
            network = self.network(tuple(x.shape[1:]), x.dtype)
            known = x.new_full((distinct, network.classes - 1), -torch.inf)
            for at, _, region in self._blocks(torch.arange(distinct, device=x.device), x, eps):
                cheap = self.method.intervals(network, region, y[at])
                if cheap is None:
                    break
                known[at] = cheap
            worst = known.amin(1)
            for at, real, region in self._blocks((~(known > 0).all(1)).nonzero()[:, 0], x, eps):
                worst[at[:real]] = self.method.margins(network, region, y[at], known[at], real)[:real]
            worst = pad_rows(worst, count)
            return torch.where(torch.isfinite(worst), worst, -torch.inf)

    def _blocks(self, at: Tensor, x: Tensor, eps: Tensor) -> Iterator[tuple[Tensor, int, Region]]:
        """Positions of a whole block of the samples at `at`, how many of them are no repetition, and their input sets."""
        rows = BLOCK["cpu" if self.device.type == "cpu" else "cuda"]
        for some in torch.split(at, rows) if len(at) else ():
            block = pad_rows(some, rows)
            yield block, len(some), Region.around(x[block], eps[block], self.norm)
