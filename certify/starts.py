"""The linear forms that backward bounds start from: single neurons, and margins between classes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from robustkit.certify import ops
from robustkit.certify.forms import Dense, Form, Groups, Windows
from robustkit.certify.graph import Network
from robustkit.numerics import pad_rows, padded

TOGETHER = {"cpu": 64, "cuda": 1024}
"""Most neurons that are bounded together: enough to share the cost of an operation, few enough to be filled up."""

BUDGET = 1 << 28
"""Bytes that what is worked on together may take."""

CACHED = 1 << 23
"""The same on a CPU without gradients: what its cache holds."""


def unit_forms(
    network: Network, like: Tensor, number: int, where: Tensor, step: int | None = None, merged: bool = True
) -> Iterator[tuple[Form, int, Groups]]:
    """Forms plus and minus one value of node `number` for each row (sample, value) of `where`, and the node they are on.

    In parts of `step` rows, the last one as it is; without a step in parts of a size that follows from the
    network, the last one filled up with its last row, so that no bound depends on how many there are (in training,
    which needs no such promise, it stays as it is). Forms of images are windows; through a last fully connected layer
    they are its own rows, unless `merged` is False.
    """
    node = network.nodes[number]
    while isinstance(node.op, ops.Reshape):
        number = node.inputs[0]
        node = network.nodes[number]
    shape = node.shape
    if step is None:
        step = chunk(budget_for(like), network, like)
        if not torch.is_grad_enabled():
            step = min(step, TOGETHER.get(like.device.type, TOGETHER["cuda"]))
            where = pad_rows(where, padded(len(where), step))
    for i in range(0, len(where), step):
        owner, value = where[i : i + step].unbind(1)
        first, last = int(owner[0]), int(owner[-1]) + 1
        groups = Groups(2, owner - first, None, first, last)
        if merged and isinstance(node.op, ops.Linear) and len(shape) == 1:
            yield Dense(_both(node.op.weight[value])), node.inputs[0], groups
        elif len(shape) == 3:
            area = shape[1] * shape[2]
            channel = torch.div(value, area, rounding_mode="floor")
            units = F.one_hot(channel, shape[0]).to(like).view(-1, shape[0], 1, 1)
            yield Windows(_both(units), (shape[1], shape[2]), (1, 1), (0, 0), True), number, replace(groups, cell=value % area)
        else:
            units = F.one_hot(value, math.prod(shape)).to(like).view(-1, *shape)
            yield Dense(_both(units)), number, groups


def _both(rows: Tensor) -> Tensor:
    return torch.stack((rows, -rows), 1).flatten(0, 1)


def chunk(budget: int, network: Network, like: Tensor, each: int = 2) -> int:
    """Groups of `each` forms whose coefficients for the largest result take `budget` bytes."""
    return max(1, budget // (each * network.largest * like.element_size()))


def budget_for(like: Tensor) -> int:
    """Bytes to work on at a time."""
    return CACHED if like.device.type == "cpu" and not torch.is_grad_enabled() else BUDGET


def margin_forms(network: Network, y: Tensor, others: Tensor, like: Tensor, merged: bool = True) -> tuple[Dense, int]:
    """Forms z_y - z_j for the classes j in `others` (N, S), on the node in front of a fully connected last layer
    (unless `merged` is False) or the logits."""
    head, last = network.head, len(network.nodes) - 1
    if merged and head is not None and len(network.nodes[network.nodes[-1].inputs[0]].shape) == 1:
        spread = head.weight[y].unsqueeze(1) - head.weight[others]
        return Dense(spread.flatten(0, 1)), network.nodes[-1].inputs[0]
    rows = F.one_hot(y, network.classes).unsqueeze(1) - F.one_hot(others, network.classes)
    return Dense(rows.flatten(0, 1).to(like)), last


def other_classes(y: Tensor, classes: int) -> Tensor:
    """(N, K - 1) all classes but y."""
    j = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
    return j + (j >= y[:, None])
