"""Square attack, Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049: random search over square windows.

Scores only. Deliberate deviations from the published code: every sample draws its own window and
signs (there one draw serves the whole batch), and windows reach the last row and column (there
they stop one short); `published_windows=true` brings the latter back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from robustkit import streams
from robustkit.attacks import square_bumps
from robustkit.attacks.losses import margin
from robustkit.attacks.square_schedule import Schedule, proposal
from robustkit.attacks.square_windows import Windows
from robustkit.errors import BadInput
from robustkit.methods import Attack, Rows, State
from robustkit.numerics import overwrite, renew, wide
from robustkit.threats import Threat
from robustkit.threats.norms import limits
from robustkit.views import ScoreView

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
    version = 7

    def __post_init__(self) -> None:
        if self.queries < 2 or self.restarts < 1 or not 0 < self.share <= 1:
            raise BadInput("square: needs queries of at least 2, restarts of at least 1 and a share in (0,1]")

    @property
    def iterations(self) -> int:
        return self.queries - 1  # the Judge's confirmation is the last query

    def init(self, rows: Rows, view: ScoreView, threat: Threat) -> State:  # type: ignore[override]
        order = square_bumps.ORDER.get(threat.name)
        start = threat.project(rows.x, self._stripes(rows) if order is None else self._bumps(rows, order), rows.eps)
        state = {"p": start, "best": start, "loss": torch.full_like(rows.eps, -torch.inf, dtype=torch.float32)}
        return state if order is None else state | {"spare": square_bumps.spare(start, rows.eps, order)}

    def step(self, rows: Rows, state: State, view: ScoreView, threat: Threat) -> State:  # type: ignore[override]
        p = state["p"]
        loss = margin(self.ask(p, rows, view, threat), rows.y, rows.target)
        better = loss > state["loss"]
        state = state | {"best": overwrite(better, p, state["best"]), "loss": torch.where(better, loss, state["loss"])}
        if threat.name == "linf":
            return state | {"p": self._move_window(rows, state["best"], view.least)}
        order = square_bumps.ORDER[threat.name]
        spare = renew(better, partial(square_bumps.spare, order=order), (p, rows.eps), state["spare"])
        ahead = self._move_bump(rows, state["best"], spare, order, view.least)
        if square_bumps.oversteps(p.shape[1], order):
            ahead = threat.project(rows.x, ahead, rows.eps)
        return state | {"p": ahead, "spare": spare}

    def ask(self, p: Tensor, rows: Rows, view: ScoreView, threat: Threat) -> Tensor:
        """(R,K) scores at p that the search goes by."""
        return view.scores(p)

    def _move_window(self, rows: Rows, best: Tensor, least: int) -> Tensor:
        """Another window of each row set to its limits, the lower or the upper ones: pushed beyond any, and cut off."""
        down, across = proposal(self._schedule(odd=False), rows, least, 1, best.shape[1], _pushes)
        return torch.addcmul(best, down, across).clamp_(*limits(rows.x, rows.eps))

    def _move_bump(self, rows: Rows, best: Tensor, spare: Tensor, order: int, least: int) -> Tensor:
        """Another window of each row takes over the norm of a second one."""
        between = proposal(self._schedule(odd=True), rows, least, 2, 1 + best.shape[1], partial(square_bumps.exchange, order=order))
        return square_bumps.move(rows.x, best, between, spare, order)

    def _schedule(self, odd: bool) -> Schedule:
        return Schedule(self.share, self.queries, self.rescale, self.published_windows, odd)

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


def _pushes(windows: tuple[Windows, ...], heads: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """(R,C,H,1) and (R,1,1,W) whose product takes the windows' pixels out of the box, up for heads, and leaves the others."""
    down, across = windows[0].inside(shape)
    push = torch.where(heads, _BEYOND, -_BEYOND)
    return (push[:, :, None] * down[:, None])[..., None], across[:, None, None]
