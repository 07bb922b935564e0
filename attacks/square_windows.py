"""Square windows of images, one a row, as places of their pixels: moves touch nothing but them.

Rows may have windows of other sides. All are listed as wide as the widest; narrower ones repeat their
last row and column, which a write does not notice and a sum leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """A window per row."""

    corner: Tensor
    """(R,2) int64 first row and column."""
    side: Tensor
    """(R,) int64."""
    widest: int
    """At least the largest side; known without asking the device."""

    @cached_property
    def along(self) -> Tensor:
        """(R,W) rows, and columns, inside the window: 0 ... side-1, the last repeated."""
        return _along(self.widest, self.side.device)[self.side]

    @cached_property
    def rows_and_columns(self) -> tuple[Tensor, Tensor]:
        """(R,W) each, inside the image."""
        down, right = (self.along[None] + self.corner.t()[:, :, None]).unbind(0)
        return down, right

    def places(self, shape: torch.Size) -> Tensor:
        """(R,C,W^2) places of the pixels in images (R,C,H,W) flattened to (R,C,HW)."""
        first = self.corner[:, 0] * shape[3] + self.corner[:, 1]
        down = self.along * shape[3] + first[:, None]
        return (down[:, :, None] + self.along[:, None]).flatten(1)[:, None].expand(-1, shape[1], -1)

    def once(self) -> Tensor:
        """(R,W^2) float: 1 for pixels that are listed the first time, 0 for repeats."""
        new = (torch.arange(self.widest, device=self.side.device) < self.side[:, None]).float()
        return (new[:, :, None] * new[:, None]).flatten(1)

    def holds(self, other: Windows) -> Tensor:
        """(R,W^2) float: 1 for pixels of another window that lie in this one too."""
        ends = zip(other.rows_and_columns, self.corner.unbind(1))
        down, right = (((at >= first[:, None]) & (at < (first + self.side)[:, None])).float() for at, first in ends)
        return (down[:, :, None] * right[:, None]).flatten(1)


@lru_cache(maxsize=64)
def _along(widest: int, device: torch.device) -> Tensor:
    """(widest+1, widest) int64 what `along` is for windows of every side."""
    sides = torch.arange(widest + 1, device=device)[:, None]
    return torch.minimum(torch.arange(widest, device=device), (sides - 1).clamp(min=0))
