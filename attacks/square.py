"""Square attack, Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049: random search over square windows.

Scores only. Deliberate deviations from the published code: every sample draws its own window and
signs (there one draw serves the whole batch), and windows reach the last row and column (there
they stop one short); `published_windows=true` brings the latter back.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from robustkit import streams
from robustkit.attacks import square_bumps
from robustkit.attacks.losses import margin
from robustkit.attacks.square_windows import Sides, Windows
from robustkit.errors import BadInput
from robustkit.methods import Attack, Rows, State
from robustkit.numerics import constant, overwrite, wide
from robustkit.threats import Threat
from robustkit.threats.norms import limits
from robustkit.views import ScoreView

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the window's share of the image is halved (for 10 000 queries in all)."""
_BEYOND = 2.0
"""A change that takes any value out of the box."""


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
    version = 6

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
        return {"p": start, "best": start, "loss": torch.full_like(rows.eps, -torch.inf, dtype=torch.float32)}

    def step(self, rows: Rows, state: State, view: ScoreView, threat: Threat) -> State:  # type: ignore[override]
        p = state["p"]
        loss = margin(view.scores(p), rows.y, rows.target)
        better = loss > state["loss"]
        best = overwrite(better, p, state["best"])
        if threat.name == "linf":
            ahead = self._move_window(rows, best, view.least)
        else:
            inside = square_bumps.into_box if threat.name == "l1" and best.shape[1] == 1 else threat.project
            ahead = inside(rows.x, self._move_bump(rows, best, square_bumps.ORDER[threat.name], view.least), rows.eps)
        return state | {"p": ahead, "best": best, "loss": torch.where(better, loss, state["loss"])}

    def _move_window(self, rows: Rows, best: Tensor, least: int) -> Tensor:
        """Another window of each row set to its limits, the lower or the upper ones: pushed beyond any, and cut off."""
        shape, drawn, (sides, which) = best.shape, self._drawn(rows, 2 + best.shape[1]), self._sides(rows, least)
        down, across = Windows(sides, which, self._corner(shape, sides.tensor[which], drawn[:, :2])).inside(shape)
        push = torch.where(drawn[:, 2:] < 0.5, _BEYOND, -_BEYOND)
        pushed = torch.addcmul(best, (push[:, :, None] * down[:, None])[..., None], across[:, None, None])
        return pushed.clamp_(*limits(rows.x, rows.eps))

    def _move_bump(self, rows: Rows, best: Tensor, order: int, least: int) -> Tensor:
        """Another window of each row takes over the norm of a second one."""
        shape, drawn = best.shape, self._drawn(rows, 5 + best.shape[1])
        sides, which = self._sides(rows, least, odd=True)
        first, second = (Windows(sides, which, self._corner(shape, sides.tensor[which], drawn[:, i : i + 2])) for i in (0, 2))
        bump = square_bumps.window_bumps(first, torch.where(drawn[:, 5:] < 0.5, 1.0, -1.0), drawn[:, 4] < 0.5, order)
        return square_bumps.move(best, first, second, bump, rows.eps, order)

    def _drawn(self, rows: Rows, count: int) -> Tensor:
        """(R,count) uniform numbers of this step."""
        return streams.uniform(streams.further(rows.key, rows.steps * count), (count,))

    def _sides(self, rows: Rows, least: int, odd: bool = False) -> tuple[Sides, Tensor]:
        """The sides that windows may still have after `least` steps, and the number (R,) of each row's next one."""
        last, past = self.queries - 1, _halvings(self, min(least, self.queries - 1))
        lengths = _lengths(self, *rows.x.shape[2:], odd)[past:]
        return Sides.of(lengths, rows.steps.device), _every_halvings(self, rows.steps.device)[rows.steps.clamp(max=last)] - past

    def _corner(self, shape: torch.Size, side: Tensor, drawn: Tensor) -> Tensor:
        """(R,2) row and column at which windows begin, from uniform numbers (R,2)."""
        more = 0 if self.published_windows else 1
        room = constant((shape[2] + more, shape[3] + more), torch.int64, drawn.device)
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


def _halvings(attack: Square, step: int) -> int:
    """How often the window's share has been halved before a step."""
    return bisect_left(_HALVINGS, step * 10000 // attack.queries if attack.rescale else step)


@cache
def _every_halvings(attack: Square, device: torch.device) -> Tensor:
    """(queries,) int64 the same before every step."""
    return torch.tensor([_halvings(attack, step) for step in range(attack.queries)], device=device)


@cache
def _lengths(attack: Square, height: int, width: int, odd: bool) -> tuple[int, ...]:
    """Sides of windows after every number of halvings; `odd` as the moves of l2 and l1 need them, at least 3."""
    most = min(height, width)
    shares = attack.share * 0.5 ** torch.arange(len(_HALVINGS) + 1).double()
    plain = torch.sqrt(shares * height * width).round().to(torch.int64).clamp(1, most - (1 if attack.published_windows else 0))
    return tuple(square_bumps.odd(plain, most).tolist() if odd else plain.tolist())
