"""A threat family: a parameter space, the map from parameters to images, and a size."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from robustkit.core.comparisons import within
from robustkit.core.identity import from_library, identity
from robustkit.errors import BadInput
from robustkit.spec import Spec, canonical, digest, number

Self = TypeVar("Self", bound="Threat")

LARGEST = 10**9
"""No image in the box is further than this from another, in any family."""


def exact(value: Fraction | str | float | int, what: str = "eps") -> Fraction:
    """A budget as an exact, non-negative fraction; raises BadInput."""
    try:
        found = number(value) if isinstance(value, str) else Fraction(str(value)) if isinstance(value, float) else Fraction(value)
    except (ValueError, TypeError, OverflowError) as problem:
        raise BadInput(f"{what} = {value!r} is not a number: write for example 0.1 or 8/255") from problem
    if found < 0:
        raise BadInput(f"{what} = {value} is negative: a budget is at least 0, for example 8/255")
    if found > LARGEST:
        raise BadInput(f"{what} = {str(value)[:20]} is above {LARGEST}: budgets are in units of the [0,1] box, for example 8/255")
    return found


def _cached(kind: type) -> set[str]:
    return {name for one in kind.__mro__ for name, value in vars(one).items() if isinstance(value, cached_property)}


def input_gradient(values: Tensor, leaf: Tensor) -> Tensor:
    """Gradient of the sum of (R,) values with respect to a leaf; zero where the graph is cut or has no backward."""
    if not values.requires_grad:
        return torch.zeros_like(leaf)
    try:
        (found,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True)
    except NotImplementedError:  # a Function without a backward
        return torch.zeros_like(leaf)
    return torch.zeros_like(leaf) if found is None else found


@dataclass(frozen=True)
class Threat(ABC):
    """What the adversary may do to an image x in [0,1]: choose a parameter p of size at most eps.

    All methods work on rows: x is (R,C,H,W) float32, p has leading dimension R, budgets per row
    are (R,) float64. A witness is its parameter; the image is always re-made by `apply`.
    """

    eps: Fraction

    name: ClassVar[str] = ""
    positional: ClassVar[tuple[str, ...]] = ("eps",)
    unit: ClassVar[str] = ""
    version: ClassVar[int] = 1
    """Of its steps and projections: runs of another version are not resumed."""
    reaches_every_image: ClassVar[bool] = False
    """Whether every image of the box can be made of every other at the `unbounded` budget."""

    def __init__(self, eps: Fraction | str | float | int) -> None:
        object.__setattr__(self, "eps", exact(eps))

    @property
    def spec(self) -> Spec:
        """The canonical specification, for example linf:0.1.

        A family of the user's own is told by its class, and by a digest of its code and everything it holds but
        the budget: `mymodule.Masked:0.1,parameters=...`.
        """
        kind = type(self)
        if not from_library(kind):
            held = {name: value for name, value in vars(self).items() if name != "eps" and name not in _cached(kind)}
            return Spec(f"{kind.__module__}.{kind.__qualname__}", (self.eps,), {"parameters": f"x{identity(kind, held)}"})
        options = dict(canonical(self, self.name).options)
        items = tuple(options.pop(key) for key in self.positional)
        return Spec(self.name, items, options)

    @property
    def family(self) -> str:
        """Digest of the family and its parameters without the budget: what evidence is about."""
        return digest(str(self.at(Fraction(1)).spec))

    def at(self: Self, eps: Fraction | str | float) -> Self:
        """The same family with another budget."""
        if set(vars(self)) <= {field.name for field in fields(self)}:
            return replace(self, eps=exact(eps))
        found = copy.copy(self)  # attributes that are no fields would be lost
        object.__setattr__(found, "eps", exact(eps))
        return found

    def contains(self, x: Tensor, p: Tensor, eps: Fraction | None = None) -> Tensor:
        """(R,) bool: whether p lies within the exact budget and makes a finite image in the box."""
        image = self.apply(x, p)
        legal = ((image >= 0) & (image <= 1)).flatten(1).all(1) & torch.isfinite(p).flatten(1).all(1)
        return legal & within(self.size(x, p), self.eps if eps is None else eps)

    @abstractmethod
    def zero(self, x: Tensor) -> Tensor:
        """The parameter that changes nothing."""

    @abstractmethod
    def apply(self, x: Tensor, p: Tensor) -> Tensor:
        """The image (R,C,H,W) that parameter p makes of x, in the box."""

    def apply_many(self, x: Tensor, p: Tensor) -> Tensor:
        """(R x S,C,H,W) images that parameters p (R,S,...) make, S of every row, those of a row one after another."""
        points = p.shape[1]
        return self.apply(x[:, None].expand(-1, points, *x.shape[1:]).flatten(0, 1), p.flatten(0, 1))

    @abstractmethod
    def size(self, x: Tensor, p: Tensor) -> Tensor:
        """(R,) float64 size of p as it acts on x."""

    @abstractmethod
    def project(self, x: Tensor, p: Tensor, eps: Tensor) -> Tensor:
        """The nearest parameter within the budget, rounded inward so that `contains` holds."""

    @abstractmethod
    def step(self, x: Tensor, p: Tensor, gradient: Tensor, length: Tensor) -> Tensor:
        """Steepest ascent from p of images x by (R,) `length` in the family's own norm (not projected)."""

    @abstractmethod
    def random(self, x: Tensor, eps: Tensor, keys: Tensor, *, boundary: bool = False) -> Tensor:
        """A random parameter within the budget, or on its boundary, drawn from (R,) keys."""

    @abstractmethod
    def unbounded(self, shape: tuple[int, ...]) -> Fraction:
        """A budget at which every image (norms) or every parameter of the family is allowed."""

    def gradient(self, x: Tensor, p: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Any]:
        """Gradient of loss(image) with respect to p; `loss` returns (R,) values and keeps what it needs.

        Returns the gradient and the loss values, both detached.
        """
        with torch.enable_grad():
            leaf = p.detach().requires_grad_()
            values = loss(self.apply(x, leaf))
        return input_gradient(values, leaf), values.detach()
