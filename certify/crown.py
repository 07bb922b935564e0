"""CROWN: Zhang et al. 2018, "Efficient Neural Network Robustness Certification with General
Activation Functions", arXiv 1811.00866; with slope=same the dual bound of Wong and Kolter 2018,
arXiv 1711.00851 (Fast-Lin).

Deviations: only unstable neurons are bounded backward; intermediate intervals are cut with interval
bounds that start from the tightened ones, margins with those of interval bounds; the input box is
clipped to [0,1] and rounded outward; a ball and the box are used together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustkit.certify import ops
from robustkit.certify.backward import bound_margins, bound_nodes, prepare
from robustkit.certify.binding import graph_of
from robustkit.certify.crown_ibp import CrownIBP
from robustkit.certify.graph import Network
from robustkit.certify.region import Region
from robustkit.certify.starts import other_classes

if TYPE_CHECKING:
    from robustkit.classifier import Classifier


@dataclass(frozen=True)
class Crown(CrownIBP):
    """Bounds every unstable neuron and the margins by backward linear relaxation.

    Fields: slope, the lower slope of an unstable ReLU: adaptive (0 or 1, whichever loses less
    area) or same (that of the upper line: the dual bound of Wong and Kolter).
    """

    name = "crown"
    paper = "Zhang et al. 2018, arXiv 1811.00866"
    cost = 500.0

    def effort(self, classifier: Classifier, shape: tuple[int, ...]) -> float:
        """One backward pass for every neuron that may be unstable, many of them at once (measured: an eighth of a forward each)."""
        nodes = graph_of(classifier, self.name).network(shape, torch.float32).nodes
        neurons = [nodes[i].shape for node in nodes for i in node.inputs if not isinstance(node.op, (ops.Affine, ops.Input))]
        return max(self.cost, sum(torch.Size(shape).numel() for shape in neurons) / 8)

    def margins(self, network: Network, region: Region, y: Tensor, known: Tensor, real: int) -> Tensor:
        state = prepare(network, region, real)
        bound_nodes(state, self.slope)
        found = bound_margins(state, y, other_classes(y, network.classes), state.relax(self.slope))
        return torch.maximum(known, found).amin(1)
