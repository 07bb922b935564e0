"""What the Square attack proposes: windows of the published sizes anywhere in the image, the same however many are drawn at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustkit import streams
from robustkit.attacks import square_schedule
from robustkit.attacks.square_schedule import Schedule, proposal
from robustkit.attacks.square_windows import Windows
from robustkit.methods import Rows

HALVED = (0, 1, 10, 11, 50, 51, 200, 201, 500, 501, 999)
"""Steps around the published halvings."""


def some_rows(count: int, size: int = 12, steps: int = 0) -> Rows:
    index, zero = torch.arange(count), torch.zeros(count, dtype=torch.int64)
    x, eps, key = torch.zeros(count, 1, size, size), torch.ones(count, dtype=torch.float64), streams.row_keys(0, "windows", index)
    return Rows(index, zero, x, zero, zero - 1, eps, key, zero + steps, torch.ones(len(zero)))


def schedule(queries: int = 1000, rescale: bool = False, short: bool = False, odd: bool = False) -> Schedule:
    return Schedule(0.8, queries, rescale, short, odd)


def pixels(windows: tuple[Windows, ...], heads: Tensor, shape: torch.Size) -> tuple[Tensor, ...]:
    """(R,C,H,W) images of the windows, made from places, and the coins; both ways to say what a window covers agree."""
    images = [torch.zeros(shape).flatten(2).scatter_(2, each.places(shape), 1.0).view(shape) for each in windows]
    for each, image in zip(windows, images):
        down, across = each.inside(shape)
        assert torch.equal(down[:, None, :, None] * across[:, None, None], image)
    return *images, heads


@pytest.mark.parametrize("short", [False, True])
def test_windows_reach_the_last_row_and_column(short: bool) -> None:
    image, _ = proposal(schedule(short=short), some_rows(400, 12, 999), 999, 1, 1, pixels)
    inside = image > 0
    assert set(inside.flatten(1).sum(1).tolist()) == {9}
    assert bool(inside[:, 0, 0, :].any())
    assert bool(inside[:, 0, :, 0].any())
    assert bool(inside[:, 0, -1, :].any()) is not short
    assert bool(inside[:, 0, :, -1].any()) is not short


@pytest.mark.parametrize("queries", [1000, 10_000])
@pytest.mark.parametrize("odd", [False, True])
def test_sizes_follow_the_published_halvings(queries: int, odd: bool) -> None:
    rule = schedule(queries, rescale=True, odd=odd)
    for step in HALVED:
        step = step * queries // 1000
        image, _ = proposal(rule, some_rows(4, 28, step), step, 1, 1, pixels)
        halved = sum(step * 10_000 // queries > at for at in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))
        side = max(1, round((0.8 / 2**halved) ** 0.5 * 28))
        side = max(3, side + (side % 2 == 0)) if odd else side
        assert set(image.flatten(1).sum(1).tolist()) == {min(side, 27 if odd else 28) ** 2}, step


@pytest.mark.parametrize("odd", [False, True])
def test_the_same_however_many_steps_are_drawn_at_once(odd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step at a time, several, or after other rows have joined whose steps are behind."""
    taken: dict[int, list[tuple[Tensor, ...]]] = {}
    for at_once in (1, 5, 16):
        monkeypatch.setattr(square_schedule, "_AT_ONCE", at_once)
        rows = some_rows(6)
        taken[at_once] = []
        for step in range(60):
            taken[at_once].append(proposal(schedule(odd=odd), rows, step, 2, 2, pixels))
            rows.steps += 1
    for few, many in zip(taken[1] + taken[1], taken[5] + taken[16]):
        assert all(torch.equal(a, b) for a, b in zip(few, many))
    fresh = some_rows(6)
    late = torch.tensor([0, 20, 0, 43, 7, 0])
    fresh.steps += late
    for step in range(12):
        found = proposal(schedule(odd=odd), fresh, step, 2, 2, pixels)
        for row, ahead in enumerate(late.tolist()):
            assert all(torch.equal(a[row], b[row]) for a, b in zip(found, taken[1][step + ahead])), (step, row)
        fresh.steps += 1


def test_few_pixels_are_drawn_at_once() -> None:
    """Large windows of many rows are drawn step by step."""
    made: list[int] = []

    def make(windows: tuple[Windows, ...], heads: Tensor, shape: torch.Size) -> tuple[Tensor, ...]:
        made.append(shape[0])
        return (heads,)

    for count, step in ((2000, 0), (2000, 600), (4, 600)):
        proposal(schedule(), some_rows(count, 28, step), step, 1, 1, make)
    assert made == [2000, 2000 * 7, 4 * 16]
