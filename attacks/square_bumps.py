"""Square attack's moves for l2 and l1: a window takes over the norm of another one, in the shape of a bump.

l2: Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049. l1: Croce & Hein 2021,
https://arxiv.org/abs/2103.01208, the same with sums of absolute values, from a start that is
projected onto the ball and the box at once. Deliberate deviation for l1: a move already has norm
eps, so clipping it to the box is its projection, which spares the search for a threshold in every
query; several channels share what the budget leaves equally, as in l2.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from robustkit.numerics import float32_below, wide
from robustkit.threats.norms import HALF_ULP

ORDER = {"l2": 2, "l1": 1}
TILES = 5
"""Bumps per side of the start."""


def start(shape: torch.Size, signs: Tensor, turned: Tensor) -> Tensor:
    """(R,C,H,W) a tiling of bumps of norm 1 with signs (R,C,25), on their side where `turned` (R,25) says so."""
    height, width = shape[2:]
    side = max(1, min(height, width) // TILES)
    bump, tile = torch.zeros(height, width), torch.zeros(height, width, dtype=torch.int64)
    for a in range(TILES):
        for b in range(TILES):
            top, left = (height - side * TILES) // 2 + a * side, (width - side * TILES) // 2 + b * side
            bump[top : top + side, left : left + side] = _bump(side)
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


def move(best: Tensor, windows: tuple[Tensor, Tensor], bump: Tensor, eps: Tensor, order: int) -> Tensor:
    """The norm of a second window, and what the budget leaves, goes into a bump in the first.

    Args:
        best: (R,C,H,W) the perturbation so far.
        windows: two masks (R,1,H,W) of 0 and 1.
        bump: (R,C,H,W) a signed bump in the first window.
        eps: (R,) float64 budgets.
    """
    first, second = windows
    norm = _norm(best.flatten(1), order)
    both = _norm((best * torch.maximum(first, second)).flatten(2), order)
    old = best * first
    old = old / wide(_norm(old.flatten(2), order) + 1e-12, old)
    new = (bump + old) * first
    spare = (eps.to(norm.dtype) ** order - norm**order).clamp(min=0) / best.shape[1]
    length = (spare[:, None] + both**order) ** (1 / order) / (_norm(new.flatten(2), order) + 1e-12)
    return to_norm(new * wide(length, new) + best * (1 - first) * (1 - second), eps, order)


def window_bumps(i: Tensor, j: Tensor, side: Tensor, signs: Tensor, turned: Tensor, most: int, order: int) -> Tensor:
    """(R,C,H,W) bumps of norm 1 with signs (R,C), for every pixel's row i (R,H) and column j (R,W) in a window of (R,) side;
    those that are `turned` (R,) have their halves beside each other instead of one above the other."""
    table = _table(most, order).to(signs.device)
    down, across, lying = i.clamp(0, most - 1)[:, :, None], j.clamp(0, most - 1)[:, None, :], turned[:, None, None]
    found = table[side[:, None, None], torch.where(lying, across, down), torch.where(lying, down, across)]
    return found[:, None] * signs[:, :, None, None]


def to_norm(p: Tensor, eps: Tensor, order: int) -> Tensor:
    """Scaled to norm eps."""
    return p * wide(eps.to(p.dtype) / (_norm(p.flatten(1), order) + 1e-12), p)


def into_box(x: Tensor, p: Tensor, eps: Tensor) -> Tensor:
    """An l1 perturbation of norm eps clipped to the box and rounded inward."""
    p = torch.minimum(torch.maximum(p, -x), 1 - x)
    inner = (eps * (1 - 1e-6) - p[0].numel() * HALF_ULP).clamp(min=0)
    scale = (inner / p.flatten(1).abs().sum(1, dtype=torch.float64).clamp(min=1e-30)).clamp(max=1)
    return p * wide(float32_below(scale), p)


def _norm(values: Tensor, order: int) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(values, ord=order, dim=-1)
    return found


def _pyramid(height: int, width: int) -> Tensor:
    """Concentric rectangles whose values fall off from the centre, the paper's eta."""
    found = torch.zeros(height, width)
    top, left = height // 2, width // 2
    low_i, low_j, high_i, high_j = top, left, top + 1, left + 1
    for ring in range(max(top, left) + 1):
        found[max(low_i, 0) : min(high_i, height), max(low_j, 0) : min(high_j, width)] += 1.0 / (ring + 1) ** 2
        low_i, low_j, high_i, high_j = low_i - 1, low_j - 1, high_i + 1, high_j + 1
    return found / found.square().sum().sqrt()


@cache
def _bump(side: int) -> Tensor:
    """(side, side) positive upper half, negative lower half, of Euclidean norm 1."""
    found = torch.zeros(side, side)
    half = side // 2
    found[:half] = _pyramid(half, side) if half else found[:half]
    found[half:] = -_pyramid(side - half, side)
    return found / found.square().sum().sqrt()


@cache
def _table(most: int, order: int) -> Tensor:
    """(most+1, most, most) bumps of every side and norm 1, padded with zeros."""
    table = torch.zeros(most + 1, most, most)
    for side in range(1, most + 1):
        table[side, :side, :side] = _bump(side) / (1 if order == 2 else _bump(side).abs().sum())
    return table
