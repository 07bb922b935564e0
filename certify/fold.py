"""Folds elementwise scales (batch norm, normalisation) into neighbouring affine operations."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from robustkit.certify.ops import Affine, Conv, Linear, Op, Scale

if TYPE_CHECKING:
    from robustkit.certify.graph import Node


def fold(nodes: list[Node], output: int) -> list[Node]:
    """The function that node `output` computes, with fewer nodes; it is the last of them."""
    nodes = alive(nodes, output)
    uses = Counter(i for node in nodes for i in node.inputs)
    places: list[int] = []
    folded: list[Node] = []
    for node in nodes:
        inputs = tuple(places[i] for i in node.inputs)
        before = folded[inputs[0]] if len(inputs) == 1 and uses[node.inputs[0]] == 1 else None
        merged = merge(before.op, before.shape, node.op) if before else None
        if before is not None and merged is not None:
            folded[inputs[0]] = replace(node, op=merged, inputs=before.inputs)
            places.append(inputs[0])
        else:
            folded.append(replace(node, inputs=inputs))
            places.append(len(folded) - 1)
    return alive(folded, places[-1])


def alive(nodes: list[Node], output: int) -> list[Node]:
    """The nodes that `output` depends on, and the input, renumbered."""
    wanted = {0, output}
    for number in range(output, 0, -1):
        if number in wanted:
            wanted.update(nodes[number].inputs)
    kept = sorted(wanted)
    places = {old: new for new, old in enumerate(kept)}
    return [replace(nodes[n], inputs=tuple(places[i] for i in nodes[n].inputs)) for n in kept]


def merge(first: Op, shape: tuple[int, ...], second: Op) -> Affine | None:
    """One operation for `second` after `first` (one sample of whose result has `shape`), where that is exact."""
    if isinstance(first, Scale) and isinstance(second, Scale):
        return Scale(first.scale * second.scale, first.shift * second.scale + second.shift)
    if isinstance(first, (Linear, Conv)) and isinstance(second, Scale):
        after = _per_channel(second, shape)
        return _scale_result(first, *after) if after and _fits(first, shape) else None
    if isinstance(first, Scale) and isinstance(second, (Linear, Conv)):
        before = _per_channel(first, shape)
        # padding adds zeros after the shift: then only a shift of zero can move behind it
        moves = before and _fits(second, shape) and not (isinstance(second, Conv) and second.padded and bool(before[1].any()))
        return _scale_input(second, *before) if before and moves else None
    return None


def _fits(op: Linear | Conv, shape: tuple[int, ...]) -> bool:
    """Whether the channels that the operation mixes are the first dimension of a sample."""
    return isinstance(op, Conv) or len(shape) == 1


def _per_channel(op: Scale, shape: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
    """Scale and shift (C,) where they are the same at all positions of a channel."""
    if any(size != 1 for part in (op.scale, op.shift) for size in part.shape[1:]):
        return None
    return op.scale.flatten().expand(shape[0]), op.shift.flatten().expand(shape[0])


def _scale_result(op: Linear | Conv, scale: Tensor, shift: Tensor) -> Linear | Conv:
    weight = op.weight * scale.view(-1, *[1] * (op.weight.dim() - 1))
    return replace(op, weight=weight, bias=shift if op.bias is None else op.bias * scale + shift)


def _scale_input(op: Linear | Conv, scale: Tensor, shift: Tensor) -> Linear | Conv:
    groups = op.groups if isinstance(op, Conv) else 1
    grouped = op.weight.reshape(groups, len(op.weight) // groups, len(scale) // groups, -1)
    weight = (grouped * scale.view(groups, 1, -1, 1)).view_as(op.weight)
    bias = (grouped * shift.view(groups, 1, -1, 1)).sum((2, 3)).flatten()
    return replace(op, weight=weight, bias=bias if op.bias is None else op.bias + bias)
