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
from robustkit.attacks.square_windows import Windows
from robustkit.errors import BadInput
from robustkit.methods import Attack, Rows, State
from robustkit.numerics import choose, wide
from robustkit.threats import Threat
from robustkit.threats.norms import limits
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
    version = 5

    def __post_init__(self) -> None:
        if self.queries < 2 or self.restarts < 1 or not 0 < self.share <= 1:
            raise BadInput("square: needs queries of at least 2, restarts of at least 1 and a share in (0,1]")

    @property
    def iterations(self) -> int:
        return self.queries - 1  # the Judge's confirmation is the last query

    def init(self, rows: Rows, view: ScoreView, threat: Threat) -> State:  # type: ignore[override]
        flat = threat.name == "linf"
        start = self._stripes(rows) if flat else self._bumps(rows, square_bumps.ORDER[threat.name])
        start = threat.project(rows.x, start, rows.eps)
        state = {"p": start, "best": start.clone(), "loss": torch.full_like(rows.eps, -torch.inf, dtype=torch.float32)}
        if not flat:
            return state
        corner = torch.zeros(len(rows), 2, dtype=torch.int64, device=rows.x.device)
        both = torch.cat([limit.flatten(2) for limit in limits(rows.x, rows.eps)], 2)
        return state | {"limits": both, "corner": corner, "side": torch.ones_like(rows.steps)}

    def step(self, rows: Rows, state: State, view: ScoreView, threat: Threat) -> State:  # type: ignore[override]
        p = state["p"]
        loss = margin(view.scores(p), rows.y, rows.target)
        better = loss > state["loss"]
        new = state | {"loss": torch.where(better, loss, state["loss"])}
        keys = streams.child(rows.key, rows.steps + 1)
        if threat.name == "linf":
            return new | self._move_window(rows, state, better, keys, view.least)
        best = choose(better, p, state["best"])
        inside = square_bumps.into_box if threat.name == "l1" and best.shape[1] == 1 else threat.project
        ahead = inside(rows.x, self._move_bump(rows, best, keys, square_bumps.ORDER[threat.name], view.least), rows.eps)
        return new | {"p": ahead, "best": best}

    def _move_window(self, rows: Rows, state: State, better: Tensor, keys: Tensor, least: int) -> State:
        """Keep or take back the last window of each row, then set another one to its limits, in place: the rest is not touched."""
        shape, side = rows.x.shape, self._side(rows)
        p, best = state["p"].flatten(2), state["best"].flatten(2)
        last = Windows(state["corner"], state["side"], self._widest(rows, least - 1)).places(shape)
        kept = torch.where(better[:, None, None], p.gather(2, last), best.gather(2, last))
        p.scatter_(2, last, kept)
        best.scatter_(2, last, kept)
        drawn = streams.uniform(keys, (2 + shape[1],))
        corner = self._corner(rows, side, drawn[:, :2])
        window = Windows(corner, side, self._widest(rows, least)).places(shape)
        upper = (drawn[:, 2:, None] < 0.5) * (shape[2] * shape[3])
        p.scatter_(2, window, state["limits"].gather(2, window + upper))
        return {"corner": corner, "side": side}

    def _side(self, rows: Rows) -> Tensor:
        """(R,) int64 side of each row's next window, from the share that the schedule allows."""
        return _sides(self, *rows.x.shape[2:]).to(rows.steps.device)[rows.steps.clamp(max=self.queries - 1)]

    def _widest(self, rows: Rows, least: int) -> int:
        """The widest window of rows that have all made at least so many steps."""
        return int(_sides(self, *rows.x.shape[2:])[min(max(least, 0), self.queries - 1)])

    def _corner(self, rows: Rows, side: Tensor, drawn: Tensor) -> Tensor:
        """(R,2) row and column at which windows begin, from uniform numbers (R,2)."""
        room = torch.tensor(rows.x.shape[2:], device=drawn.device) + (0 if self.published_windows else 1)
        return (drawn * (room - side[:, None])).to(torch.int64)

    def _signs(self, rows: Rows, keys: Tensor, count: int = 1) -> Tensor:
        """(R,C,1,count) of -1 or +1."""
        return (streams.uniform(keys, (rows.x.shape[1], 1, count)) < 0.5).to(rows.x.dtype) * 2 - 1

    def _stripes(self, rows: Rows) -> Tensor:
        signs = self._signs(rows, streams.child(rows.key, 0), rows.x.shape[3])
        return (signs * wide(rows.eps, signs).to(signs.dtype)).expand_as(rows.x).contiguous()

    def _bumps(self, rows: Rows, order: int) -> Tensor:
        signs = self._signs(rows, streams.child(rows.key, 0), square_bumps.TILES**2)[:, :, 0]
        turned = streams.uniform(streams.child(rows.key, -2), (square_bumps.TILES**2,)) < 0.5
        start = square_bumps.start(rows.x.shape, signs, turned, order)
        return square_bumps.to_norm(start, rows.eps, order) if order == 2 else start

    def _move_bump(self, rows: Rows, best: Tensor, keys: Tensor, order: int, least: int) -> Tensor:
        most = min(rows.x.shape[2:])
        widest = int(square_bumps.odd(torch.tensor(self._widest(rows, least)), most))
        side = square_bumps.odd(self._side(rows), most)
        drawn = streams.uniform(keys, (5 + best.shape[1],))
        first, second = (Windows(self._corner(rows, side, drawn[:, i : i + 2]), side, widest) for i in (0, 2))
        bump = square_bumps.window_bumps(first, torch.where(drawn[:, 5:] < 0.5, 1.0, -1.0), drawn[:, 4] < 0.5, most, order)
        return square_bumps.move(best, first, second, bump, rows.eps, order)


@cache
def _sides(attack: Square, height: int, width: int) -> Tensor:
    """(queries,) int64 side of the window of every step."""
    at = torch.arange(attack.queries)
    at = at * 10000 // attack.queries if attack.rescale else at
    halvings = torch.bucketize(at, torch.tensor(_HALVINGS))
    side = torch.sqrt(attack.share * 0.5 ** halvings.double() * height * width).round().to(torch.int64)
    return side.clamp(1, min(height, width) - (1 if attack.published_windows else 0))
