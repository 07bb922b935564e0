"""Norm-bounded additive perturbations: apply(x, p) = clamp(x + p, 0, 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from robustkit import streams
from robustkit.core.comparisons import float32_below
from robustkit.numerics import wide
from robustkit.threats.base import Threat, input_gradient

HALF_ULP = 2.0**-25
"""The most that rounding x + p to float32 can move a value in [0,1]."""


def reach(eps: Tensor, like: Tensor) -> Tensor:
    """(R,) l_inf budgets, less what rounding x + p may add, to compare with p (R,...)."""
    return wide(float32_below((eps - HALF_ULP).clamp(min=0)), like)


def inner(eps: Tensor, values: int, order: int) -> Tensor:
    """(R,) l2 or l1 budgets less what rounding may add: the most that the norm of p, of so many values, may be."""
    return (eps * (1 - 1e-6) - math.pow(values, 1 / order) * HALF_ULP).clamp(min=0)


def last_norm(values: Tensor, order: int) -> Tensor:
    """l2 or l1 norms along the last dimension."""
    if order == 1:
        return values.abs().sum(-1)  # vector_norm takes ten times as long
    found: Tensor = torch.linalg.vector_norm(values, dim=-1)
    return found


def norm64(p: Tensor, order: int = 2) -> Tensor:
    """(R,) float64 l2 or l1 norms of p (R,...), summed up in float32 over a few values only: as good, and much faster."""
    values = p.shape[1:].numel()
    line = _line(values)
    lines = last_norm(p.reshape(len(p), values // line, line), order)
    found: Tensor = torch.linalg.vector_norm(lines, ord=order, dim=1, dtype=torch.float64)
    return found


@cache
def _line(count: int) -> int:
    """How many values are summed up in float32: the largest divisor of their number that is at most 256."""
    return max(divisor for divisor in range(1, 257) if count % divisor == 0)


def shorten_(p: Tensor, eps: Tensor) -> Tensor:
    """p (R,...) scaled, in place, into the l2 ball of (R,) eps, far enough that rounding x + p stays inside."""
    norm, most = norm64(p), inner(eps, p.shape[1:].numel(), 2)
    scale = torch.where(norm > most, most * (1 - 4e-7) / norm.clamp(min=1e-30), 1.0)
    return p.mul_(wide(scale.to(p.dtype), p))


@dataclass(frozen=True, init=False)
class NormThreat(Threat):
    """Shared by the additive families. The size is that of the change really made to the image."""

    reaches_every_image = True

    def zero(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def apply(self, x: Tensor, p: Tensor) -> Tensor:
        return (x + p).clamp_(0, 1)

    def apply_many(self, x: Tensor, p: Tensor) -> Tensor:
        return self.apply(x[:, None], p).flatten(0, 1)

    def change(self, x: Tensor, p: Tensor) -> Tensor:
        """(R,D) float64 change that p makes."""
        return (self.apply(x, p).double() - x.double()).flatten(1)

    def snap(self, x: Tensor, image: Tensor, eps: Tensor) -> Tensor:
        """The parameter nearest to a foreign image, inside the budget and the box."""
        return self.project(x, torch.nan_to_num(image) - x, eps)

    def gradient(self, x: Tensor, p: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Any]:
        """As in the base, with the clamp taken as the identity (p is kept inside the box)."""
        with torch.enable_grad():
            leaf = self.apply(x, p).detach().requires_grad_()
            values = loss(leaf)
        return input_gradient(values, leaf), values.detach()


_LIMITS: MutableMapping[Tensor, tuple[int, Tensor | None, Tensor, Tensor]] = WeakIdKeyDictionary()
"""By image tensor: its version, the l_inf budgets, and the limits of what may be added to it."""


def limits(x: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The least and the most that may be added to each value of x (R,...) within the box, and l_inf budgets (R,) if any.

    Attacks project onto the same images again and again: the limits are kept as long as the images are.
    """
    held = _LIMITS.get(x)
    if held is None or held[0] != x._version or held[1] is not eps:
        low, high = -x, 1 - x
        if eps is not None:
            inner = reach(eps, x)
            low, high = torch.maximum(low, -inner), torch.minimum(high, inner)
        held = (x._version, eps, low, high)
        _LIMITS[x] = held
    return held[2], held[3]


@dataclass(frozen=True, init=False)
class Linf(NormThreat):
    """Every value may change by at most eps, in units of the [0,1] box."""

    name = "linf"

    def size(self, x: Tensor, p: Tensor) -> Tensor:
        return self.change(x, p).abs().amax(1)

    def project(self, x: Tensor, p: Tensor, eps: Tensor) -> Tensor:
        return p.clamp(*limits(x, eps))

    def step(self, x: Tensor, p: Tensor, gradient: Tensor, length: Tensor) -> Tensor:
        return torch.addcmul(p, gradient.sign(), wide(length.to(p.dtype), p))

    def random(self, x: Tensor, eps: Tensor, keys: Tensor, *, boundary: bool = False) -> Tensor:
        drawn = streams.uniform(keys, tuple(x.shape[1:])) * 2 - 1
        if boundary:
            drawn = drawn / wide(drawn.abs().flatten(1).amax(1), drawn)
        return self.project(x, drawn * wide(eps.to(x.dtype), x), eps)

    def unbounded(self, shape: tuple[int, ...]) -> Fraction:
        return Fraction(1)


@dataclass(frozen=True, init=False)
class L2(NormThreat):
    """The Euclidean norm of the change is at most eps, in units of the [0,1] box."""

    name = "l2"

    def size(self, x: Tensor, p: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(self.change(x, p), dim=1)
        return norm

    def project(self, x: Tensor, p: Tensor, eps: Tensor) -> Tensor:
        return shorten_(p.clamp(*limits(x)), eps)

    def step(self, x: Tensor, p: Tensor, gradient: Tensor, length: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=torch.float64)  # float32 has no squares of 1e-25
        factor = (length / norm.clamp(min=1e-45)).clamp(max=1e38)
        return torch.addcmul(p, gradient, wide(factor.to(p.dtype), p))

    def random(self, x: Tensor, eps: Tensor, keys: Tensor, *, boundary: bool = False) -> Tensor:
        drawn = streams.normal(streams.child(keys, 0), tuple(x.shape[1:]))
        length = eps.to(x.dtype)
        if not boundary:
            share = streams.uniform(streams.child(keys, 1), (1,))[:, 0].double() ** (1 / x[0].numel())
            length = length * share.to(x.dtype)
        norm = torch.linalg.vector_norm(drawn.flatten(1), dim=1)
        return self.project(x, drawn * wide(length / norm, x), eps)

    def unbounded(self, shape: tuple[int, ...]) -> Fraction:
        return Fraction(math.isqrt(math.prod(shape)) + 1)
