"""Interval bound propagation: Gowal et al. 2018, "On the Effectiveness of Interval Bound Propagation
for Training Verifiably Robust Models", arXiv 1810.12715.

Deviations: the input box is clipped to [0,1] and rounded outward; l_2 balls are bounded by row
norms in the first layer (see interval.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustkit.certify.binding import graph_of
from robustkit.certify.graph import Graph, Network
from robustkit.certify.interval import Ball, box, interval_margins
from robustkit.methods import Bound, Certifier
from robustkit.numerics import PAD, pad_rows

if TYPE_CHECKING:
    from robustkit.classifier import Classifier
    from robustkit.threats import Threat

CACHED = 1 << 18
"""Values of the largest intermediate result worked on at a time on a CPU: what its cache holds."""

MOST = 32
"""Rows of a block on a CPU: more gain little, and must be filled up where there are few."""


@dataclass(frozen=True)
class IBP(Certifier):
    """Bounds by intervals: about the cost of two forward passes, loose unless trained for."""

    name = "ibp"
    threats = ("linf", "l2")
    paper = "Gowal et al. 2018, arXiv 1810.12715"
    cost = 2.3

    def bind(self, classifier: Classifier, threat: Threat) -> Bound:
        """See Certifier. A snapshot of the weights is taken; operations are checked here where the
        classifier knows its input shape, else with the first images."""
        self.accepts(threat)
        bound = _Bound(graph_of(classifier, self.name), classifier.device, threat.name == "l2")
        if classifier.input_shape:
            bound.network(tuple(classifier.input_shape), torch.float32)
        return bound


def block(largest: int, dtype: torch.dtype, kind: str) -> int:
    """Rows of a block, a multiple of 16, where `largest` values are the largest result of one.

    The same whatever the batch, filled up with the last row: kernels choose their order of summation by the number
    of rows, even among multiples of 16.
    """
    if kind == "cuda":
        return max(PAD, min(512, (1 << 27) // largest) // PAD * PAD)
    if dtype == torch.float64:
        return PAD
    return max(PAD, min(MOST, CACHED // largest) // PAD * PAD)


class _Bound:
    """(x, y, eps) -> proven lower bound of z_y - max other z; -inf where it is no number."""

    def __init__(self, graph: Graph, device: torch.device, ball: bool) -> None:
        self.graph, self.device, self.ball = graph, device, ball
        self.networks: dict[tuple[tuple[int, ...], torch.dtype], Network] = {}

    def network(self, shape: tuple[int, ...], dtype: torch.dtype) -> Network:
        """The network in the dtype asked for, prepared once."""
        if (shape, dtype) not in self.networks:
            self.networks[shape, dtype] = self.graph.network(shape, dtype, copy=True)
        return self.networks[shape, dtype]

    def __call__(self, x: Tensor, y: Tensor, eps: Tensor) -> Tensor:
        x, y, eps = x.to(self.device), y.to(self.device), eps.to(self.device)
        with torch.no_grad():
            network = self.network(tuple(x.shape[1:]), x.dtype)
            rows = block(network.largest, x.dtype, self.device.type)
            parts = [slice(i, i + rows) for i in range(0, len(x), rows)]
            found = [self._rows(network, *(pad_rows(t[part], rows) for t in (x, y, eps))) for part in parts]
            return torch.cat(found)[: len(x)] if found else x.new_zeros(0)

    def _rows(self, network: Network, x: Tensor, y: Tensor, eps: Tensor) -> Tensor:
        low, high = box(x, eps)
        ball = None
        if self.ball:
            up = torch.nextafter(eps.to(x.dtype), torch.full_like(eps, torch.inf, dtype=x.dtype))
            ball = Ball(x, torch.ones_like(x[:1]), up)
        worst = interval_margins(network, low, high, y, ball).scatter(1, y[:, None], torch.inf).amin(1)
        return torch.where(torch.isfinite(worst), worst, -torch.inf)
