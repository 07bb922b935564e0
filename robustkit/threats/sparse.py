"""Sparse additive perturbations: the l1 ball, and at most eps changed pixels (l0)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from robustkit import streams
from robustkit.numerics import wide
from robustkit.threats.norms import NormThreat, inner, limits

_ROUNDS, _NEAR = 40, 1e-5
"""Of the search for a threshold: rounds at most, and the share of the budget that is left to scaling."""


@dataclass(frozen=True, init=False)
class L1(NormThreat):
    """The sum of absolute changes is at most eps, in units of the [0,1] box.

    The projection is the exact one onto the ball intersected with the box (Croce & Hein 2021,
    https://arxiv.org/abs/2103.01208): a soft threshold, then the clip.
    """

    name = "l1"
    version = 2

    def size(self, x: Tensor, p: Tensor) -> Tensor:
        return self.change(x, p).abs().sum(1)

    def project(self, x: Tensor, p: Tensor, eps: Tensor) -> Tensor:
        room = torch.where(p > 0, 1 - x, x).flatten(1)
        length = p.abs().flatten(1)
        most = inner(eps, length.shape[1], 1)
        cut = _cut(length, room, most)
        shrunk = torch.minimum((length - cut[:, None].to(length.dtype)).clamp_(min=0), room)
        total = shrunk.sum(1, dtype=torch.float64)
        scale = most * (1 - 4e-7) / total.clamp(min=1e-30)
        scale = torch.where((cut > 0) | (total > most), scale, 1.0).to(length.dtype)
        return torch.minimum(shrunk.mul_(scale[:, None]), room).mul_(p.sign().flatten(1)).view_as(p)

    def step(self, x: Tensor, p: Tensor, gradient: Tensor, length: Tensor) -> Tensor:
        """Along the gradient's largest values, 2 % of all of them, with equal lengths between 1/20 and 1/8 of the box.

        The steepest direction proper has a single coordinate, far too slow for networks (Tramèr &
        Boneh 2019, https://arxiv.org/abs/1904.13000). Values that the box lets move by less than a
        quarter of their part are passed over: a step along them alone would not leave p.
        """
        count = torch.maximum((length * 20).clamp(max=math.prod(p.shape[1:]) / 50), length * 8).long().clamp(min=1)
        low, high = limits(x)
        room = torch.where(gradient > 0, high - p, p - low)
        free = torch.where(room > wide((length / count / 4).to(p.dtype), p), gradient, 0)
        return torch.addcmul(p, signs_of_largest(free, count), wide(length.to(p.dtype), p))

    def random(self, x: Tensor, eps: Tensor, keys: Tensor, *, boundary: bool = False) -> Tensor:
        drawn = streams.normal(streams.child(keys, 0), tuple(x.shape[1:]))
        length = eps.to(x.dtype)
        if not boundary:
            length = length * streams.uniform(streams.child(keys, 1), (1,))[:, 0]
        return self.project(x, drawn * wide(length / drawn.abs().flatten(1).sum(1), x), eps)

    def unbounded(self, shape: tuple[int, ...]) -> Fraction:
        return Fraction(math.prod(shape) + 1)


def signs_of_largest(gradient: Tensor, count: Tensor) -> Tensor:
    """The signs of a row's largest values, `count` (R,) of them rounded down but one at least, scaled to an l1 norm of 1."""
    flat = gradient.flatten(1)
    size = flat.abs()
    count = count.long().clamp(1, size.shape[1])
    most = size.shape[1] if size.is_cuda else int(count.max())
    limit = size.topk(most, dim=1).values.gather(1, count[:, None] - 1)
    signs = flat.sign() * (size >= limit)
    return (signs / signs.abs().sum(1, keepdim=True).clamp(min=1)).view_as(gradient)


def _cut(length: Tensor, room: Tensor, most: Tensor) -> Tensor:
    """(R,) float64 by how much all lengths (R,D) are to shrink, so that what is left of them within `room` adds up to `most`, or 0.

    Newton's method, and halving where it would leave the bracket; a row that is done stays as it is.
    """
    cut = low = torch.zeros_like(most)
    high = length.amax(1).double()
    for _ in range(_ROUNDS):
        left = length - cut[:, None].to(length.dtype)
        excess = torch.minimum(left.clamp(min=0), room).sum(1, dtype=torch.float64) - most
        going = (excess.abs() > _NEAR * most) & ((excess > 0) | (cut > 0))
        if not going.is_cuda and not bool(going.any()):
            break
        low, high = torch.where(excess > 0, cut, low), torch.where(excess > 0, high, cut)
        moving = ((left > 0) & (left < room)).sum(1)
        ahead = cut + excess / moving
        ahead = torch.where((ahead > low) & (ahead < high), ahead, (low + high) / 2)
        cut = torch.where(going, ahead, cut)
    return cut


@dataclass(frozen=True, init=False)
class L0(NormThreat):
    """At most eps pixels change, all their channels freely within the box."""

    name = "l0"
    version = 2

    def size(self, x: Tensor, p: Tensor) -> Tensor:
        change = (self.apply(x, p) != x).any(1)
        return change.flatten(1).sum(1).double()

    def project(self, x: Tensor, p: Tensor, eps: Tensor) -> Tensor:
        """The nearest parameter: of every pixel it counts how much nearer to p changing it brings."""
        inside = p.clamp(*limits(x))
        change = inside.double()
        nearer = (change * (p.double() - change / 2)).sum(1).flatten(1)
        rank = nearer.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        kept = (rank < eps.floor()[:, None]).view(len(p), 1, *p.shape[2:])
        return inside * kept

    def step(self, x: Tensor, p: Tensor, gradient: Tensor, length: Tensor) -> Tensor:
        """Along the gradient over its l1 norm (Croce & Hein 2019, https://arxiv.org/abs/1909.05040).

        Far beyond the box, a value by 100 times the length in the mean: the projection then keeps the
        pixels whose move to the box's edge gains most. After short steps it keeps the old ones.
        """
        norm = gradient.flatten(1).abs().mean(1).clamp(min=1e-30) / 100
        return torch.addcmul(p, gradient, wide(length.to(p.dtype) / norm, p))

    def random(self, x: Tensor, eps: Tensor, keys: Tensor, *, boundary: bool = False) -> Tensor:
        drawn = streams.uniform(keys, tuple(x.shape[1:]))
        return self.project(x, drawn - x, eps)

    def unbounded(self, shape: tuple[int, ...]) -> Fraction:
        return Fraction(math.prod(shape[1:]))
