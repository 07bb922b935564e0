"""Relaxed operations: how a linear form goes backward through what is not affine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from robustkit.certify import ops, smooth  # noqa: F401 - its rules register themselves
from robustkit.certify.forms import Form, Groups, dot
from robustkit.certify.graph import Network, Node
from robustkit.certify.pools import pooled
from robustkit.certify.relax import Choice, Lines, line_rule, lines_for


class Relaxed(Protocol):
    """A relaxed node."""

    def pull(self, form: Form, inputs: list[tuple[int, ...]], result: tuple[int, ...], groups: Groups) -> tuple[list[Form], Tensor]:
        """Forms on the inputs below a form on the result, and the constants (G, S) between them."""


@dataclass(frozen=True, eq=False)
class Elementwise:
    """A function of one value, between two lines."""

    parts: Tensor
    """(N, S, 4, *shape): lower slope, upper minus lower slope, lower gap, upper minus lower gap."""

    @staticmethod
    def between(lines: Lines) -> Elementwise:
        """From its lines."""
        slope, gap = lines.upper_slope - lines.lower_slope, lines.upper_gap - lines.lower_gap
        parts = torch.broadcast_tensors(lines.lower_slope, slope, lines.lower_gap, gap)  # type: ignore[no-untyped-call]
        return Elementwise(torch.stack(parts, 2))

    def pull(self, form: Form, inputs: list[tuple[int, ...]], result: tuple[int, ...], groups: Groups) -> tuple[list[Form], Tensor]:
        """See Relaxed: a coefficient above 0 takes the lower line, one below 0 the upper."""
        rows = form.rows(groups)
        slope, more, gap, further = form.spread(self.parts, groups).unbind(2)
        negative = rows.clamp(max=0)
        constant = dot(rows, gap) + dot(negative, further)
        return [form.like(torch.addcmul(negative * more, rows, slope))], constant


def relaxed(node: Node, low: Tensor, high: Tensor, at: Tensor, *, choice: Choice, apart: float = 0.0) -> Relaxed:
    """The relaxation of a node whose input lies in [low, high] and is `at` at the reference point, (N, S, *shape).

    Lines are moved apart by the share `apart` of what they are computed from: more than float64 rounds.
    """
    if isinstance(node.op, ops.MaxPool):
        return pooled(node.op, low.squeeze(1), high.squeeze(1), at.squeeze(1))
    lines = lines_for(node, low, high, at, choice)
    if apart:
        slack = apart * (1 + (1 + lines.lower_slope.abs() + lines.upper_slope.abs()) * (low.abs() + high.abs()))
        lines = lines._replace(lower_gap=lines.lower_gap - slack, upper_gap=lines.upper_gap + slack)
    return Elementwise.between(lines)


def check_relaxations(network: Network) -> None:
    """Raises BadInput for the first operation without a linear relaxation."""
    for node in network.nodes[1:]:
        if not isinstance(node.op, (ops.Affine, ops.MaxPool)):
            line_rule(node)
