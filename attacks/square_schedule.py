"""What the Square attack proposes in its next steps: sizes of windows by schedule, places and signs by chance.

None of it depends on the model's answers, so it is drawn for several steps at once, which costs
little more than drawing for one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from robustkit import streams
from robustkit.attacks import square_bumps
from robustkit.attacks.square_windows import Sides, Windows
from robustkit.methods import Rows
from robustkit.numerics import constant

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the window's share of the image is halved (for 10 000 queries in all)."""
_AT_ONCE = 16
"""Most steps drawn at once."""
_PIXELS = 1 << 19
"""Most pixels of windows drawn at once."""


@dataclass(frozen=True)
class Schedule:
    """Sizes of windows: their share of the image at first, queries in all, whether the published halvings are rescaled to
    them, whether windows stop one short of the last row and column, and whether sides are odd and at least 3."""

    share: float
    queries: int
    rescale: bool
    short: bool
    odd: bool

    @property
    def last(self) -> int:
        """The last step."""
        return self.queries - 1

    def halvings(self, step: int) -> int:
        """How often the share has been halved before a step."""
        return bisect_left(_HALVINGS, step * 10000 // self.queries if self.rescale else step)

    def steps_alike(self, step: int) -> int:
        """How many steps from this one on have windows of its size, at most _AT_ONCE."""
        now = self.halvings(step)
        return bisect_right(range(1, _AT_ONCE), now, key=lambda ahead: self.halvings(min(step + ahead, self.last))) + 1


Make = Callable[[tuple[Windows, ...], Tensor, torch.Size], tuple[Tensor, ...]]
"""(windows of R rows, all of one side a row; (R,F) bool fair coins; (R,C,H,W)) -> what a move needs of them, (R,...) each."""


@dataclass(frozen=True)
class _Drawn:
    """The proposals of the B steps from step `least` on (of the row that has made the fewest)."""

    least: int
    steps: int
    parts: tuple[Tensor, ...]
    """(B,R,...) each."""


_DRAWN: MutableMapping[Tensor, _Drawn] = WeakIdKeyDictionary()
"""By the rows' counter of steps: what was drawn for them last."""


def proposal(schedule: Schedule, rows: Rows, least: int, windows: int, coins: int, make: Make) -> tuple[Tensor, ...]:
    """What `make` makes of the next step's windows, so many a row, and coins.

    `least` is the number of steps that every row has made.
    """
    drawn = _DRAWN.get(rows.steps)
    if drawn is None or not 0 <= least - drawn.least < drawn.steps:
        drawn = _DRAWN[rows.steps] = _draw(schedule, rows, least, windows, coins, make)
    return tuple(part[least - drawn.least] for part in drawn.parts)


def _draw(schedule: Schedule, rows: Rows, least: int, windows: int, coins: int, make: Make) -> _Drawn:
    (count, channels, height, width), device = rows.x.shape, rows.steps.device
    now = min(least, schedule.last)
    past = schedule.halvings(now)
    sides = Sides.of(_lengths(schedule, height, width)[past:], device)
    steps = min(schedule.steps_alike(now), max(1, _PIXELS // (count * sides.lengths[0] ** 2)))
    numbers = 2 * windows + coins
    uniform = streams.uniform(streams.further(rows.key, rows.steps * numbers), (steps, numbers)).transpose(0, 1).reshape(-1, numbers)
    ahead = (rows.steps + torch.arange(steps, device=device)[:, None]).flatten()
    which = _every_halvings(schedule, device)[ahead.clamp(max=schedule.last)] - past
    more = 0 if schedule.short else 1
    room = constant((height + more, width + more), torch.int64, device)
    places = uniform[:, : 2 * windows].view(-1, windows, 2)
    corners = (places * (room - sides.tensor[which][:, None, None])).to(torch.int64)
    held = tuple(Windows(sides, which, corners[:, i]) for i in range(windows))
    parts = make(held, uniform[:, 2 * windows :] < 0.5, torch.Size((steps * count, channels, height, width)))
    return _Drawn(least, steps, tuple(part.view(steps, count, *part.shape[1:]) for part in parts))


@cache
def _every_halvings(schedule: Schedule, device: torch.device) -> Tensor:
    """(queries,) int64 halvings before every step."""
    return torch.tensor([schedule.halvings(step) for step in range(schedule.queries)], device=device)


@cache
def _lengths(schedule: Schedule, height: int, width: int) -> tuple[int, ...]:
    """Sides of windows after every number of halvings."""
    most = min(height, width)
    shares = schedule.share * 0.5 ** torch.arange(len(_HALVINGS) + 1).double()
    plain = torch.sqrt(shares * height * width).round().to(torch.int64).clamp(1, most - (1 if schedule.short else 0))
    return tuple(square_bumps.odd(plain, most).tolist() if schedule.odd else plain.tolist())
