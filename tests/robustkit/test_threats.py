"""Threats: budgets hold exactly after every projection, in arithmetic that cannot round."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustkit import streams
from robustkit.core.comparisons import float_below
from robustkit.errors import BadInput
from robustkit.threats import L0, L1, L2, THREATS, Linf, Threat, load_threat
from robustkit.threats.norms import NormThreat

FAMILIES: dict[str, type[NormThreat]] = {"linf": Linf, "l2": L2, "l1": L1, "l0": L0}

BUDGETS = st.one_of(
    st.builds(Fraction, st.integers(0, 255), st.just(255)),
    st.fractions(0, 2, max_denominator=1000),
    st.sampled_from([Fraction(t) for t in ("0", "1/10", "1e-7", "1e-5", "1", "30", "1/3", "2", "3", "2.5")]),
)
_PIXEL = st.one_of(
    st.floats(0, 1, width=32),
    st.sampled_from([0.0, 1.0, 0.5, 2.0**-149, 2.0**-126, 1 - 2.0**-24, 0.5 - 2.0**-25, 1 / 255]),
    st.integers(0, 255).map(lambda k: k / 255),
)
_CHANGE = st.one_of(st.floats(-2, 2, width=32), st.sampled_from([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30, 0.1, -0.1, 8 / 255, 2.0**-25]))


@st.composite
def cases(draw: st.DrawFn) -> tuple[NormThreat, Tensor, Tensor, Tensor]:
    """(threat, x, p, eps): two rows of six values each, with a budget for all of them."""
    threat = FAMILIES[draw(st.sampled_from(sorted(FAMILIES)))](draw(BUDGETS))
    x = torch.tensor(draw(st.lists(_PIXEL, min_size=12, max_size=12)), dtype=torch.float32).view(2, 1, 2, 3)
    p = torch.tensor(draw(st.lists(_CHANGE, min_size=12, max_size=12)), dtype=torch.float32).view(2, 1, 2, 3)
    return threat, x, p, budget(threat, 2)


def budget(threat: Threat, rows: int) -> Tensor:
    return torch.full((rows,), float_below(threat.eps), dtype=torch.float64)


def exactly_inside(threat: Threat, x: Tensor, p: Tensor) -> bool:
    """Whether the image made of p lies in the box and the budget, decided with fractions."""
    image = threat.apply(x, p)
    assert image.dtype == torch.float32
    for one, other in zip(x.flatten(1).tolist(), image.flatten(1).tolist()):
        if not all(math.isfinite(v) and 0 <= v <= 1 for v in other):
            return False
        change = [abs(Fraction(a) - Fraction(b)) for a, b in zip(one, other)]
        if threat.name == "linf" and max(change) > threat.eps:
            return False
        if threat.name == "l2" and sum(c * c for c in change) > threat.eps**2:
            return False
        if threat.name == "l1" and sum(change) > threat.eps:
            return False
        if threat.name == "l0" and sum(c != 0 for c in change) > threat.eps:  # one channel: values are pixels
            return False
    return True


@settings(max_examples=300, deadline=None)
@given(cases())
def test_projection_lands_exactly_inside_and_is_idempotent(case: tuple[NormThreat, Tensor, Tensor, Tensor]) -> None:
    threat, x, p, eps = case
    inside = threat.project(x, p, eps)
    assert exactly_inside(threat, x, inside)
    assert bool(threat.contains(x, inside).all())
    assert torch.equal(threat.project(x, inside, eps), inside)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_projection_keeps_what_is_well_inside(case: tuple[NormThreat, Tensor, Tensor, Tensor]) -> None:
    threat, x, p, eps = case
    p = threat.apply(x, torch.where(p.abs() < 1e-15, 0.0, p)) - x
    well = threat.size(x, p) <= 0.999 * eps - 1e-6
    assert torch.equal(threat.project(x, p, eps)[well], p[well])


@pytest.mark.parametrize("family", ["linf", "l2", "l1"])
@pytest.mark.parametrize("eps", ["8/255", "0.1", "0.3"])
def test_projection_gives_nothing_away(family: str, eps: str) -> None:
    threat = FAMILIES[family](eps)
    x = torch.full((3, 1, 8, 8), 0.5)
    far = torch.tensor([1.0, -1.0, 0.5]).view(3, 1, 1, 1).expand_as(x)
    size = threat.size(x, threat.project(x, far, budget(threat, 3)))
    assert bool((size <= float_below(threat.eps)).all())
    assert bool((size >= float(threat.eps) * (1 - 1e-5) - 5e-6).all())  # at most an ulp a value


@settings(max_examples=150, deadline=None)
@given(cases(), st.booleans(), st.integers(0, 2**32))
def test_random_starts_are_exactly_inside(case: tuple[NormThreat, Tensor, Tensor, Tensor], boundary: bool, seed: int) -> None:
    threat, x, _, eps = case
    keys = streams.row_keys(seed, "start", torch.arange(2))
    assert exactly_inside(threat, x, threat.random(x, eps, keys, boundary=boundary))


def test_sparse_changes_keep_the_largest_pixels() -> None:
    threat = L0(2)
    x = torch.full((1, 3, 2, 2), 0.5)
    p = torch.zeros(1, 3, 2, 2)
    p[0, :, 0, 0], p[0, 0, 0, 1], p[0, :, 1, 1] = 0.2, 0.3, -0.25
    kept = threat.project(x, p, budget(threat, 1))
    assert float(threat.size(x, kept)) == 2
    p[0, 0, 0, 1] = 0
    assert torch.equal(kept, p)
    assert float(L0(1).size(x, threat.random(x, budget(threat, 1), streams.row_keys(0, "", torch.arange(1))))) == 2


@pytest.mark.parametrize("family", ["linf", "l2"])
def test_random_starts_fill_the_ball_or_its_boundary(family: str) -> None:
    threat = FAMILIES[family]("0.1")
    x, keys = torch.full((400, 1, 2, 2), 0.5), streams.row_keys(0, "start", torch.arange(400))
    size = threat.size(x, threat.random(x, budget(threat, 400), keys))
    share = (size / 0.1) ** 4  # four values: the ball's volume grows with the fourth power of its size
    assert abs(float(share.mean()) - 0.5) < 0.1
    size = threat.size(x, threat.random(x, budget(threat, 400), keys, boundary=True))
    assert bool((size > 0.0999).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_do_not_depend_on_their_neighbours(family: str) -> None:
    threat = FAMILIES[family]("0.3")
    generator = torch.Generator().manual_seed(0)
    x, p = torch.rand(33, 3, 7, 7, generator=generator), torch.randn(33, 3, 7, 7, generator=generator)
    keys, eps = streams.row_keys(0, "start", torch.arange(33)), budget(threat, 33) * torch.linspace(0, 1, 33, dtype=torch.float64)
    ways: list[Callable[[slice], Tensor]] = [
        lambda i: threat.project(x[i], p[i], eps[i]),
        lambda i: threat.random(x[i], eps[i], keys[i]),
        lambda i: threat.random(x[i], eps[i], keys[i], boundary=True),
        lambda i: threat.step(x[i], 0.1 * p[i], p[i], eps[i]),
        lambda i: threat.size(x[i], p[i]),
    ]
    for what in ways:
        whole = what(slice(None))
        assert torch.equal(whole, torch.cat([what(slice(i, i + 1)) for i in range(33)]))
        assert torch.equal(whole, torch.cat([what(slice(i, i + 7)) for i in range(0, 33, 7)]))


@settings(max_examples=150, deadline=None)
@given(cases(), st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32) | _PIXEL, min_size=12, max_size=12))
def test_foreign_images_are_snapped_inside(case: tuple[NormThreat, Tensor, Tensor, Tensor], values: list[float]) -> None:
    threat, x, _, eps = case
    snapped = threat.snap(x, torch.tensor(values, dtype=torch.float32).view(x.shape), eps)
    assert exactly_inside(threat, x, snapped)


def test_snapping_keeps_an_image_that_is_inside() -> None:
    threat = Linf("8/255")
    x = torch.arange(0, 256, 3).float().div(255)[:64].view(1, 1, 8, 8)
    image = (x * 255 + 7).round() / 255
    assert torch.allclose(threat.apply(x, threat.snap(x, image, budget(threat, 1))), image, atol=1e-7)


def test_size_is_that_of_the_change_really_made() -> None:
    x = torch.tensor([[[[0.9, 0.0, 0.5, 0.5]]]])
    p = torch.tensor([[[[0.5, -0.5, 0.25, 0.0]]]])
    assert float(Linf("1").size(x, p)) == 0.25
    assert float(L2("1").size(x, p)) == pytest.approx(math.hypot(1 - 0.9, 0.25), abs=1e-7)
    assert Linf("1").size(x, p).dtype == torch.float64


@pytest.mark.parametrize("family", ["linf", "l2", "l1"])
def test_contains_has_no_tolerance(family: str) -> None:
    threat = FAMILIES[family]("0.25")
    x = torch.zeros(4, 1, 1, 1)
    p = torch.tensor([0.25, 0.25 + 2.0**-24, 0.25 - 2.0**-26, math.nan]).view(4, 1, 1, 1)
    assert threat.contains(x, p).tolist() == [True, False, True, False]
    assert threat.contains(x, p, Fraction(1, 5)).tolist() == [False] * 4
    assert threat.contains(torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), math.inf)).tolist() == [False]


def test_steepest_ascent_in_each_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(2, 1, 4, 4, generator=generator)
    length = torch.tensor([0.5, 2.0], dtype=torch.float64)
    x, zero = torch.rand_like(gradient), torch.zeros_like(gradient)
    assert torch.equal(Linf("1").step(x, zero, gradient, length), gradient.sign() * length.view(2, 1, 1, 1).float())
    stepped = L2("1").step(x, zero, gradient, length)
    assert stepped.flatten(1).norm(dim=1).tolist() == pytest.approx([0.5, 2.0])
    assert torch.allclose(torch.nn.functional.normalize(stepped.flatten(1)), torch.nn.functional.normalize(gradient.flatten(1)))


def test_l1_steps_change_few_values_equally() -> None:
    gradient = torch.randn(3, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    length = torch.tensor([0.01, 0.2, 3.0], dtype=torch.float64)
    grey, zero = torch.full_like(gradient, 0.5), torch.zeros_like(gradient)
    stepped = L1("1").step(grey, zero, gradient, length).flatten(1)
    assert (stepped != 0).sum(1).tolist() == [1, 4, 24]  # 2 % of 400, but each moves by between 1/20 and 1/8 of the box
    assert stepped.abs().sum(1).tolist() == pytest.approx(length.tolist())
    for moved, slope in zip(stepped, gradient.flatten(1), strict=True):
        largest = slope.abs().topk(int((moved != 0).sum())).indices
        assert torch.allclose(moved[largest], slope[largest].sign() * moved.abs().max())


def test_l1_steps_pass_over_values_that_the_box_holds() -> None:
    gradient = torch.tensor([4.0, -3.0, 2.0, -1.0]).view(1, 1, 2, 2)
    x = torch.tensor([1.0, 0.0, 0.5, 0.5]).view(1, 1, 2, 2)
    length = torch.tensor([0.2], dtype=torch.float64)  # of one value
    moved = L1("1").step(x, torch.zeros_like(x), gradient, length)
    assert torch.allclose(moved, torch.tensor([0.0, 0.0, 0.2, 0.0]).view(1, 1, 2, 2))
    p = torch.tensor([-0.1, 0.0, 0.48, 0.0]).view(1, 1, 2, 2)
    moved = L1("1").step(x, p, gradient, length)  # the first has room again, the third hardly any
    assert torch.allclose(moved - p, torch.tensor([0.2, 0.0, 0.0, 0.0]).view(1, 1, 2, 2))
    moved = L1("1").step(x, p, gradient * torch.tensor([0.0, 1, 1, 1]).view(1, 1, 2, 2), length)
    assert torch.allclose(moved - p, torch.tensor([0.0, 0.0, 0.0, -0.2]).view(1, 1, 2, 2))


@pytest.mark.parametrize("channels", [1, 3])
def test_l0_projection_is_the_nearest_point(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, p = torch.rand(20, channels, 1, 5, generator=generator), torch.randn(20, channels, 1, 5, generator=generator)
    projected = L0("2").project(x, p, torch.full((20,), 2.0, dtype=torch.float64))
    inside = p.clamp(-x, 1 - x)
    rivals = []
    for pixels in itertools.combinations(range(5), 2):
        kept = torch.zeros(5)
        kept[list(pixels)] = 1
        rivals.append((inside * kept - p).flatten(1).norm(dim=1))
    assert torch.allclose((projected - p).flatten(1).norm(dim=1), torch.stack(rivals).amin(0), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1e-25, 1e-34, 1e20])
def test_a_step_does_not_depend_on_the_gradients_scale(scale: float) -> None:
    gradient = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)
    x, zero, length = torch.full_like(gradient, 0.5), torch.zeros_like(gradient), torch.tensor([0.5], dtype=torch.float64)
    for threat in (Linf("1"), L2("1"), L1("1")):
        assert torch.allclose(threat.step(x, zero, gradient * scale, length), threat.step(x, zero, gradient, length), atol=1e-4)


def test_a_vanished_gradient_does_not_move() -> None:
    x, p = torch.rand(2, 1, 2, 2), torch.rand(2, 1, 2, 2)
    for threat in (Linf("1"), L2("1"), L1("1")):
        assert torch.equal(threat.step(x, p, torch.zeros_like(p), torch.ones(2, dtype=torch.float64)), p)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_image_is_allowed_at_the_unbounded_budget(family: str) -> None:
    shape = (1, 5, 5)
    threat = FAMILIES[family](0)
    most = threat.at(threat.unbounded(shape))
    corners = torch.stack([torch.zeros(shape), torch.ones(shape)])
    assert bool(most.contains(corners, 1 - 2 * corners).all())
    reached = most.apply(corners, most.project(corners, 1 - 2 * corners, budget(most, 2)))
    assert torch.allclose(reached, 1 - corners, rtol=0, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_that_of_the_loss(family: str) -> None:
    weight = torch.linspace(-1, 1, 8, dtype=torch.float32).view(1, 1, 2, 4)
    x = torch.full((3, 1, 2, 4), 0.5)
    gradient, values = FAMILIES[family]("0.1").gradient(x, torch.zeros_like(x), lambda image: (image * weight).sum((1, 2, 3)) ** 2)
    assert values.shape == (3,)
    assert not gradient.requires_grad
    assert not values.requires_grad
    expected = 2 * (x * weight).sum((1, 2, 3)).view(3, 1, 1, 1) * weight
    assert torch.allclose(gradient, expected.expand_as(gradient))


def test_a_loss_that_does_not_depend_on_the_image_has_gradient_zero() -> None:
    x = torch.full((2, 1, 2, 2), 0.5)
    cut = Linf("0.1").gradient(x, torch.zeros_like(x), lambda image: image.detach().sum((1, 2, 3)))
    unused = Linf("0.1").gradient(x, torch.zeros_like(x), lambda image: torch.ones(2, requires_grad=True) * 3)
    for gradient, values in (cut, unused):
        assert torch.equal(gradient, torch.zeros_like(x))
        assert values.shape == (2,)


# ---- names


def test_specifications_are_canonical_and_exact() -> None:
    assert str(load_threat("linf:0.10").spec) == "linf:0.1"
    assert str(load_threat("linf:16/510").spec) == "linf:8/255"
    assert load_threat("l2:0.5").eps == Fraction(1, 2)
    assert load_threat("linf:eps=8/255") == Linf("8/255") == load_threat(Linf("8/255"))
    assert Linf(0.1).eps == Fraction(1, 10)
    assert Linf("0.1").family == Linf("0.3").family != L2("0.3").family
    assert set(THREATS) >= {"linf", "l2"}
    for name, eps in itertools.product(FAMILIES, ("0.1", "1/3", "0")):
        assert load_threat(str(load_threat(f"{name}:{eps}").spec)) == load_threat(f"{name}:{eps}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("linf:-0.1", "negative"),
        ("linf:nan", "number"),
        ("linf:inf", "number"),
        ("linf:1e400", "budgets are in units"),
        ("linf:1/0", "divides by zero"),
        ("linf", "needs eps"),
        ("linf:0.1,0.2", "too many"),
        ("linf:radius=1", "option"),
        ("lif:0.1", "did you mean 'linf'"),
        ("linf:0.1:3", "malformed"),
        ("", "malformed"),
    ],
)
def test_bad_threats_are_refused(text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        load_threat(text)


@pytest.mark.parametrize("eps", [-1, math.nan, math.inf, "x", None, 10**400, [0.1]])
def test_bad_budgets_are_refused(eps: Any) -> None:
    with pytest.raises(BadInput, match="eps"):
        Linf(eps)


def test_a_bare_number_is_no_threat() -> None:
    number: Any = 0.1
    with pytest.raises(BadInput, match="linf:8/255"):
        load_threat(number)
