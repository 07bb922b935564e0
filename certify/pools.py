"""Linear relaxation of max pooling.

Below, a maximum is at least the input whose interval begins highest. Above, it is at most the
maximum of the input m whose interval ends highest and M, the highest end of the others: the chord of
max(x_m, M) over the interval of x_m. Both are exact where one input dominates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.certify import ops
from robustkit.certify.forms import Dense, Form, Groups, densify, dot


def members(op: ops.MaxPool, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """(L, most) positions among the values of one channel that each of the L results of one channel is the maximum of.

    Windows are boxes, so it is enough to see along each dimension which results notice a value.
    Shorter windows repeat their first position.
    """
    dims = []
    for d, size in enumerate(shape[1:], start=1):
        lone = torch.eye(size, dtype=like.dtype, device=like.device)
        images = lone.view(size, *[1] * d, size, *[1] * (len(shape) - 1 - d)).expand(size, 1, *shape[1:])
        noticed = op.forward(images) > 0
        other = [i for i in range(2, noticed.dim()) if i != d + 1]
        seen = noticed.amax(other) if other else noticed
        dims.append(seen.view(size, -1))
    tables = []
    for seen in dims:
        order = seen.long().sort(dim=0, descending=True, stable=True).indices[: int(seen.sum(0).max())].T
        tables.append(torch.where(seen.T.gather(1, order), order, order[:, :1]))
    found = torch.zeros(1, 1, dtype=torch.int64, device=like.device)
    for table, size in zip(tables, shape[1:]):
        joined = found[:, None, :, None] * size + table[None, :, None, :]
        found = joined.reshape(len(found) * len(table), -1)
    return found


@dataclass(frozen=True, eq=False)
class Pooled:
    """A relaxed max pooling; positions and values (N, C * L)."""

    below: Tensor
    """Position among the C * P inputs of a sample of the one that the lower line follows."""
    below_gap: Tensor
    above: Tensor
    above_slope: Tensor
    above_gap: Tensor

    def pull(self, form: Form, inputs: list[tuple[int, ...]], result: tuple[int, ...], groups: Groups) -> tuple[list[Form], Tensor]:
        """See Relaxed."""
        rows = densify(form, result, groups).rows(groups)
        negative = rows.clamp(max=0)
        positive = rows - negative
        below_gap, above_gap, slope = (groups.pick(v).unsqueeze(1) for v in (self.below_gap, self.above_gap, self.above_slope))
        constant = dot(positive, below_gap) + dot(negative, above_gap)
        whole = rows.new_zeros(*rows.shape[:2], math.prod(inputs[0]))
        for part, place in ((positive, self.below), (negative * slope, self.above)):
            whole = whole.scatter_add(2, groups.pick(place).unsqueeze(1).expand_as(part), part)
        return [Dense(whole.view(-1, *inputs[0]))], constant


def pooled(op: ops.MaxPool, low: Tensor, high: Tensor, at: Tensor) -> Pooled:
    """The relaxation on [low, high], with `at` the inputs at the reference point; all (N, C, *spatial)."""
    shape = tuple(low.shape[1:])
    table = members(op, shape, low[:1])
    channels, area = shape[0], math.prod(shape[1:])

    def windows(values: Tensor) -> Tensor:
        return values.reshape(len(values), channels, area)[:, :, table].flatten(1, 2)  # (N, C * L, most)

    starts, ends, points = windows(low), windows(high), windows(at)
    value = points.amax(2)
    base = torch.arange(channels, device=low.device).repeat_interleave(len(table)) * area
    position = table.repeat(channels, 1)

    def chosen(which: Tensor) -> tuple[Tensor, Tensor]:
        place = position.expand(len(which), -1, -1).gather(2, which.unsqueeze(2)).squeeze(2)
        return place, base + place

    def picked(values: Tensor, which: Tensor) -> Tensor:
        return values.gather(2, which.unsqueeze(2)).squeeze(2)

    first = starts.argmax(2)
    _, below = chosen(first)
    most = ends.argmax(2)
    place, above = chosen(most)
    same = position.unsqueeze(0) == place.unsqueeze(2)  # short windows repeat positions
    others = torch.where(same, -torch.inf, ends).amax(2)
    start, end, point = picked(starts, most), picked(ends, most), picked(points, most)
    leads = others <= start
    width = torch.where(leads, 1, end - start).clamp(min=torch.finfo(low.dtype).tiny)
    slope = torch.where(leads, 1, (end - torch.where(leads, end, others)) / width).clamp(0, 1)
    line = torch.where(leads, point, torch.where(leads, 0, others) + slope * (point - start))
    return Pooled(below, (picked(points, first) - value).clamp(max=0), above, slope, (line - value).clamp(min=0))
