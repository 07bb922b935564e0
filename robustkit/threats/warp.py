"""Images re-sampled where every pixel looks elsewhere: out(q) = x(q + d(q)), d in pixels.

Coordinates are those of the pixels' centres. Unlike torch's grid_sample, whose coordinates are
shares of the image's side, a displacement of zero gives the image back bit for bit.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Interpolation = Literal["bilinear", "nearest"]
Padding = Literal["zeros", "border", "reflection"]


def warp(x: Tensor, down: Tensor, right: Tensor, interpolation: Interpolation = "bilinear", padding: Padding = "border") -> Tensor:
    """The image whose pixels look (down, right) pixels away.

    Args:
        x: (R,C,H,W) image in [0,1].
        down, right: (R,H,W) displacement; gradients reach it, not x.
        padding: outside the image are zeros, the nearest pixel, or the image mirrored at the centres of its last pixels.
    Returns:
        (R,C,H,W) in [0,1].
    """
    height, width = x.shape[2:]
    row = torch.arange(height, device=x.device, dtype=x.dtype)[:, None] + down
    column = torch.arange(width, device=x.device, dtype=x.dtype) + right
    row, column = _inside(row, height, padding), _inside(column, width, padding)
    if interpolation == "nearest":
        return _pixels(x, row.detach().round(), column.detach().round(), padding)
    top, left = row.detach().floor(), column.detach().floor()
    lower, aside = (row - top)[:, None], (column - left)[:, None]
    above = _between(_pixels(x, top, left, padding), _pixels(x, top, left + 1, padding), aside)
    below = _between(_pixels(x, top + 1, left, padding), _pixels(x, top + 1, left + 1, padding), aside)
    return _between(above, below, lower).clamp(0, 1)


def _between(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """From a (share 0, exactly) to b."""
    return a + share * (b - a)


def _inside(coordinate: Tensor, side: int, padding: Padding) -> Tensor:
    """Coordinates brought into the image; with zeros, to at most one pixel outside, where nothing is left of it."""
    if padding == "zeros":
        return coordinate.clamp(-1, side)
    if padding == "reflection" and side > 1:
        period = 2 * (side - 1)
        turned = coordinate.remainder(period)
        coordinate = torch.where(turned > side - 1, period - turned, turned)
    return coordinate.clamp(0, side - 1)


def _pixels(x: Tensor, row: Tensor, column: Tensor, padding: Padding) -> Tensor:
    """(R,C,H,W) values of x at whole coordinates (R,H,W)."""
    height, width = x.shape[2:]
    i, j = row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()
    where = (i * width + j).clamp(0, height * width - 1).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    found = x.flatten(2).gather(2, where).view(*x.shape[:2], *row.shape[1:])
    if padding == "zeros":
        within = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        found = torch.where(within[:, None], found, 0.0)
    return found
