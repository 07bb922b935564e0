"""Square attack, Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049: random search over square windows.

Scores only. Deliberate deviations from the published code: every sample draws its own window and
signs (there one draw serves the whole batch), and windows reach the last row and column (there
they stop one short); `published_windows=true` brings the latter back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from robustkit import streams
from robustkit.attacks import square_bumps
from robustkit.attacks.losses import margin
from robustkit.errors import BadInput
from robustkit.methods import Attack, Rows, State
from robustkit.numerics import choose, wide
from robustkit.threats import Threat
from robustkit.views import ScoreView

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the window's share of the image is halved (for 10 000 queries in all)."""


@dataclass(frozen=True)
class Square(Attack):
    """Random search over square windows, scores only. Fields: queries in all; share of the image
    that the first windows cover; restarts; rescale the published schedule to the number of queries;
    published_windows."""

    queries: int = 5000
    share: float = 0.8
    restarts: int = 1
    rescale: bool = False
    published_windows: bool = False

    name = "square"
    positional = ("queries",)
    access = "score"
    threats = ("linf", "l2", "l1")
    paper = "Andriushchenko et al. 2020"
    version = 4

    def __post_init__(self) -> None:
        if self.queries < 2 or self.restarts < 1 or not 0 < self.share <= 1:
            raise BadInput("square: needs queries of at least 2, restarts of at least 1 and a share in (0,1]")

    @property
    def iterations(self) -> int:
        return self.queries - 1  # the Judge's confirmation is the last query

    def init(self, rows: Rows, view: ScoreView, threat: Threat) -> State:  # type: ignore[override]
        start = self._stripes(rows) if threat.name == "linf" else self._bumps(rows, square_bumps.ORDER[threat.name])
        start = threat.project(rows.x, start, rows.eps)
        state = {"p": start, "best": start, "loss": torch.full_like(rows.eps, -torch.inf, dtype=torch.float32)}
        if threat.name == "linf":  # the ball and the box are one box, the same in every step
            far = torch.full_like(rows.x, 2.0)
            state["low"], state["high"] = (threat.project(rows.x, way, rows.eps) for way in (-far, far))
        return state

    def step(self, rows: Rows, state: State, view: ScoreView, threat: Threat) -> State:  # type: ignore[override]
        p = state["p"]
        loss = margin(view.scores(p), rows.y, rows.target)
        better = loss > state["loss"]
        best = choose(better, p, state["best"])
        size = self._side(rows)
        keys = streams.child(rows.key, rows.steps + 1)
        if threat.name == "linf":
            ahead = self._move_linf(rows, best, size, keys).clamp_(state["low"], state["high"])
        else:
            inside = square_bumps.into_box if threat.name == "l1" else threat.project
            ahead = inside(rows.x, self._move_bump(rows, best, size, keys, square_bumps.ORDER[threat.name]), rows.eps)
        return state | {"p": ahead, "best": best, "loss": torch.where(better, loss, state["loss"])}

    def _side(self, rows: Rows) -> Tensor:
        """(R,) int64 side of each row's next window, from the share that the schedule allows."""
        return _sides(self, *rows.x.shape[2:]).to(rows.steps.device)[rows.steps.clamp(max=self.queries - 1)]

    def _window(self, rows: Rows, side: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A window per row from (R,2) uniform numbers: its mask (R,1,H,W) of 0 and 1, and every pixel's row and column inside it."""
        height, width = rows.x.shape[2:]
        reach = 0 if self.published_windows else 1
        corner = (drawn * (torch.tensor([height, width], device=drawn.device) + reach - side[:, None])).to(torch.int64)
        top, left = corner.unbind(1)
        i = torch.arange(height, device=side.device)[None] - top[:, None]
        j = torch.arange(width, device=side.device)[None] - left[:, None]
        rows_in, columns_in = (((k >= 0) & (k < side[:, None])).to(drawn.dtype) for k in (i, j))
        return rows_in[:, None, :, None] * columns_in[:, None, None, :], i, j

    def _signs(self, rows: Rows, keys: Tensor, count: int = 1) -> Tensor:
        """(R,C,1,count) of -1 or +1."""
        return (streams.uniform(keys, (rows.x.shape[1], 1, count)) < 0.5).to(rows.x.dtype) * 2 - 1

    def _stripes(self, rows: Rows) -> Tensor:
        signs = self._signs(rows, streams.child(rows.key, 0), rows.x.shape[3])
        return (signs * wide(rows.eps, signs).to(signs.dtype)).expand_as(rows.x).contiguous()

    def _move_linf(self, rows: Rows, best: Tensor, side: Tensor, keys: Tensor) -> Tensor:
        drawn = streams.uniform(keys, (2 + rows.x.shape[1],))
        inside, _, _ = self._window(rows, side, drawn[:, :2])
        signs = torch.where(drawn[:, 2:] < 0.5, 1.0, -1.0)[:, :, None, None]
        return best.lerp(signs * wide(rows.eps, signs).to(signs.dtype), inside)

    def _bumps(self, rows: Rows, order: int) -> Tensor:
        signs = self._signs(rows, streams.child(rows.key, 0), square_bumps.TILES**2)[:, :, 0]
        turned = streams.uniform(streams.child(rows.key, -2), (square_bumps.TILES**2,)) < 0.5
        start = square_bumps.start(rows.x.shape, signs, turned)
        return square_bumps.to_norm(start, rows.eps, order) if order == 2 else start

    def _move_bump(self, rows: Rows, best: Tensor, side: Tensor, keys: Tensor, order: int) -> Tensor:
        most = min(rows.x.shape[2:])
        side = square_bumps.odd(side, most)
        drawn = streams.uniform(keys, (5 + best.shape[1],))
        first, i, j = self._window(rows, side, drawn[:, :2])
        second, _, _ = self._window(rows, side, drawn[:, 2:4])
        signs = torch.where(drawn[:, 5:] < 0.5, 1.0, -1.0)
        bump = square_bumps.window_bumps(i, j, side, signs, drawn[:, 4] < 0.5, most, order)
        return square_bumps.move(best, (first, second), bump, rows.eps, order)


@cache
def _sides(attack: Square, height: int, width: int) -> Tensor:
    """(queries,) int64 side of the window of every step."""
    at = torch.arange(attack.queries)
    at = at * 10000 // attack.queries if attack.rescale else at
    halvings = torch.bucketize(at, torch.tensor(_HALVINGS))
    side = torch.sqrt(attack.share * 0.5 ** halvings.double() * height * width).round().to(torch.int64)
    return side.clamp(1, min(height, width) - (1 if attack.published_windows else 0))
