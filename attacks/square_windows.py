"""Square windows of images, one a row, as places of their pixels: moves touch nothing but them.

Rows may have windows of other sides. All are listed as wide as the widest; narrower ones repeat their
last row and column, which a write does not notice and a sum leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sides:
    """The S sides that windows may have, the widest W, and tables of what follows from them."""

    lengths: tuple[int, ...]
    tensor: Tensor
    """(S,) int64 the same."""
    along: Tensor
    """(S,W) int64 rows, and columns, inside a window: 0 ... side-1, the last repeated."""
    once: Tensor
    """(S,W^2) 1 for pixels that are listed the first time, 0 for repeats."""

    @staticmethod
    @lru_cache(maxsize=256)
    def of(lengths: tuple[int, ...], device: torch.device) -> Sides:
        """The tables, made once."""
        tensor, every = torch.tensor(lengths, device=device), torch.arange(max(lengths), device=device)
        along = torch.minimum(every, tensor[:, None] - 1)
        first = (every < tensor[:, None]).float()
        return Sides(lengths, tensor, along, (first[:, :, None] * first[:, None]).flatten(1))


@dataclass(frozen=True)
class Windows:
    """A window per row."""

    sides: Sides
    which: Tensor
    """(R,) int64 number of its side."""
    corner: Tensor
    """(R,2) int64 first row and column."""

    def places(self, shape: torch.Size) -> Tensor:
        """(R,C,W^2) places of the pixels in images (R,C,H,W) flattened to (R,C,HW)."""
        along = self.sides.along[self.which]
        down = along * shape[3] + (self.corner[:, :1] * shape[3] + self.corner[:, 1:])
        return (down[:, :, None] + along[:, None]).flatten(1)[:, None].expand(-1, shape[1], -1)

    def inside(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """(R,H) and (R,W) float: 1 for the rows, and the columns, of images (R,C,H,W) that it covers, else 0."""
        side = self.sides.tensor[self.which][:, None]
        down, across = (torch.arange(shape[2 + i], device=side.device) - self.corner[:, i : i + 1] for i in (0, 1))
        return _covers(down, side), _covers(across, side)

    def once(self) -> Tensor:
        """(R,W^2) see Sides."""
        return self.sides.once[self.which]

    def holds(self, other: Windows) -> Tensor:
        """(R,W^2) float: 1 for pixels of another window, of the same side, that lie in this one too."""
        apart = other.sides.along[other.which][:, None] + (other.corner - self.corner)[:, :, None]
        inside = _covers(apart, self.sides.tensor[self.which][:, None, None])
        return (inside[:, 0, :, None] * inside[:, 1, None]).flatten(1)


def _covers(apart: Tensor, side: Tensor) -> Tensor:
    """Float: 1 for places that lie so far after a window's first one and are inside it, else 0."""
    return ((apart >= 0) & (apart < side)).float()
