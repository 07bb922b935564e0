"""Rotations and shifts of the whole image, Engstrom et al. 2019, https://arxiv.org/abs/1712.02779."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import get_args

import torch
from torch import Tensor

from robustkit import streams
from robustkit.core.comparisons import float32_below
from robustkit.errors import BadInput, unknown
from robustkit.numerics import constant, wide
from robustkit.threats.base import Threat, exact
from robustkit.threats.warp import Interpolation, Padding, warp

Number = Fraction | str | float | int


@dataclass(frozen=True, init=False)
class Rotation(Threat):
    """The image turns by up to `angle` degrees and shifts by up to `shift` pixels, at eps 1.

    The parameter is (R,3): the angle (counter-clockwise), the shift to the right and downwards, as
    shares of `angle` and `shift`; its size is the largest of the three without their signs. The
    image turns about its centre, then shifts. An angle or a shift of 0 is not allowed to change.
    """

    eps: Fraction = Fraction(1)
    angle: Fraction = Fraction(30)
    shift: Fraction = Fraction(3)
    interpolation: Interpolation = "bilinear"
    padding: Padding = "zeros"

    name = "rotation"

    def __init__(
        self, eps: Number = 1, angle: Number = 30, shift: Number = 3, interpolation: Interpolation = "bilinear", padding: Padding = "zeros"
    ) -> None:
        super().__init__(eps)
        most = (exact(angle, "angle"), exact(shift, "shift"))
        if most[0] > 180 or not any(most):
            raise BadInput(f"rotation: angle={angle}, shift={shift}: the angle is at most 180 degrees, and one of the two is above 0")
        if interpolation not in get_args(Interpolation):
            raise unknown("interpolation", interpolation, get_args(Interpolation))
        if padding not in get_args(Padding):
            raise unknown("padding", padding, get_args(Padding))
        for key, value in (("angle", most[0]), ("shift", most[1]), ("interpolation", interpolation), ("padding", padding)):
            object.__setattr__(self, key, value)

    @property
    def most(self) -> tuple[float, float, float]:
        """Largest angle in degrees and shifts in pixels at eps 1."""
        return float(self.angle), float(self.shift), float(self.shift)

    def free(self, p: Tensor) -> Tensor:
        """p with 0 in place of what may not change."""
        return torch.where(constant(self.most, torch.float32, p.device) > 0, p, 0.0)

    def zero(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), 3)

    def apply(self, x: Tensor, p: Tensor) -> Tensor:
        height, width = x.shape[2:]
        angle, right, down = (part.contiguous()[:, None, None] * most for part, most in zip(p.double().unbind(1), self.most))
        sine, cosine = torch.sin(angle * (math.pi / 180)), torch.cos(angle * (math.pi / 180))
        i = torch.arange(height, device=x.device, dtype=torch.float64)[:, None] - (height - 1) / 2
        j = torch.arange(width, device=x.device, dtype=torch.float64) - (width - 1) / 2
        looks_right = (cosine - 1) * j - sine * i - (cosine * right - sine * down)
        looks_down = sine * j + (cosine - 1) * i - (sine * right + cosine * down)
        return warp(x, looks_down.to(x.dtype), looks_right.to(x.dtype), self.interpolation, self.padding)

    def size(self, x: Tensor, p: Tensor) -> Tensor:
        return self.free(p).double().abs().amax(1)

    def project(self, x: Tensor, p: Tensor, eps: Tensor) -> Tensor:
        inner = float32_below(eps)[:, None]
        return torch.minimum(torch.maximum(self.free(p), -inner), inner)

    def step(self, x: Tensor, p: Tensor, gradient: Tensor, length: Tensor) -> Tensor:
        return torch.addcmul(p, gradient.sign(), wide(length.to(p.dtype), p))

    def random(self, x: Tensor, eps: Tensor, keys: Tensor, *, boundary: bool = False) -> Tensor:
        drawn = self.free(streams.uniform(keys, (3,)) * 2 - 1)
        if boundary:
            drawn = drawn / drawn.abs().amax(1, keepdim=True)
        return self.project(x, drawn * eps.to(drawn.dtype)[:, None], eps)

    def unbounded(self, shape: tuple[int, ...]) -> Fraction:
        """Half a turn, and every shift up to the image's longer side."""
        turn = 180 / self.angle if self.angle else Fraction(0)
        leave = max(shape[1:]) / self.shift if self.shift else Fraction(0)
        return max(turn, leave)
