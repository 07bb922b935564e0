"""Linear relaxations: below and above on dense grids for any interval and slope, tight where that is known; forms and input sets."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

from robustkit.certify import ops, pools, relax, smooth, trace
from robustkit.certify.activations import ELU, GELU, Dipping, SiLU, Softplus
from robustkit.certify.adjoint import adjoint, product
from robustkit.certify.forms import Dense, Groups, Windows, add, densify
from robustkit.certify.graph import Node
from robustkit.certify.region import Region
from robustkit.certify.relax import CHOICES, Lines, Slopes, lines_for
from robustkit.errors import BadInput

ACTIVATIONS: dict[str, ops.Op] = {
    "relu": ops.ReLU(),
    "leaky": ops.LeakyReLU(0.1),
    "steep": ops.LeakyReLU(1.7),
    "flat": ops.LeakyReLU(1.0),
    "sigmoid": ops.Sigmoid(),
    "tanh": ops.Tanh(),
    "clamp": ops.Clamp(-0.5, 1.5),
    "relu6": ops.Clamp(0.0, 6.0),
    "cap": ops.Clamp(None, 1.0),
    "softplus": Softplus(),
    "sharp-softplus": Softplus(5.0),
    "elu": ELU(),
    "deep-elu": ELU(2.5),
    "gelu": GELU(),
    "gelu-tanh": GELU("tanh"),
    "silu": SiLU(),
}


def intervals() -> tuple[Tensor, Tensor, Tensor]:
    """Intervals of all sizes and places, points among them, and a reference point in each: (1, 1, n)."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.cat([torch.randn(400, generator=generator) * scale for scale in (0.01, 1.0, 3.0, 30.0)]).double()
    width = 10 ** (torch.rand(1600, generator=generator, dtype=torch.float64) * 7 - 5)
    low, high = centre - width * torch.rand(1600, generator=generator), centre + width * torch.rand(1600, generator=generator)
    ends = [(-1, 1), (0, 0), (0, 1), (-1, 0), (-1e3, 1e3), (-1e-9, 1e-9), (3, 3), (-2, -2), (-1e-30, 5), (-700, 1), (-1, 700)]
    extra = torch.tensor(ends, dtype=torch.float64)
    low, high = torch.cat([low, extra[:, 0]]), torch.cat([high, extra[:, 1]])
    at = low + (high - low) * torch.rand(len(low), generator=generator, dtype=torch.float64)
    return low.view(1, 1, -1), high.view(1, 1, -1), at.view(1, 1, -1)


def excess(op: ops.Op, lines: Lines, low: Tensor, high: Tensor, at: Tensor, count: int = 400) -> Tensor:
    """The most that a line is on the wrong side on a dense grid, relative to what it is computed from; 0 or less is sound."""
    share = torch.linspace(0, 1, count, dtype=low.dtype).view(-1, 1, 1, 1)
    x = torch.cat([low + share * (high - low), at.unsqueeze(0), torch.minimum(torch.maximum(torch.zeros_like(at), low), high).unsqueeze(0)])
    truth, value = op.forward(x), op.forward(at)
    below = value + lines.lower_gap + lines.lower_slope * (x - at) - truth
    above = truth - (value + lines.upper_gap + lines.upper_slope * (x - at))
    size = 1 + low.abs() + high.abs()
    return (torch.maximum(below, above) / size).amax()


def at_node(op: ops.Op) -> Node:
    return Node(op, (0,), (1,), "in the test")


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("choice", CHOICES)
def test_lines_hold_the_function(name: str, choice: str) -> None:
    op, (low, high, at) = ACTIVATIONS[name], intervals()
    lines = lines_for(at_node(op), low, high, at, choice)
    assert all(bool(torch.isfinite(part).all()) for part in lines)
    assert float(excess(op, lines, low, high, at)) < 1e-12
    single = lines_for(at_node(op), low.float(), high.float(), at.float(), choice)
    inside = torch.minimum(torch.maximum(at.float(), low.float()), high.float())
    assert float(excess(op, single, low.float(), high.float(), inside)) < 3e-6


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_any_slope_is_sound(name: str) -> None:
    """Also the slopes that an optimiser may come to."""
    op, (low, high, at) = ACTIVATIONS[name], intervals()
    generator = torch.Generator().manual_seed(3)
    for scale in (0.3, 3.0):
        drawn = [torch.randn(low.shape, generator=generator, dtype=torch.float64) * scale for _ in range(2)]
        lines = lines_for(at_node(op), low, high, at, Slopes(*drawn))
        assert float(excess(op, lines, low, high, at)) < 1e-12


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_adaptive_lines_are_nearly_the_best_at_the_middle(name: str) -> None:
    """Against the concave and convex envelope of a fine sampling, over which no line can do better."""
    op = ACTIVATIONS[name]
    for start, end in itertools.product((-4.0, -1.0, -0.2), (0.3, 1.1, 5.0)):
        low, high = (torch.full((1, 1, 1), v, dtype=torch.float64) for v in (start, end))
        lines = lines_for(at_node(op), low, high, (low + high) / 2, "adaptive")
        x = torch.linspace(start, end, 201, dtype=torch.float64)
        y, middle = op.forward(x), 100
        left, right = torch.arange(middle), torch.arange(middle + 1, 201)
        share = (x[middle] - x[left])[:, None] / (x[right][None] - x[left][:, None])
        chords = y[left][:, None] * (1 - share) + y[right][None] * share - y[middle]
        allowed = 0.02 * (end - start)
        assert float(lines.upper_gap) <= max(0.0, float(chords.max())) + allowed
        if not isinstance(op, (ops.ReLU, ops.LeakyReLU)) or getattr(op, "slope", 0) > 1:  # theirs is least area, not least middle
            assert float(-lines.lower_gap) <= max(0.0, -float(chords.min())) + allowed


def test_relu_lines_are_those_of_the_papers() -> None:
    low, high = (torch.tensor(v, dtype=torch.float64).view(1, 1, -1) for v in ([-1.0, -3, 1, -2], [3.0, 1, 2, -1]))
    lines = lines_for(at_node(ops.ReLU()), low, high, low, "adaptive")
    assert lines.upper_slope.flatten().tolist() == [0.75, 0.25, 1, 0]
    assert lines.lower_slope.flatten().tolist() == [1, 0, 1, 0]
    assert lines.upper_gap.flatten().tolist() == [0, 0, 0, 0] and lines.lower_gap.flatten().tolist() == [-1, 0, 0, 0]
    same = lines_for(at_node(ops.ReLU()), low, high, high, "same")
    assert torch.equal(same.lower_slope, same.upper_slope)
    assert same.lower_gap.flatten().tolist() == [-0.75, -0.75, 0, 0]


@pytest.mark.parametrize("op", [GELU(), GELU("tanh"), SiLU()])
def test_dipping_functions_bend_where_they_say(op: Dipping) -> None:
    x = torch.linspace(-9, 9, 20001, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(op.forward(x).sum(), x)
    torch.testing.assert_close(op.derivative(x).detach(), slope, atol=1e-12, rtol=1e-9)
    rises = slope.diff() > 1e-13
    assert not bool((rises & ((x[1:] < -op.bend) | (x[:-1] > op.bend))).any())
    assert not bool(((slope.diff() < -1e-13) & (x[:-1] > -op.bend) & (x[1:] < op.bend)).any())
    x = x.detach()
    value = op.forward(x)
    assert float(value.min()) >= float(op.forward(torch.tensor(op.lowest, dtype=torch.float64))) - 1e-15
    assert abs(float(x[value.argmin()]) - op.lowest) < 1e-3


def test_bugs_in_lines_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    low, high, at = intervals()

    def worst(op: ops.Op) -> float:
        return float(excess(op, lines_for(at_node(op), low, high, at, "adaptive"), low, high, at))

    monkeypatch.setattr(smooth, "HALVINGS", 2)
    assert worst(GELU()) > 1e-6, "points of a given derivative that are far off"
    for op in (ops.ReLU(), ops.Sigmoid(), ops.Clamp(-0.5, 1.5)):
        rule = relax.LINE_RULES[type(op)]
        for change in (
            lambda lines: lines._replace(upper_slope=lines.upper_slope * 0.9),
            lambda lines: lines._replace(upper_gap=lines.upper_gap * 0.9),
            lambda lines: lines._replace(lower_gap=lines.lower_gap * 0.9),
            lambda lines: Lines(*lines[2:], *lines[:2]),
        ):
            wrong: Any = lambda op, low, high, at, choice, change=change, rule=rule: change(rule(op, low, high, at, choice))  # noqa: E731
            monkeypatch.setitem(relax.LINE_RULES, type(op), wrong)
            assert worst(op) > 1e-6
            monkeypatch.setitem(relax.LINE_RULES, type(op), rule)


POOLS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "plain": (nn.MaxPool2d(2), (3, 4, 6)),
    "overlapping": (nn.MaxPool2d(3, 1, 1), (2, 4, 5)),
    "ceil": (nn.MaxPool2d(2, ceil_mode=True), (2, 5, 3)),
    "dilated": (nn.MaxPool2d((2, 3), 1, (1, 1), 2), (1, 7, 8)),
    "adaptive": (nn.AdaptiveMaxPool2d((3, 2)), (2, 7, 5)),
    "line": (nn.MaxPool1d(3, 2), (3, 9)),
    "cube": (nn.MaxPool3d(2, 1), (2, 3, 4, 3)),
}


@pytest.mark.parametrize("name", POOLS)
def test_pools_are_held_between_their_lines(name: str) -> None:
    module, shape = POOLS[name]
    op = ops.MaxPool(module.forward)
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(50, *shape, generator=generator, dtype=torch.float64)
    table = pools.members(op, shape, x)
    flat = x.flatten(2)[:, :, table].amax(3)
    torch.testing.assert_close(flat, module(x).flatten(2))
    centre, width = torch.randn(4, *shape, generator=generator).double(), torch.rand(4, *shape, generator=generator).double() ** 3
    low, high = centre - width, centre + width
    at = low + (high - low) * torch.rand(4, *shape, generator=generator).double()
    made = pools.pooled(op, low, high, at)
    signs = torch.randn(4, 6, *module(x[:1]).shape[1:], generator=generator).double()
    groups = Groups(6, None)
    (form,), constant = made.pull(Dense(signs.flatten(0, 1)), [shape], tuple(signs.shape[2:]), groups)
    assert isinstance(form, Dense)
    for _ in range(200):
        drawn = torch.rand(4, *shape, generator=generator).double()
        point = low + (high - low) * (drawn if drawn[0].flatten()[0] < 0.5 else drawn.round())
        truth = (signs * (module(point) - module(at)).unsqueeze(1)).flatten(2).sum(2)
        bound = constant + (form.rows(groups) * (point - at).flatten(1).unsqueeze(1)).sum(2)
        assert bool((bound <= truth + 1e-9).all())
    leading = pools.pooled(op, x[:1], x[:1], x[:1])
    assert float(leading.below_gap.abs().max()) == float(leading.above_gap.abs().max()) == 0


def test_unknown_operations_are_named() -> None:
    class Other(ops.Monotone):
        def forward(self, *inputs: Tensor) -> Tensor:
            return inputs[0].asinh()

    with pytest.raises(BadInput, match=r"no linear relaxation is known for Other \(in the test\): register one"):
        lines_for(at_node(Other()), *intervals(), "adaptive")


# ---- forms through affine operations


@pytest.mark.parametrize("name", ["conv", "strides", "norms", "residual", "functional", "conv1d", "pools", "transposed", "branches"])
def test_adjoints_are_vector_jacobian_products(make_network: Callable[..., Any], name: str) -> None:
    module, shape = make_network(name)
    network = trace(module).network(shape, torch.float64)
    for node in network.nodes[1:]:
        if not isinstance(node.op, ops.Affine):
            continue
        inputs = [network.nodes[i].shape for i in node.inputs]
        form = Dense(torch.randn(6, *node.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
        ours = adjoint(node.op, form, inputs, node.shape, Groups(2, None))
        theirs = product(node.op, form, inputs, node.shape, Groups(2, None))
        x = [torch.randn(6, *s, dtype=torch.float64) for s in inputs]
        zero = [torch.zeros_like(v) for v in x]
        moved = ((node.op.forward(*x) - node.op.forward(*zero)) * form.coef).flatten(1).sum(1)
        found = sum((densify(f, s, Groups(2, None)).coef * v).flatten(1).sum(1) for f, v, s in zip(ours, x, inputs))
        torch.testing.assert_close(found, moved, atol=1e-9, rtol=1e-9)
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(densify(a, (), Groups(2, None)).coef, densify(b, (), Groups(2, None)).coef, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups"),
    [(3, 1, 1, 1, 1), (4, 2, 1, 1, 1), (3, 2, 0, 1, 2), (2, 1, 1, 2, 1), (5, 3, 2, 1, 1)],
)
def test_windows_say_the_same_as_dense_forms(kernel: int, stride: int, padding: int, dilation: int, groups: int) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(4, 4 // groups, kernel, kernel, generator=generator, dtype=torch.float64)
    op = ops.Conv(weight, None, (stride, stride), (padding, padding), (dilation, dilation), groups)
    shapes = [(4, 11, 12)]
    for _ in range(2):
        shapes.append(tuple(op.forward(torch.zeros(1, *shapes[-1], dtype=torch.float64)).shape[1:]))
    front, middle, last = shapes
    cells = torch.randint(0, last[1] * last[2], (9,), generator=generator)
    units = torch.randn(18, 4, 1, 1, generator=generator, dtype=torch.float64)
    owner = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    groups_ = Groups(2, owner, cells, 0, 3)
    windows = Windows(units, (last[1], last[2]), (1, 1), (0, 0), True)
    dense = windows.dense(last, groups_)
    for after, before in ((last, middle), (middle, front)):
        windows, dense = (adjoint(op, f, [before], after, groups_)[0] for f in (windows, dense))  # type: ignore[assignment]
        if isinstance(windows, Windows):
            torch.testing.assert_close(windows.dense(before, groups_).coef, dense.coef)
            values = torch.randn(3, 1, 2, *before, generator=generator, dtype=torch.float64)
            torch.testing.assert_close(
                (windows.rows(groups_).unsqueeze(2) * windows.spread(values, groups_)).sum(3),
                (dense.rows(groups_).unsqueeze(2) * dense.spread(values, groups_)).sum(3),
            )
            torch.testing.assert_close(densify(add(windows, windows, before, groups_), before, groups_).coef, 2 * dense.coef)
        else:
            torch.testing.assert_close(windows.coef, dense.coef)


# ---- input sets


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("eps", [0.05, 0.5, 2.0, 20.0])
def test_the_least_value_on_an_input_set_is_exact(norm: str, eps: float) -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(2, 6, generator=generator, dtype=torch.float64).round(decimals=1)
    forms = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)
    region = Region.around(x, eps, norm)
    ours = region.least(Dense(forms.flatten(0, 1)), Groups(3, None)) + (forms * region.at.unsqueeze(1)).sum(2)
    for row, form in itertools.product(range(2), range(3)):
        c, centre = forms[row, form].numpy(), x[row].numpy()
        bounds = list(zip(np.maximum(0, centre - eps), np.minimum(1, centre + eps)))
        if norm == "l1":
            rows = np.array(list(itertools.product((-1, 1), repeat=6)))
            exact = linprog(c, A_ub=rows, b_ub=eps + rows @ centre, bounds=bounds).fun
        elif norm == "l2":
            ball = {"type": "ineq", "fun": lambda p, centre=centre: eps**2 - ((p - centre) ** 2).sum()}
            options = {"ftol": 1e-12, "maxiter": 500}
            exact = minimize(c.__matmul__, centre, bounds=bounds, constraints=[ball], options=options).fun
        else:
            exact = sum(min(v * a, v * b) for v, (a, b) in zip(c, bounds))
        assert float(ours[row, form]) <= exact + 1e-7
        assert float(ours[row, form]) == pytest.approx(exact, abs=1e-4)
