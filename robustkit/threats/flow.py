"""Flow fields: every pixel of the image looks a little aside. What stAdv and ADef search."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from robustkit import streams
from robustkit.core.comparisons import float32_below
from robustkit.threats.base import Threat
from robustkit.threats.warp import warp


@dataclass(frozen=True, init=False)
class Flow(Threat):
    """Every pixel takes its value from a place at most eps pixels away, each from its own.

    The parameter is the flow field (R,2,H,W) in pixels, down and right; its size is the longest
    Euclidean displacement of a pixel. Values between pixels are bilinear, those outside the image
    are those of its border.
    """

    name = "flow"
    unit = "px"

    def zero(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), 2, *x.shape[2:])

    def apply(self, x: Tensor, p: Tensor) -> Tensor:
        return warp(x, p[:, 0], p[:, 1])

    def size(self, x: Tensor, p: Tensor) -> Tensor:
        return _length(p).flatten(1).amax(1)

    def project(self, x: Tensor, p: Tensor, eps: Tensor) -> Tensor:
        length, most = _length(p), eps[:, None, None, None]
        scale = torch.where(length > most * (1 - 1e-12), most * (1 - 2.5e-7) / length.clamp(min=1e-300), 1.0)
        return p * float32_below(scale)

    def step(self, x: Tensor, p: Tensor, gradient: Tensor, length: Tensor) -> Tensor:
        """Every pixel along its own gradient, all by the same length."""
        direction = gradient / _length(gradient).clamp(min=1e-300)
        return (p + direction * length[:, None, None, None]).to(p.dtype)

    def random(self, x: Tensor, eps: Tensor, keys: Tensor, *, boundary: bool = False) -> Tensor:
        drawn = streams.uniform(keys, (2, *x.shape[2:])).double()
        angle = 2 * math.pi * drawn[:, :1]
        length = torch.ones_like(angle) if boundary else drawn[:, 1:].sqrt()
        field = torch.cat([torch.sin(angle), torch.cos(angle)], 1) * length * eps[:, None, None, None]
        return self.project(x, field.to(x.dtype), eps)

    def unbounded(self, shape: tuple[int, ...]) -> Fraction:
        """The image's diagonal: every pixel may come from anywhere."""
        return Fraction(math.isqrt(sum(side * side for side in shape[1:])) + 1)


def _length(field: Tensor) -> Tensor:
    """(R,1,H,W) float64 Euclidean length of every pixel's vector."""
    squares = field.double().square()
    return (squares[:, :1] + squares[:, 1:]).sqrt()
