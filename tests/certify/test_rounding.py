"""Rounding errors of the deployed network: exact fractions, every order of summation, every operation, every library function."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.certify import backward, ops, rounding, trace
from robustkit.certify.activations import ELU, GELU, SiLU, Softplus
from robustkit.certify.backward import State
from robustkit.certify.region import Region
from robustkit.certify.rounding import RULES, SINGLE, gamma, window
from robustkit.errors import BadInput

Made = tuple[nn.Module, tuple[int, ...]]


def held(module: nn.Module, x: Tensor, eps: float, norm: str = "linf", tighten: str | None = "adaptive") -> State:
    """Intervals and errors of the float32 module around float32 images x."""
    network = trace(module).network(tuple(x.shape[1:]), torch.float64, copy=True, folded=False)
    state = backward.prepare(network, Region.around(x.double(), eps, norm))
    state.errors = {}
    with torch.no_grad():
        backward.bound_nodes(state, tighten)
    return state


def single(state: State, x: Tensor) -> list[Tensor]:
    """Values of all nodes computed in float32, operation by operation, from the network's weights."""
    values = [x.float()]
    for node in state.network.nodes[1:]:
        values.append(in_single(node.op).forward(*(values[i] for i in node.inputs)))
    return values


def in_single(op: ops.Op) -> Any:
    """The operation with float32 weights (exactly the module's own where they came from it)."""
    made = object.__new__(type(op))
    for name, value in vars(op).items():
        object.__setattr__(made, name, value.float() if isinstance(value, Tensor) else value)
    return made


def points(state: State, count: int = 12) -> list[Tensor]:
    """float32 images of the input set: the corners of the box moved inwards to float32, and random ones."""
    generator, found = torch.Generator().manual_seed(4), []
    region = state.region
    for number in range(count):
        share = torch.rand(region.at.shape, generator=generator, dtype=torch.float64)
        share = share.round() if number % 2 else share
        if region.norm == "linf":
            point = region.low + share * (region.high - region.low)
            low, high = region.low, region.high
        else:
            flat = (2 * share - 1).flatten(1)
            assert region.radius is not None
            size = flat.norm(dim=1, keepdim=True) if region.norm == "l2" else flat.abs().sum(1, keepdim=True)
            point = region.at + (flat / size * region.radius[:, None] * (1 - 1e-6)).view_as(share)
            low, high = region.low, region.high
        single = point.float()
        for end, toward in ((low, torch.inf), (high, -torch.inf)):
            out = single.double() < end if toward > 0 else single.double() > end
            single = torch.where(out, torch.nextafter(single, torch.tensor(toward)), single)
        found.append(single.clamp(0, 1))
    return found


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("linf", 1e-6), ("l2", 0.2), ("l1", 0.4)])
def test_intervals_hold_what_float32_computes(network: Made, norm: str, eps: float) -> None:
    """With the smallest ball rounding is all there is. Every node, computed alone and by the module, rows in any number."""
    module, shape = network
    module.float()
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(2))
    state = held(module, x, eps, norm)
    with torch.no_grad():
        for point in points(state):
            for number, value in enumerate(single(state, point)):
                found = state.intervals[number]
                assert bool((value >= found.low).all()) and bool((value <= found.high).all())
            last = state.intervals[len(state.network.nodes) - 1]
            for rows in (1, 3, 4):
                logits = torch.cat([module(part) for part in point.split(rows)])
                assert bool((logits >= last.low).all()) and bool((logits <= last.high).all())


def test_without_the_errors_float32_leaves_the_intervals(network: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same check fails where the deployed network is taken to be exact: it has teeth."""
    module, shape = network
    module.float()
    monkeypatch.setattr(rounding, "SINGLE", 0.0)
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(2))
    state = held(module, x, 0.0)
    outside = False
    with torch.no_grad():
        for value, found in zip(single(state, x), state.intervals.values()):
            outside |= bool((value < found.low).any() or (value > found.high).any())
    assert outside


def exact(layers: list[tuple[np.ndarray, np.ndarray]], x: np.ndarray) -> list[list[Fraction]]:
    """Pre-activations of a ReLU network on float32 numbers, in rational arithmetic."""
    values, found = [Fraction(float(v)) for v in x], []
    for number, (weight, bias) in enumerate(layers):
        if number:
            values = [max(v, Fraction(0)) for v in values]
        values = [sum((Fraction(float(w)) * v for w, v in zip(row, values)), Fraction(float(b))) for row, b in zip(weight, bias)]
        found.append(values)
    return found


def rounded(layers: list[tuple[np.ndarray, np.ndarray]], x: np.ndarray, generator: np.random.Generator, fused: bool) -> list[np.ndarray]:
    """The same in float32: every sum in a random order, as a random tree or in one row, products rounded or not."""
    values, found = x.astype(np.float32), []
    for number, (weight, bias) in enumerate(layers):
        if number:
            values = np.maximum(values, np.float32(0))
        sums = []
        for row, b in zip(weight, bias):
            terms = [np.float64(w) * np.float64(v) for w, v in zip(row, values)] + [np.float64(b)]
            parts = list(generator.permutation(terms))
            if not fused:
                parts = [np.float32(t) for t in parts]
            while len(parts) > 1:
                a = parts.pop(int(generator.integers(len(parts))))
                place = int(generator.integers(len(parts)))
                parts[place] = np.float32(np.float64(a) + np.float64(parts[place]))
            sums.append(np.float32(parts[0]))
        values = np.array(sums, dtype=np.float32)
        found.append(values)
    return found


@pytest.mark.parametrize("seed", range(6))
def test_exact_fractions_and_any_order_lie_inside(seed: int) -> None:
    generator, random = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    sizes, scale = [[3, 5, 3], [4, 6, 4, 3], [2, 9, 2]][seed % 3], [1.0, 1e3, 1e-3][seed // 2]
    module = nn.Sequential(nn.Flatten())
    for a, b in zip(sizes, sizes[1:]):
        layer = nn.Linear(a, b)
        layer.weight.data = torch.randn(b, a, generator=generator) * scale
        layer.bias.data = torch.randn(b, generator=generator) * scale
        module.extend([layer, nn.ReLU()])
    module = module[:-1]
    layers = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in module if isinstance(m, nn.Linear)]
    x = torch.rand(1, 1, 1, sizes[0], generator=generator)
    state = held(module, x, 0.02)
    numbers = [n for n, node in enumerate(state.network.nodes) if isinstance(node.op, ops.Linear)]
    for point in points(state, 8):
        flat = point.flatten().numpy()
        computed = [rounded(layers, flat, random, fused) for fused in (True, False, True, False)]
        for layer, number in enumerate(numbers):
            low, high = (getattr(state.intervals[number], end)[0].tolist() for end in ("low", "high"))
            for j, truth in enumerate(exact(layers, flat)[layer]):
                assert Fraction(low[j]) <= truth <= Fraction(high[j])
                for values in computed:
                    assert low[j] <= float(values[layer][j]) <= high[j]


def test_sums_stay_within_gamma_and_come_close_to_it() -> None:
    """One and many halves of its last place, added in a row: each is rounded away."""
    terms = np.array([1.0] + [2.0**-24] * 2999, dtype=np.float32)
    total = np.float32(0)
    for term in terms:
        total = np.float32(total + term)
    truth = sum(Fraction(float(t)) for t in terms)
    off = abs(Fraction(float(total)) - truth) / truth
    assert 0.99 * gamma(3000, SINGLE) < float(off) <= gamma(3000, SINGLE)
    assert gamma(2.0**30, SINGLE) == float("inf")


ACTIVATIONS = {
    "relu": ops.ReLU(),
    "leaky": ops.LeakyReLU(0.1),
    "clamp": ops.Clamp(-0.1, 0.7),
    "sigmoid": ops.Sigmoid(),
    "tanh": ops.Tanh(),
    "elu": ELU(1.3),
    "softplus": Softplus(),
    "sharp-softplus": Softplus(7.0),
    "gelu": GELU(),
    "gelu-tanh": GELU("tanh"),
    "silu": SiLU(),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_library_functions_are_as_accurate_as_taken_for_granted(name: str) -> None:
    """float32 values over all magnitudes against float64, whose own error is far smaller; contiguous or not, few or many."""
    op: Any = ACTIVATIONS[name]
    size = torch.logspace(-30, 1.95, 40_001)
    x = torch.cat([size, -size, torch.linspace(-30, 30, 50_001), torch.linspace(-1, 1, 20_001)])
    exact = op.forward(x.double())
    count, terms = next(RULES[kind] for kind in type(op).__mro__ if kind in RULES)(op, [x.double().abs()], exact.abs())
    allowed = gamma(count, SINGLE) * terms + (count + 1) * rounding.TINY
    ways = [op.forward(x), op.forward(x.view(-1, 1).expand(-1, 2))[:, 1], torch.cat([op.forward(part) for part in x[:3003].split(3)])]
    if name.endswith("softplus"):  # torch's own threshold
        ways.append(F.softplus(x, op.beta))
    if name == "silu":
        ways.append(x * torch.sigmoid(x))
    for found in ways:
        off = (found.double() - exact[: len(found)]).abs()
        assert bool((off <= allowed[: len(found)]).all()), float((off / allowed[: len(found)]).max())
    if count == rounding.LIBRARY:
        assert float((ways[0].double() - exact).abs().max()) > 0


@pytest.mark.parametrize(
    ("module", "shape", "most"),
    [
        (nn.AvgPool2d(2), (3, 6, 6), 4),
        (nn.AvgPool2d(3, 1, 1), (2, 5, 5), 9),
        (nn.AdaptiveAvgPool2d(2), (2, 5, 7), 12),
        (nn.AvgPool1d(3), (2, 9), 3),
    ],
)
def test_windows_of_averages_are_counted(module: nn.Module, shape: tuple[int, ...], most: int) -> None:
    assert window(ops.Average(module.forward), shape, torch.device("cpu")) == most
    over = ops.Average(lambda v: v.mean(dim=(1, 2)))
    assert window(over, (3, 4, 5), torch.device("cpu")) == 12


def test_batch_norm_that_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large mean taken off and a large bias added: the shift is small, its rounding is not."""
    norm = nn.BatchNorm2d(2)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.fill_(1e4)
    norm.running_var.fill_(0.37)
    nn.init.constant_(norm.bias, 1e4 / (0.37 + norm.eps) ** 0.5)
    last = nn.Linear(18, 3)
    nn.init.constant_(last.weight, 0.01)  # small, so that the tracer's own comparison is not upset by the rounding either
    module = nn.Sequential(norm, nn.Flatten(), last).eval()
    x = torch.rand(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))

    def inside() -> bool:
        found = held(module, x, 1e-7).intervals[1]
        with torch.no_grad():
            return bool((norm(x) >= found.low).all()) and bool((norm(x) <= found.high).all())

    assert inside()
    monkeypatch.setitem(RULES, ops.Scale, lambda op, sizes, result: (16, op.magnitude(*sizes) + op.shift.abs()))
    assert not inside()


def test_what_may_overflow_is_no_proof() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    for layer in (module[1], module[2]):
        nn.init.constant_(layer.weight, 1e20)
    x = torch.rand(2, 1, 2, 2)
    state = held(module, x, 0.1)
    assert state.errors is not None and bool(torch.isinf(state.errors[3]).all()) and not bool(torch.isfinite(module(x)).any())


def test_unknown_operations_are_named() -> None:
    class Odd(ops.Monotone):
        def forward(self, *inputs: Tensor) -> Tensor:
            return inputs[0]

    node = trace(nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(4, 2))).network((1, 2, 2)).nodes[2]
    with pytest.raises(BadInput, match="no rounding error is known for Odd .*rounding_rule, or leave out --sound"):
        rounding._rule(replace(node, op=Odd()))
    rounding.rounding_rule(Odd)(lambda op, sizes, result: (1, result))
    try:
        assert rounding._rule(replace(node, op=Odd())) is RULES[Odd]
    finally:
        del RULES[Odd]
