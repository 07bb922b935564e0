"""Linear forms on the values of a node: what backward bounds carry from the output to the input.

A form is a row of coefficients, one for every value of a node of one sample. Forms come in groups
that belong to one sample each, so that what holds for a sample is read once for its whole group:
G groups of S forms, stored as (G * S, ...).

Forms on images are often windows: one value of a convolution sees a small part of the image only,
and keeps seeing a part of it through the convolutions before. A `Windows` form holds just that
part; it turns `Dense` where its window is no smaller than the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Groups:
    """Whom G groups of S forms each belong to."""

    each: int
    """S"""
    owner: Tensor | None
    """(G,) number of the sample of each group; None: group i belongs to sample i."""
    cell: Tensor | None = None
    """(G,) position in the grid of the node where windows began; None where there are no windows."""
    first: int = 0
    last: int | None = None
    """The samples that `owner` counts among are first..last-1: only these are looked at."""

    def among(self, values: Tensor) -> Tensor:
        """The samples' values (N, ...) that `owner` counts in."""
        return values[self.first : self.last]

    def pick(self, values: Tensor) -> Tensor:
        """Values (N, ...) of the samples as (G, ...)."""
        return self.among(values) if self.owner is None else self.among(values).index_select(0, self.owner)


@dataclass(frozen=True, eq=False)
class Dense:
    """Coefficients for all values of a node."""

    coef: Tensor
    """(G * S, *shape)"""

    def rows(self, groups: Groups) -> Tensor:
        """(G, S, n)"""
        return self.coef.reshape(-1, groups.each, math.prod(self.coef.shape[1:]))

    def spread(self, values: Tensor, groups: Groups) -> Tensor:
        """Values (N, ..., *shape) of the samples, laid beside the coefficients: (G, ..., n)."""
        return groups.pick(values.flatten(1 - self.coef.dim()))

    def like(self, rows: Tensor) -> Dense:
        """Coefficients (G, S, n) in place of these."""
        return Dense(rows.reshape(self.coef.shape))


@dataclass(frozen=True, eq=False)
class Windows:
    """Coefficients for a window of a node of shape (C, H, W); those that fall outside of it mean nothing."""

    coef: Tensor
    """(G * S, C, kh, kw)"""
    grid: tuple[int, int]
    """Height and width of the grid that `Groups.cell` counts in."""
    stride: tuple[int, int]
    """How far apart the windows of neighbouring cells are."""
    origin: tuple[int, int]
    """How far above and left of the image the first window begins (below 0: within it)."""
    clean: bool = False
    """Whether coefficients outside of the image are known to be 0."""

    @property
    def size(self) -> tuple[int, int]:
        """(kh, kw)"""
        return self.coef.shape[2], self.coef.shape[3]

    def rows(self, groups: Groups) -> Tensor:
        """(G, S, n)"""
        return self.coef.reshape(-1, groups.each, math.prod(self.coef.shape[1:]))

    def _margins(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Zeros to add (left, right, top, bottom) so that the windows of the grid tile an image (..., H, W)."""
        after = [(g - 1) * s + k - o - n for g, s, k, o, n in zip(self.grid, self.stride, self.size, self.origin, shape[-2:])]
        return self.origin[1], after[1], self.origin[0], after[0]

    def inside(self, shape: tuple[int, ...]) -> bool:
        """Whether no window of the grid reaches beyond an image (..., H, W)."""
        return max(self._margins(shape)) <= 0

    def spread(self, values: Tensor, groups: Groups) -> Tensor:
        """As Dense.spread, 0 outside of the image: the windows of values (N, ..., C, H, W)."""
        assert groups.cell is not None
        values = groups.among(values)
        rows, extra = len(values), values.shape[1:-3]
        maps = values.reshape(rows, -1, *values.shape[-2:])
        wide, cells = F.pad(maps, self._margins(values.shape)), math.prod(self.grid)
        if groups.owner is not None and 2 * len(groups.cell) < rows * cells and not torch.is_grad_enabled():  # few of the windows
            (kh, kw), (sh, sw) = self.size, self.stride
            views = wide.unfold(2, kh, sh).unfold(3, kw, sw).permute(0, 2, 3, 1, 4, 5)
            down = torch.div(groups.cell, self.grid[1], rounding_mode="floor")
            return views[groups.owner, down, groups.cell % self.grid[1]].reshape(len(groups.cell), *extra, -1)
        found = F.unfold(wide, self.size, stride=self.stride).transpose(1, 2).reshape(rows * cells, *extra, -1)
        return found.index_select(0, groups.cell if groups.owner is None else groups.owner * cells + groups.cell)

    def like(self, rows: Tensor) -> Windows:
        """Coefficients (G, S, n) in place of these, 0 outside of the image."""
        return replace(self, coef=rows.reshape(self.coef.shape), clean=True)

    def cleaned(self, shape: tuple[int, ...], groups: Groups) -> Windows:
        """The same with 0 outside of the image (C, H, W)."""
        if self.clean or self.inside(shape):
            return self
        ones = self.spread(self.coef.new_ones(1, 1, *shape[1:]), replace(groups, owner=None, first=0, last=None))
        each = self.coef.reshape(-1, groups.each, self.coef.shape[1], math.prod(self.size))
        return self.like(each * ones[:, None, None])

    def dense(self, shape: tuple[int, ...], groups: Groups) -> Dense:
        """The same for the whole image (C, H, W)."""
        assert groups.cell is not None
        channels, height, width = shape
        left, right, top, bottom = (max(0, m) for m in self._margins(shape))
        high, wide = height + top + bottom, width + left + right
        device = self.coef.device
        place = torch.arange(channels, device=device).view(-1, 1, 1) * high + torch.arange(self.size[0], device=device).view(-1, 1)
        place = place * wide + torch.arange(self.size[1], device=device)
        down = torch.div(groups.cell, self.grid[1], rounding_mode="floor") * self.stride[0] + top - self.origin[0]
        across = groups.cell % self.grid[1] * self.stride[1] + left - self.origin[1]
        where = (down * wide + across).repeat_interleave(groups.each)[:, None] + place.flatten()
        whole = self.coef.new_zeros(len(self.coef), channels * high * wide).scatter(1, where, self.coef.flatten(1))
        return Dense(whole.view(-1, channels, high, wide)[:, :, top : top + height, left : left + width])

    def covers(self, shape: tuple[int, ...]) -> bool:
        """Whether the window is no smaller than the image."""
        return math.prod(self.size) >= shape[1] * shape[2]


Form = Dense | Windows


def densify(form: Form, shape: tuple[int, ...], groups: Groups) -> Dense:
    """A form as a Dense one."""
    return form if isinstance(form, Dense) else form.dense(shape, groups)


def add(first: Form, second: Form, shape: tuple[int, ...], groups: Groups) -> Form:
    """The sum of two forms on a node of `shape`."""
    if isinstance(first, Dense) and isinstance(second, Dense):
        return Dense(first.coef + second.coef)
    if isinstance(first, Windows) and isinstance(second, Windows) and (first.grid, first.stride) == (second.grid, second.stride):
        first, second = first.cleaned(shape, groups), second.cleaned(shape, groups)
        before = [max(a, b) for a, b in zip(first.origin, second.origin)]
        size = [max(f.size[i] - f.origin[i] for f in (first, second)) + before[i] for i in (0, 1)]
        parts = []
        for form in (first, second):
            at = [b - o for b, o in zip(before, form.origin)]
            rest = [s - a - k for s, a, k in zip(size, at, form.size)]
            parts.append(F.pad(form.coef, (at[1], rest[1], at[0], rest[0])))
        return replace(first, coef=parts[0] + parts[1], origin=(before[0], before[1]), clean=True)
    return Dense(densify(first, shape, groups).coef + densify(second, shape, groups).coef)


def dot(rows: Tensor, values: Tensor) -> Tensor:
    """(G, S) sums over n of rows (G, S, n) times values (G, 1 or S, n)."""
    if values.shape[1] == 1 and rows.shape[1] > 1:
        return torch.bmm(rows, values.transpose(1, 2)).squeeze(2)
    found: Tensor = torch.linalg.vecdot(rows, values)
    return found
