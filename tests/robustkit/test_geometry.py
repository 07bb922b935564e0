"""Rotations and flows: exact budgets, nothing changes at zero, images as other libraries make them."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from robustkit import streams
from robustkit.certify import IBP
from robustkit.core.comparisons import float_below
from robustkit.engine import evaluate
from robustkit.errors import BadInput
from robustkit.threats import L0, L1, L2, THREATS, Flow, Linf, Rotation, Threat, load_threat
from robustkit.threats.warp import warp

BUDGETS = st.one_of(
    st.fractions(0, 3, max_denominator=1000),
    st.sampled_from([Fraction(t) for t in ("0", "1/10", "1e-7", "1e-5", "1", "30", "1/3", "2", "2.5")]),
)
_MOVE = st.one_of(st.floats(-3, 3, width=32), st.sampled_from([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30, 0.1, 1.0, 2.0**-25]))
_LIMIT = st.fractions(0, 180, max_denominator=7)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Threat, Tensor, Tensor, Tensor]:
    """(threat, x, p, eps): two rows of 2 x 3 pixels, with a budget for all of them."""
    eps = draw(BUDGETS)
    if draw(st.booleans()):
        threat: Threat = Flow(eps)
    else:
        angle, shift = draw(_LIMIT), draw(_LIMIT)
        threat = Rotation(eps, angle, shift if angle else shift + 1, padding=draw(st.sampled_from(["zeros", "border", "reflection"])))
    x = torch.tensor(draw(st.lists(st.floats(0, 1, width=32), min_size=12, max_size=12))).view(2, 1, 2, 3)
    shape = threat.zero(x).shape
    p = torch.tensor(draw(st.lists(_MOVE, min_size=shape.numel(), max_size=shape.numel()))).view(shape)
    return threat, x, p, budget(threat, 2)


def budget(threat: Threat, rows: int) -> Tensor:
    return torch.full((rows,), float_below(threat.eps), dtype=torch.float64)


def exactly_inside(threat: Threat, p: Tensor) -> bool:
    """Whether parameters lie in the budget, decided with fractions."""
    for row in p:
        if isinstance(threat, Rotation):
            shares = [abs(Fraction(v)) for v, most in zip(row.tolist(), threat.most) if most]
            if max(shares) > threat.eps:
                return False
        elif any(Fraction(a) ** 2 + Fraction(b) ** 2 > threat.eps**2 for a, b in zip(row[0].flatten().tolist(), row[1].flatten().tolist())):
            return False
    return True


@settings(max_examples=300, deadline=None)
@given(cases())
def test_projection_lands_exactly_inside_and_is_idempotent(case: tuple[Threat, Tensor, Tensor, Tensor]) -> None:
    threat, x, p, eps = case
    inside = threat.project(x, p, eps)
    assert exactly_inside(threat, inside)
    assert bool(threat.contains(x, inside).all())
    assert torch.equal(threat.project(x, inside, eps), inside)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_projection_keeps_what_is_well_inside(case: tuple[Threat, Tensor, Tensor, Tensor]) -> None:
    threat, x, p, eps = case
    p = threat.free(p) if isinstance(threat, Rotation) else p
    well = threat.size(x, p) <= eps * (1 - 1e-9)
    assert torch.equal(threat.project(x, p, eps)[well], p[well])


@settings(max_examples=150, deadline=None)
@given(cases())
def test_images_stay_in_the_box_and_zero_changes_nothing(case: tuple[Threat, Tensor, Tensor, Tensor]) -> None:
    threat, x, p, _ = case
    image = threat.apply(x, p)
    assert image.shape == x.shape
    assert bool(((image >= 0) & (image <= 1)).all())
    assert torch.equal(threat.apply(x, threat.zero(x)), x)
    assert threat.size(x, threat.zero(x)).tolist() == [0, 0]


@settings(max_examples=150, deadline=None)
@given(cases(), st.booleans(), st.integers(0, 2**32))
def test_random_starts_are_exactly_inside(case: tuple[Threat, Tensor, Tensor, Tensor], boundary: bool, seed: int) -> None:
    threat, x, _, eps = case
    p = threat.random(x, eps, streams.row_keys(seed, "start", torch.arange(2)), boundary=boundary)
    assert exactly_inside(threat, p)
    if boundary:
        assert bool((threat.size(x, p) >= eps * (1 - 1e-6)).all())


def test_projection_gives_nothing_away() -> None:
    x = torch.rand(2, 1, 5, 5)
    for threat in (Rotation("0.3"), Flow("0.7")):
        size = threat.size(x, threat.project(x, threat.zero(x) + 5, budget(threat, 2)))
        assert bool((size >= float(threat.eps) * (1 - 5e-7)).all())
    far = torch.zeros(1, 2, 5, 5)
    far[0, :, 2, 2], far[0, 0, 0, 0] = torch.tensor([3.0, 4.0]), 0.25
    near = Flow(1).project(x, far, budget(Flow(1), 1))
    assert near[0, :, 2, 2].tolist() == pytest.approx([0.6, 0.8])  # the nearest point of every pixel's own disc
    assert float(near[0, 0, 0, 0]) == 0.25


@pytest.mark.parametrize("threat", [Rotation(), Rotation(interpolation="nearest", padding="reflection"), Flow(2)], ids=str)
def test_rows_do_not_depend_on_their_neighbours(threat: Threat) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(33, 3, 7, 9, generator=generator)
    p, slope = (torch.randn(threat.zero(x).shape, generator=generator) for _ in range(2))
    keys, eps = streams.row_keys(0, "start", torch.arange(33)), budget(threat, 33) * torch.linspace(0, 1, 33, dtype=torch.float64)
    ways: list[Callable[[slice], Tensor]] = [
        lambda i: threat.apply(x[i], p[i]),
        lambda i: threat.project(x[i], p[i], eps[i]),
        lambda i: threat.random(x[i], eps[i], keys[i]),
        lambda i: threat.random(x[i], eps[i], keys[i], boundary=True),
        lambda i: threat.step(x[i], p[i], slope[i], eps[i]),
        lambda i: threat.size(x[i], p[i]),
        lambda i: threat.gradient(x[i], p[i], lambda image: image.square().flatten(1).sum(1))[0],
    ]
    for what in ways:
        whole = what(slice(None))
        assert torch.equal(whole, torch.cat([what(slice(i, i + 1)) for i in range(33)]))
        assert torch.equal(whole, torch.cat([what(slice(i, i + 7)) for i in range(0, 33, 7)]))


def test_random_starts_fill_the_set() -> None:
    keys, x = streams.row_keys(0, "start", torch.arange(300)), torch.rand(300, 1, 4, 4)
    p = Rotation().random(x, budget(Rotation(), 300), keys)
    assert float(p.abs().mean()) == pytest.approx(0.5, abs=0.03)
    assert p.mean(0).abs().max() < 0.1
    flow = Flow(2).random(x, budget(Flow(2), 300), keys)
    assert float(flow.square().sum(1).mean()) == pytest.approx(2, abs=0.1)  # half the squared radius: uniform on the disc
    assert flow.mean((0, 2, 3)).abs().max() < 0.1


# ---- images


@pytest.mark.parametrize("share", [(0.7, 0.3, -0.5), (-1.0, 1.0, 1.0), (0.0, 0.5, 0.0)])
def test_a_rotation_is_that_of_scipy(share: tuple[float, float, float]) -> None:
    threat = Rotation(angle=30, shift=3)
    x = torch.rand(2, 2, 9, 12, generator=torch.Generator().manual_seed(0))
    found = threat.apply(x, torch.tensor([share] * 2))
    angle, right, down = np.deg2rad(30) * share[0], 3 * share[1], 3 * share[2]
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])  # rows, columns: out -> in
    centre = np.array([4, 5.5])
    offset = centre - turn @ (centre + [down, right])
    for row, channel in ((0, 0), (1, 1)):
        image = x[row, channel].double().numpy()
        expected = ndimage.affine_transform(image, turn, offset=offset, order=1, mode="grid-constant")
        assert np.abs(expected - found[row, channel].numpy()).max() < 1e-6


def test_directions_are_those_of_the_documentation() -> None:
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 8] = 1  # at the right
    turned = Rotation(angle=90).apply(x, torch.tensor([[1.0, 0, 0]]))
    assert float(turned[0, 0, 0, 4]) == pytest.approx(1, abs=1e-5)  # counter-clockwise: on top
    moved = Rotation(angle=0, shift=2).apply(x, torch.tensor([[1.0, -1.0, 0.5]]))  # an angle of 0 is not allowed to change
    assert float(moved[0, 0, 5, 6]) == 1
    flow = torch.zeros(1, 2, 9, 9)
    flow[0, 0, 2, 5], flow[0, 1, 2, 5] = 2, 3  # this pixel looks 2 down and 3 to the right
    assert Flow(4).apply(x, flow).nonzero().tolist() == [[0, 0, 2, 5], [0, 0, 4, 8]]


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_warping_is_that_of_grid_sample(interpolation: Any, padding: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x, p = torch.rand(4, 3, 8, 11, generator=generator), torch.randn(4, 2, 8, 11, generator=generator) * 4
    row, column = torch.arange(8.0)[:, None] + p[:, 0], torch.arange(11.0) + p[:, 1]
    grid = torch.stack([column * 2 / 10 - 1, row * 2 / 7 - 1], 3)
    expected = torch.nn.functional.grid_sample(x, grid, mode=interpolation, padding_mode=padding, align_corners=True)
    assert torch.allclose(warp(x, p[:, 0], p[:, 1], interpolation, padding), expected, atol=1e-5)


@pytest.mark.parametrize("threat", [Rotation(), Rotation(padding="border"), Flow(2)], ids=str)
def test_gradients_are_finite_differences(threat: Threat) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 2, 6, 7, generator=generator, dtype=torch.float64)
    p, way = (torch.randn(threat.zero(x).shape, generator=generator, dtype=torch.float64) * 0.4 for _ in range(2))
    weight = torch.randn(x.shape, generator=generator, dtype=torch.float64)

    def loss(image: Tensor) -> Tensor:
        return (image * weight).flatten(1).sum(1)

    gradient, values = threat.gradient(x, p, loss)
    assert not gradient.requires_grad and not values.requires_grad
    step = 1e-7
    slope = (loss(threat.apply(x, p + step * way)) - loss(threat.apply(x, p - step * way))) / (2 * step)
    assert torch.allclose((gradient * way).flatten(1).sum(1), slope, rtol=1e-5, atol=1e-5)


def test_steepest_ascent() -> None:
    x, length = torch.rand(1, 1, 2, 2), torch.tensor([0.5], dtype=torch.float64)
    stepped = Rotation().step(x, torch.zeros(1, 3), torch.tensor([[1e-20, -5.0, 0.0]]), length)
    assert stepped.tolist() == [[0.5, -0.5, 0.0]]
    gradient = torch.zeros(1, 2, 2, 2)
    gradient[0, :, 0, 0], gradient[0, :, 1, 1] = torch.tensor([3e-30, 4e-30]), torch.tensor([-5.0, 0.0])
    flow = Flow(1).step(x, torch.zeros_like(gradient), gradient, length)
    assert flow[0, :, 0, 0].tolist() == pytest.approx([0.3, 0.4])
    assert flow[0, :, 1, 1].tolist() == [-0.5, 0.0]
    assert bool((flow[0, :, 0, 1] == 0).all())  # where the gradient vanishes nothing moves


def test_the_unbounded_budget_allows_every_parameter() -> None:
    shape = (1, 6, 8)
    assert Flow(1).unbounded(shape) >= Fraction(10)
    assert Rotation(angle=30, shift=3).unbounded(shape) == 6
    assert Rotation(angle=90, shift=2).unbounded(shape) == 4
    assert Rotation(angle=0, shift=2).unbounded(shape) == 4
    assert Rotation(angle=45, shift=0).unbounded(shape) == 4


# ---- names, suites, checks


def test_specifications_are_canonical_and_exact() -> None:
    spec = "rotation:1,angle=30,shift=3,interpolation=bilinear,padding=zeros"
    assert str(load_threat("rotation:angle=30,shift=3").spec) == str(load_threat("rotation").spec) == spec
    assert load_threat(spec) == Rotation() == Rotation(angle="30")
    assert load_threat("flow:eps=2") == load_threat("flow:2") == Flow(2)
    assert Rotation("0.5").family == Rotation().family != Rotation(angle=20).family != Rotation(padding="border").family
    assert Rotation().at("1/3") == Rotation("1/3")
    assert {"rotation", "flow"} <= set(THREATS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rotation:angle=190", "at most 180"),
        ("rotation:angle=0,shift=0", "above 0"),
        ("rotation:angle=-3", "negative"),
        ("rotation:padding=mirror", "padding"),
        ("rotation:interpolation=cubic", "interpolation"),
        ("flow", "needs eps"),
        ("flow:-1", "negative"),
    ],
)
def test_bad_threats_are_refused(text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says) as problem:
        load_threat(text)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("threat", [Rotation(), Flow(1)], ids=str)
def test_interval_bounds_refuse_them(threat: Threat) -> None:
    with pytest.raises(BadInput, match=f"does not work for threat {threat.name}"):
        IBP().accepts(threat)


def test_only_norms_reach_every_image() -> None:
    assert all(threat.reaches_every_image for threat in (Linf, L2, L1, L0))
    assert not Rotation.reaches_every_image and not Flow.reaches_every_image


@pytest.mark.parametrize(("threat", "suite"), [("rotation:angle=30,shift=1", "standard"), ("flow:eps=1", "quick")])
def test_a_run_from_end_to_end(threat: str, suite: str, digits_models: dict[str, str], tmp_path: Any) -> None:
    found = evaluate(digits_models["standard"], "digits:n=48", threat, suite=suite, curve=True, out=tmp_path / "run", progress=False)
    summary = found.summary()
    assert summary["robust_accuracy"] < summary["clean_accuracy"]
    assert summary["certified_accuracy"] == 0
    assert summary["eight_bit"] is None
    unbounded = next(d for d in summary["diagnostics"] if d["check"] == "unbounded")
    assert unbounded["status"] == "skipped" and "does not reach every image" in unbounded["message"]
    at = int(np.flatnonzero(found.evidence.upper_stage >= 0)[0])
    assert found.witness(at).shape == (1, 8, 8)
    assert "<img" in (tmp_path / "run" / "report.html").read_text() or "data:image/png" in (tmp_path / "run" / "report.html").read_text()
