"""Square attack, Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049: random search over square windows.

Scores only. Deliberate deviations from the published code: every sample draws its own window and
signs (there one draw serves the whole batch), and windows reach the last row and column (there
they stop one short); `published_windows=true` brings the latter back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit import streams
from robustkit.attacks.losses import margin
from robustkit.errors import BadInput
from robustkit.methods import Attack, Rows, State
from robustkit.threats import Threat
from robustkit.views import ScoreView

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the window's share of the image is halved (for 10 000 queries in all)."""


@dataclass(frozen=True)
class Square(Attack):
    """Random search over square windows, scores only. Fields: queries in all; share of the image that the first windows cover; restarts; rescale
    the published schedule to the number of queries; published_windows."""

    queries: int = 5000
    share: float = 0.8
    restarts: int = 1
    rescale: bool = False
    published_windows: bool = False

    name = "square"
    positional = ("queries",)
    access = "score"
    threats = ("linf", "l2")
    paper = "Andriushchenko et al. 2020"
    version = 2

    def __post_init__(self) -> None:
        if self.queries < 2 or self.restarts < 1 or not 0 < self.share <= 1:
            raise BadInput("square: needs queries of at least 2, restarts of at least 1 and a share in (0,1]")

    @property
    def iterations(self) -> int:
        return self.queries - 1  # the Judge's confirmation is the last query

    def init(self, rows: Rows, view: ScoreView, threat: Threat) -> State:  # type: ignore[override]
        start = self._bumps(rows, threat) if threat.name == "l2" else self._stripes(rows)
        start = threat.project(rows.x, start, rows.eps)
        return {"p": start, "best": start, "loss": torch.full_like(rows.eps, -torch.inf, dtype=torch.float32)}

    def step(self, rows: Rows, state: State, view: ScoreView, threat: Threat) -> State:  # type: ignore[override]
        p = state["p"]
        loss = margin(view.scores(p), rows.y, rows.target)
        better = loss > state["loss"]
        best = torch.where(_wide(better, p), p, state["best"])
        size = self._side(rows)
        keys = streams.child(rows.key, rows.steps + 1)
        ahead = self._move_l2(rows, best, size, keys) if threat.name == "l2" else self._move_linf(rows, best, size, keys)
        return {"p": threat.project(rows.x, ahead, rows.eps), "best": best, "loss": torch.where(better, loss, state["loss"])}

    def _side(self, rows: Rows) -> Tensor:
        """(R,) int64 side of each row's next window, from the share that the schedule allows."""
        height, width = rows.x.shape[2:]
        at = rows.steps if not self.rescale else rows.steps * 10000 // self.queries
        halvings = torch.bucketize(at, torch.tensor(_HALVINGS, device=at.device))
        side = torch.sqrt(self.share * 0.5 ** halvings.double() * height * width).round().to(torch.int64)
        return side.clamp(1, min(height, width) - (1 if self.published_windows else 0))

    def _window(self, rows: Rows, side: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A window per row from (R,2) uniform numbers: its mask (R,1,H,W), and every pixel's row and column inside it."""
        height, width = rows.x.shape[2:]
        reach = 0 if self.published_windows else 1
        corner = (drawn * (torch.tensor([height, width], device=drawn.device) + reach - side[:, None])).to(torch.int64)
        top, left = corner.unbind(1)
        i = torch.arange(height, device=side.device)[None] - top[:, None]
        j = torch.arange(width, device=side.device)[None] - left[:, None]
        inside = ((i >= 0) & (i < side[:, None]))[:, None, :, None] & ((j >= 0) & (j < side[:, None]))[:, None, None, :]
        return inside, i, j

    def _signs(self, rows: Rows, keys: Tensor, count: int = 1) -> Tensor:
        """(R,C,1,count) of -1 or +1."""
        return (streams.uniform(keys, (rows.x.shape[1], 1, count)) < 0.5).to(rows.x.dtype) * 2 - 1

    def _stripes(self, rows: Rows) -> Tensor:
        signs = self._signs(rows, streams.child(rows.key, 0), rows.x.shape[3])
        return (signs * _wide(rows.eps, signs).to(signs.dtype)).expand_as(rows.x).contiguous()

    def _move_linf(self, rows: Rows, best: Tensor, side: Tensor, keys: Tensor) -> Tensor:
        drawn = streams.uniform(keys, (2 + rows.x.shape[1],))
        inside, _, _ = self._window(rows, side, drawn[:, :2])
        signs = torch.where(drawn[:, 2:] < 0.5, 1.0, -1.0)[:, :, None, None]
        return torch.where(inside, signs * _wide(rows.eps, signs).to(signs.dtype), best)

    def _bumps(self, rows: Rows, threat: Threat) -> Tensor:
        """A 5 x 5 tiling of bumps with random signs, of norm eps."""
        height, width = rows.x.shape[2:]
        side = max(1, min(height, width) // 5)
        bump = torch.zeros(height, width)
        for a in range(5):
            for b in range(5):
                top, left = (height - side * 5) // 2 + a * side, (width - side * 5) // 2 + b * side
                bump[top : top + side, left : left + side] = _bump(side)
        tile = torch.zeros(height, width, dtype=torch.int64)
        tile += (torch.arange(height).clamp(max=side * 5 - 1) // side)[:, None] * 5 + torch.arange(width).clamp(max=side * 5 - 1) // side
        signs = self._signs(rows, streams.child(rows.key, 0), 25)[:, :, 0]
        spread = signs[:, :, tile.flatten().to(signs.device)].view(*signs.shape[:2], height, width)
        return _to_norm(spread * bump.to(signs.device), rows.eps)

    def _move_l2(self, rows: Rows, best: Tensor, side: Tensor, keys: Tensor) -> Tensor:
        """Move the norm of a second window, and what the budget leaves, into a bump in the first."""
        most = min(rows.x.shape[2:])
        side = torch.where(side % 2 == 0, side + 1, side).clamp(min=min(3, most), max=most if most % 2 else most - 1)
        drawn = streams.uniform(keys, (4 + best.shape[1],))
        first, i, j = self._window(rows, side, drawn[:, :2])
        second, _, _ = self._window(rows, side, drawn[:, 2:4])
        table = _bump_table(most).to(best.device)
        bump = table[side[:, None, None], i.clamp(0, most - 1)[:, :, None], j.clamp(0, most - 1)[:, None, :]][:, None]
        channels = best.shape[1]
        norm = torch.linalg.vector_norm(best.flatten(1), dim=1)
        both = torch.linalg.vector_norm((best * (first | second)).flatten(2), dim=2)
        old = best * first
        old = old / _wide(torch.linalg.vector_norm(old.flatten(2), dim=2) + 1e-12, old)
        new = (bump * torch.where(drawn[:, 4:] < 0.5, 1.0, -1.0)[:, :, None, None] + old) * first
        spare = (rows.eps.to(norm.dtype) ** 2 - norm**2).clamp(min=0) / channels
        length = torch.sqrt(spare[:, None] + both**2) / (torch.linalg.vector_norm(new.flatten(2), dim=2) + 1e-12)
        moved = torch.where(first, new * _wide(length, new), torch.where(second, 0.0, best))
        return _to_norm(moved, rows.eps)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """Values with as many dimensions as `like`, to multiply it by."""
    return values.view(*values.shape, *[1] * (like.dim() - values.dim()))


def _to_norm(p: Tensor, eps: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(p.flatten(1), dim=1) + 1e-12
    return p * _wide(eps.to(p.dtype) / norm, p)


def _pyramid(height: int, width: int) -> Tensor:
    """Concentric rectangles whose values fall off from the centre, the paper's eta."""
    found = torch.zeros(height, width)
    top, left = height // 2, width // 2
    low_i, low_j, high_i, high_j = top, left, top + 1, left + 1
    for ring in range(max(top, left) + 1):
        found[max(low_i, 0) : min(high_i, height), max(low_j, 0) : min(high_j, width)] += 1.0 / (ring + 1) ** 2
        low_i, low_j, high_i, high_j = low_i - 1, low_j - 1, high_i + 1, high_j + 1
    return found / found.square().sum().sqrt()


def _bump(side: int) -> Tensor:
    """(side, side) positive upper half, negative lower half, of norm 1."""
    found = torch.zeros(side, side)
    half = side // 2
    found[:half] = _pyramid(half, side) if half else found[:half]
    found[half:] = -_pyramid(side - half, side)
    return found / found.square().sum().sqrt()


_TABLES: dict[int, Tensor] = {}


def _bump_table(most: int) -> Tensor:
    """(most+1, most, most) bumps of every side, padded with zeros."""
    if most not in _TABLES:
        table = torch.zeros(most + 1, most, most)
        for side in range(1, most + 1):
            table[side, :side, :side] = _bump(side)
        _TABLES[most] = table
    return _TABLES[most]
