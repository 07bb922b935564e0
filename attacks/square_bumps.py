"""Square attack's moves for l2 and l1: a window takes over the norm of another one, in the shape of a bump.

l2: Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049. l1: Croce & Hein 2021,
https://arxiv.org/abs/2103.01208, the same with sums of absolute values and steeper bumps. A move leaves
the perturbation with the norm that it may have, so that no projection is needed but to clip the window to
the box. In l1, though, every one of several channels gets a bump as if it were the only one, and the projection
onto the ball and the box at once keeps the largest values.
"""

from __future__ import annotations

from functools import cache, lru_cache

import torch
from torch import Tensor

from robustkit.attacks.square_windows import Windows
from robustkit.numerics import wide
from robustkit.threats.norms import inner, last_norm, norm64

ORDER = {"l2": 2, "l1": 1}
TILES = 5
"""Bumps per side of the start."""
_FALL = {2: 2, 1: 4}
"""Power of the ring's number that a bump's values fall off with."""


def start(shape: torch.Size, signs: Tensor, turned: Tensor, order: int) -> Tensor:
    """(R,C,H,W) a tiling of bumps of norm 1 with signs (R,C,25), on their side where `turned` (R,25) says so."""
    height, width = shape[2:]
    side = max(1, min(height, width) // TILES)
    bump, tile = torch.zeros(height, width), torch.zeros(height, width, dtype=torch.int64)
    for a in range(TILES):
        for b in range(TILES):
            top, left = (height - side * TILES) // 2 + a * side, (width - side * TILES) // 2 + b * side
            bump[top : top + side, left : left + side] = _bump(side, order)
            tile[top : top + side, left : left + side] = a * TILES + b
    at = tile.flatten().to(signs.device)
    spread = signs[:, :, at].view(*signs.shape[:2], height, width)
    lying = turned[:, at].view(-1, 1, height, width)
    return spread * torch.where(lying, _aside(bump, side, tile).to(signs.device), bump.to(signs.device))


def _aside(bump: Tensor, side: int, tile: Tensor) -> Tensor:
    """Every tile's bump transposed."""
    found, used = bump.clone(), bump != 0
    for number in range(TILES**2):
        rows, columns = (used & (tile == number)).nonzero().unbind(1)
        if len(rows):
            top, left = int(rows.min()), int(columns.min())
            found[top : top + side, left : left + side] = bump[top : top + side, left : left + side].t()
    return found


def odd(side: Tensor, most: int) -> Tensor:
    """(R,) the next odd side, at least 3, at most what fits."""
    return torch.where(side % 2 == 0, side + 1, side).clamp(min=min(3, most), max=most if most % 2 else most - 1)


def exchange(windows: tuple[Windows, ...], heads: Tensor, shape: torch.Size, order: int) -> tuple[Tensor, ...]:
    """What a move needs to know of two windows of one side a row, whatever the perturbation is.

    Args:
        windows: the first, which gets a bump, and the second, which gives its norm.
        heads: (R,1+C) bool: whether the bump has its halves beside each other instead of one above the other, and
            is turned upside down, channel by channel.
        shape: (R,C,H,W).
        order: 2 or 1.

    Returns:
        (R,C,2,W^2) places of the first window's pixels and of the second's, (R,1,2,W^2) 1 for pixels that count, those of
        the first and those that only the second has, else 0, and the signed bump (R,C,W^2).
    """
    first, second = windows
    table = _table(first.sides.lengths, order, heads.device)
    bump = table[first.which + heads[:, 0] * len(first.sides.lengths)][:, None] * torch.where(heads[:, 1:], 1.0, -1.0)[:, :, None]
    mine = first.once()
    counted = torch.stack([mine, mine * (1 - first.holds(second))], 1)
    return torch.stack([first.places(shape), second.places(shape)], 2), counted[:, None], bump


def spare(p: Tensor, eps: Tensor, order: int) -> Tensor:
    """(R,1) float32: by how much the norm^order of each channel of p (R,C,H,W) may grow until all of the budgets (R,) is spent,
    but for what rounding needs; below 0 where p has grown beyond that."""
    left = inner(eps, p.shape[1:].numel(), order).pow(order) - norm64(p, order).pow(order)
    return (left / p.shape[1]).to(p.dtype)[:, None]


def oversteps(channels: int, order: int) -> bool:
    """Whether a move may leave the ball and the box: in l1 it gives each of several channels what it would have as the only one."""
    return order == 1 and channels > 1


def move(x: Tensor, best: Tensor, between: tuple[Tensor, ...], left: Tensor, order: int) -> Tensor:
    """The norm of a second window, and what the budget leaves, goes into a bump in the first.

    Cut off at the box and within the budget, unless it `oversteps` them.

    Args:
        x: (R,C,H,W) images.
        best: (R,C,H,W) the perturbation so far.
        between: what `exchange` says of the windows.
        left: (R,1) what `spare` says of `best`.
        order: 2 or 1.
    """
    places, counted, bump = between
    flat, channels = best.flatten(2), best.shape[1]
    held = flat.gather(2, places.flatten(2)).view(places.shape)
    given = last_norm(held * counted, order)
    new = bump + held[:, :, 0] / (given[:, :, :1] + 1e-12)
    whole = (left + given.pow(order).sum(2)).clamp(min=0).pow(1 / order)
    over = oversteps(channels, order)
    new = new * ((channels if over else 1) * whole / (last_norm(new * counted[:, :, 0], order) + 1e-12))[:, :, None]
    into, out = places.unbind(2)
    if not over:
        there = x.flatten(2).gather(2, into)
        new = torch.clamp(new, -there, 1 - there)
    moved = flat.scatter(2, out, torch.zeros_like(bump))  # a single 0 takes several times as long
    return moved.scatter_(2, into, new).view(best.shape)


def to_norm(p: Tensor, eps: Tensor, order: int) -> Tensor:
    """Scaled to norm eps."""
    return p * wide(eps.to(p.dtype) / (last_norm(p.flatten(1), order) + 1e-12), p)


def _pyramid(height: int, width: int, order: int) -> Tensor:
    """Concentric rectangles of norm 1 whose values fall off from the centre, the papers' eta: faster in l1."""
    found = torch.zeros(height, width)
    top, left = height // 2, width // 2
    low_i, low_j, high_i, high_j = top, left, top + 1, left + 1
    for ring in range(max(top, left) + 1):
        found[max(low_i, 0) : min(high_i, height), max(low_j, 0) : min(high_j, width)] += 1.0 / (ring + 1) ** _FALL[order]
        low_i, low_j, high_i, high_j = low_i - 1, low_j - 1, high_i + 1, high_j + 1
    return found / last_norm(found.flatten(), order)


@cache
def _bump(side: int, order: int) -> Tensor:
    """(side, side) positive upper half, negative lower half, of norm 1."""
    found = torch.zeros(side, side)
    half = side // 2
    found[:half] = _pyramid(half, side, order) if half else found[:half]
    found[half:] = -_pyramid(side - half, side, order)
    return found / last_norm(found.flatten(), order)


@lru_cache(maxsize=256)
def _table(sides: tuple[int, ...], order: int, device: torch.device) -> Tensor:
    """(2S, W^2) bumps of every side listed as Windows lists pixels, then the same turned."""
    every = torch.arange(max(sides)).clamp
    upright = torch.stack([_bump(side, order)[every(max=side - 1)][:, every(max=side - 1)] for side in sides])
    return torch.cat([upright, upright.transpose(1, 2)]).flatten(1).to(device)
