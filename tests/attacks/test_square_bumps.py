"""Square's moves for l2 and l1."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustkit.attacks import square_bumps
from robustkit.attacks.square_windows import Sides, Windows
from robustkit.threats import load_threat
from robustkit.threats.norms import inner

EPS = torch.full((3,), 4.0, dtype=torch.float64)
SMALL = EPS / 10
"""What no window of GREY images cuts off."""
GREY = {channels: torch.full((3, channels, 14, 14), 0.5) for channels in (1, 3)}
IMAGES = {channels: torch.rand(3, channels, 14, 14, generator=torch.Generator().manual_seed(1)).round() for channels in (1, 3)}

SIDES = torch.tensor([5, 5, 3])


def windows() -> tuple[Windows, Windows]:
    """Two windows a row that overlap, of other sides in other rows."""
    first, second = (torch.tensor([corner] * 3) for corner in ([1, 2], [3, 4]))
    sides, which = Sides.of((7, 5, 3), torch.device("cpu")), torch.tensor([1, 1, 2])
    return Windows(sides, which, first), Windows(sides, which, second)


def masks() -> tuple[Tensor, Tensor]:
    """The same as masks (3,1,14,14)."""
    first, second = torch.zeros(2, 3, 1, 14, 14)
    for row, side in enumerate(SIDES.tolist()):
        first[row, :, 1 : 1 + side, 2 : 2 + side] = 1
        second[row, :, 3 : 3 + side, 4 : 4 + side] = 1
    return first, second


def moved(x: Tensor, eps: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """A perturbation with all of its budget spent, inside the box, before and after one move."""
    channels, best = x.shape[1], torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    best = square_bumps.to_norm(
        best.clamp(-x, 1 - x), inner(eps, best[0].numel(), order), order
    )  # shorter than it was, so still in the box
    heads = torch.tensor([[False] + channels * [True], [True] + channels * [True], [False] + channels * [True]])
    between = square_bumps.exchange(windows(), heads, best.shape, order)
    return best, square_bumps.move(x, best, between, square_bumps.spare(best, eps, order), order)


def uncut(best: Tensor, order: int) -> Tensor:
    """What a move makes of `best` before it is cut off at the box, with masks over whole images, bump by bump."""
    first, second = masks()
    bump = torch.zeros_like(best)
    for row, side in enumerate(SIDES.tolist()):
        one = square_bumps._bump(side, order)
        bump[row, :, 1 : 1 + side, 2 : 2 + side] = one.t() if row == 1 else one

    def norm(values: Tensor) -> Tensor:
        return torch.linalg.vector_norm(values.flatten(2), order, dim=2)[:, :, None, None]

    both = norm(best * torch.maximum(first, second))
    new = (bump + best * first / (norm(best * first) + 1e-12)) * first
    grown = new * both / norm(new) * (best.shape[1] if order == 1 else 1)
    return grown + best * (1 - first) * (1 - second)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("order", [1, 2])
def test_a_move_is_the_one_of_whole_images(channels: int, order: int) -> None:
    x = IMAGES[channels]
    best, after = moved(x, EPS, order)
    expected = uncut(best, order)
    boxed = expected.clamp(-x, 1 - x)
    assert bool((boxed != expected).any()), "the box cuts something off"
    cut = order == 2 or channels == 1
    torch.testing.assert_close(after, boxed if cut else expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("order", "power"), [(2, 2), (1, 4)])
def test_bumps_have_norm_one_and_fall_off_as_published(order: int, power: int) -> None:
    """A ring's own height is 1/k^2 in l2 and 1/k^4 in l1; the halves have opposite signs and equal norms."""
    for side in (1, 3, 4, 5, 11, 28):
        bump = square_bumps._bump(side, order)
        assert float(torch.linalg.vector_norm(bump.flatten(), order)) == pytest.approx(1, abs=1e-5)
    bump = square_bumps._bump(11, order).double()
    line = bump[2, 1:6].flip(0)  # from the centre of the upper half (5 rows) outwards
    assert float((line[0] - line[1]) / (line[1] - line[2])) == pytest.approx(2.0**power, rel=1e-3)
    assert bool((bump[:5] > 0).all()) and bool((bump[5:] < 0).all())
    halves = [float(torch.linalg.vector_norm(half.flatten(), order)) for half in (bump[:5], bump[5:])]
    assert halves[0] == pytest.approx(halves[1], rel=1e-6)


@pytest.mark.parametrize("order", [1, 2])
def test_the_start_is_25_bumps_of_norm_one(order: int) -> None:
    signs = torch.ones(2, 1, 25)
    turned = torch.zeros(2, 25, dtype=torch.bool)
    turned[1] = True
    start = square_bumps.start(torch.Size((2, 1, 28, 28)), signs, turned, order)
    assert float(start[0].abs().pow(order).sum()) == pytest.approx(25, rel=1e-5)
    tile = start[:, 0, 1:6, 1:6]
    torch.testing.assert_close(tile[0], square_bumps._bump(5, order))
    torch.testing.assert_close(tile[1], tile[0].t())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("order", [1, 2])
def test_a_move_carries_the_norm_of_one_window_to_the_other(channels: int, order: int) -> None:
    best, after = moved(GREY[channels], SMALL, order)
    first, second = masks()
    outside = (1 - first) * (1 - second)
    assert not bool((after * second * (1 - first)).any()), "the second window is emptied"
    assert torch.equal(after * outside, best * outside)
    norm = torch.linalg.vector_norm(after.flatten(1), order, dim=1)
    if order == 2 or channels == 1:
        torch.testing.assert_close(norm.double(), inner(SMALL, after[0].numel(), order), atol=1e-7, rtol=1e-6)
        assert bool(load_threat(f"l{order}:0.4").contains(GREY[channels], after).all())
    else:
        inside = (best * torch.maximum(first, second)).abs().sum((2, 3))
        torch.testing.assert_close((after * first).abs().sum((2, 3)), 3 * inside)  # each channel as if it were the only one
        assert bool((norm > SMALL).all())


@pytest.mark.parametrize("order", [1, 2])
def test_cutting_off_at_the_box_is_the_projection_of_a_move(order: int) -> None:
    best, after = moved(IMAGES[1], EPS, order)
    projected = load_threat(f"l{order}:4").project(IMAGES[1], uncut(best, order), EPS)
    torch.testing.assert_close(after, projected, atol=2e-5, rtol=1e-4)
    assert bool(load_threat(f"l{order}:4").contains(IMAGES[1], after).all())


@pytest.mark.parametrize("order", [1, 2])
def test_a_thousand_moves_stay_within_the_budget_and_use_it(order: int) -> None:
    """Rounding does not add up, and what the box takes is given out again."""
    threat, eps, sides = load_threat(f"l{order}:1"), EPS / 4, Sides.of((7, 5, 3), torch.device("cpu"))
    p, draws = threat.project(IMAGES[1], moved(IMAGES[1], EPS, order)[1], eps), torch.Generator().manual_seed(2)
    for _ in range(1000):
        places = [torch.randint(0, 10, (3, 2), generator=draws) for _ in range(2)]
        heads = torch.rand(3, 2, generator=draws) < 0.5
        held = tuple(Windows(sides, torch.tensor([1, 1, 2]), corner) for corner in places)
        between = square_bumps.exchange(held, heads, p.shape, order)
        p = square_bumps.move(IMAGES[1], p, between, square_bumps.spare(p, eps, order), order)
        assert bool(threat.contains(IMAGES[1], p).all())
    assert bool((torch.linalg.vector_norm(p.flatten(1), order, dim=1) > 0.9 * eps).all())


@pytest.mark.parametrize("order", [1, 2])
def test_what_is_spare_is_what_lacks_of_the_budget(order: int) -> None:
    p = torch.zeros(2, 3, 14, 14)
    p[1, 0, 0, 0] = 5.0
    eps = torch.tensor([4.0, 4.0], dtype=torch.float64)
    spare = square_bumps.spare(p, eps, order)
    assert float(spare[0]) == pytest.approx(4.0**order / 3, rel=1e-4)
    assert float(spare[0]) < 4.0**order / 3, "rounding has its room"
    assert float(spare[1]) == pytest.approx((4.0**order - 5.0**order) / 3, rel=1e-4)
