"""Backward bounds: below everything sampled, attacked or exactly optimised, and known figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.certify import backward, crown_margins, starts, trace
from robustkit.certify.region import Region

Made = tuple[nn.Module, tuple[int, ...]]
SLACK = 1e-9


def margins(module: nn.Module, x: Tensor, eps: float, norm: str, y: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        return crown_margins(trace(module), Region.around(x, eps, norm), y, **options)


# ---- soundness


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.04), ("linf", 0.4), ("l2", 0.3), ("l1", 0.8)])
def test_nothing_found_is_below_the_bounds(
    network: Made, norm: str, eps: float, least_found: Callable[..., Tensor], sample: Callable[..., Tensor]
) -> None:
    module, shape = network
    x = sample(shape)
    y = module(x).argmax(1)
    found = least_found(module, x, eps, norm, y)
    for options in ({}, {"slope": "same"}, {"slope": "zero"}, {"slope": "one"}, {"intermediate": "ibp"}):
        bound = margins(module, x, eps, norm, y, **options)
        assert bool((bound <= found + SLACK).all()), options


@pytest.mark.parametrize("name", ["linear", "two-linear"])
def test_linear_models_are_bounded_exactly(make_network: Callable[..., Made], name: str, sample: Callable[..., Tensor]) -> None:
    module, shape = make_network(name)
    x, y = sample(shape) * 0.5 + 0.25, torch.tensor([0, 1, 2, 3])
    zero = torch.zeros(1, *shape, dtype=torch.float64)
    weight = torch.autograd.functional.jacobian(lambda v: module(v)[0], zero).view(4, -1)
    clean = module(x).gather(1, y[:, None]) - module(x)
    for norm, dual in (("linf", 1), ("l2", 2), ("l1", torch.inf)):
        exact = clean - 0.1 * (weight[y].unsqueeze(1) - weight).norm(dual, dim=2)
        torch.testing.assert_close(margins(module, x, 0.1, norm, y), exact.detach(), atol=1e-9, rtol=1e-9)


def test_a_point_has_its_margins_as_bounds(network: Made, sample: Callable[..., Tensor]) -> None:
    module, shape = network
    x, y = sample(shape), torch.zeros(4, dtype=torch.int64)
    logits = module(x).detach()
    with torch.no_grad():
        found = crown_margins(trace(module), Region(x, x, x), y)
    torch.testing.assert_close(found, logits[:, :1] - logits, atol=1e-9, rtol=1e-9)


def dense_network(seed: int) -> tuple[nn.Sequential, list[tuple[np.ndarray, np.ndarray]], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [[3, 5, 3], [4, 6, 4, 3], [2, 4, 4, 3, 2]][seed % 3]
    module = nn.Sequential(nn.Flatten())
    for a, b in zip(sizes, sizes[1:]):
        layer = nn.Linear(a, b).double()
        layer.weight.data.copy_(torch.randn(b, a, generator=generator, dtype=torch.float64) / a**0.5)
        layer.bias.data.copy_(torch.randn(b, generator=generator, dtype=torch.float64) * 0.3)
        module.extend([layer, nn.ReLU()])
    layers = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in module if isinstance(m, nn.Linear)]
    return module[:-1], layers, torch.rand(1, 1, 1, sizes[0], generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(12))
def test_bounds_are_below_the_exact_minimum(seed: int, exact_minimum: Callable[..., float]) -> None:
    module, layers, x = dense_network(seed)
    inputs, y = Region.around(x, 0.2), torch.zeros(1, dtype=torch.int64)
    unit = np.eye(len(layers[-1][1]))
    for options in ({}, {"slope": "same"}, {"intermediate": "ibp"}):
        bound = margins(module, x, 0.2, "linf", y, **options)
        for j in range(1, len(unit)):
            minimum = exact_minimum(layers, inputs.low.flatten().numpy(), inputs.high.flatten().numpy(), unit[0] - unit[j])
            assert float(bound[0, j]) <= minimum + 1e-6


def test_one_hidden_layer_comes_close_to_the_exact_minimum(exact_minimum: Callable[..., float]) -> None:
    module, layers, x = dense_network(0)
    inputs, y, unit = Region.around(x, 0.02), torch.zeros(1, dtype=torch.int64), np.eye(3)
    exact = [exact_minimum(layers, inputs.low.flatten().numpy(), inputs.high.flatten().numpy(), unit[0] - unit[j]) for j in (1, 2)]
    assert margins(module, x, 0.02, "linf", y)[0, 1:].tolist() == pytest.approx(exact, abs=2e-3)


# ---- what is known about the bounds


@pytest.mark.parametrize("slope", ["zero", "one"])
@pytest.mark.parametrize("name", ["relu", "conv", "residual", "branches", "norms", "leaky"])
def test_a_larger_ball_never_has_a_larger_margin_with_fixed_slopes(
    make_network: Callable[..., Made], name: str, slope: str, sample: Callable[..., Tensor]
) -> None:
    module, shape = make_network(name)
    x, y = sample(shape), torch.zeros(4, dtype=torch.int64)
    found = [margins(module, x, eps, "linf", y, slope=slope) for eps in (0.0, 0.01, 0.03, 0.1, 0.2, 0.4)]
    assert all(bool((b <= a + SLACK).all()) for a, b in zip(found, found[1:]))


def test_smaller_balls_lie_in_larger_ones(network: Made, sample: Callable[..., Tensor]) -> None:
    """The l_1 ball lies in the l_2 ball and that in the l_inf ball; with fixed slopes the bounds say so."""
    module, shape = network
    x, y = sample(shape), torch.zeros(4, dtype=torch.int64)
    found = [margins(module, x, 0.1, norm, y).amin(1) for norm in ("linf", "l2", "l1")]
    assert float((found[1] - found[0]).mean()) >= -SLACK and float((found[2] - found[1]).mean()) >= -SLACK


def test_intervals_hold_what_neurons_do(network: Made, sample: Callable[..., Tensor]) -> None:
    module, shape = network
    x = sample(shape)
    inputs = Region.around(x, 0.15)
    with torch.no_grad():
        state = backward.prepare(trace(module).network(shape, torch.float64), inputs)
        backward.bound_nodes(state, "adaptive")
        loose = backward.prepare(state.network, inputs)
        backward.bound_nodes(loose, None)
        drawn = torch.rand(80, *x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        drawn[40:] = drawn[40:].round()
        for point in inputs.low + drawn * (inputs.high - inputs.low):
            values = [point]
            for node in state.network.nodes[1:]:
                values.append(node.op.forward(*(values[i] for i in node.inputs)))
            for number, value in enumerate(values):
                low, high = state.intervals[number].low, state.intervals[number].high
                assert bool((value >= low - SLACK).all()) and bool((value <= high + SLACK).all())
    for number, found in state.intervals.items():
        assert bool((found.width <= loose.intervals[number].width + SLACK).all())


@pytest.mark.parametrize("name", ["conv", "residual", "functional", "pools", "branches", "transposed"])
def test_memory_changes_nothing(
    make_network: Callable[..., Made], name: str, monkeypatch: pytest.MonkeyPatch, sample: Callable[..., Tensor]
) -> None:
    module, shape = make_network(name)
    x, y = sample(shape), torch.zeros(4, dtype=torch.int64)
    whole = margins(module, x, 0.2, "linf", y)
    monkeypatch.setattr(starts, "CACHED", 1)
    torch.testing.assert_close(margins(module, x, 0.2, "linf", y), whole, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "slope"), [("norms", "adaptive"), ("residual", "adaptive"), ("strides", "same"), ("functional", "same"), ("gelu", "same")]
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_gradients_agree_with_finite_differences(
    make_network: Callable[..., Made], name: str, slope: str, norm: str, sample: Callable[..., Tensor]
) -> None:
    module, shape = make_network(name)
    graph, x, y = trace(module), sample(shape, 3) * 0.8 + 0.1, torch.tensor([0, 1, 2])
    factors = torch.rand(3, graph.network(shape, torch.float64).classes, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

    def value() -> Tensor:
        return (crown_margins(graph, Region.around(x, 0.03, norm), y, slope=slope) * factors).sum()

    value().backward()  # type: ignore[no-untyped-call]
    for parameter in module.parameters():
        if parameter.grad is None:  # the last bias cancels where logits are compared
            continue
        with torch.no_grad():
            direction = torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
            expected = float((parameter.grad * direction).sum())
            ends = []
            for sign in (1, -1):
                parameter.add_(sign * 1e-6 * direction)
                ends.append(value().item())
                parameter.sub_(sign * 1e-6 * direction)
        assert expected == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-3, abs=1e-4)


def test_margins_follow_training() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2))
    x = torch.rand(64, 1, 4, 4)
    y = (x.flatten(1)[:, :8].sum(1) > x.flatten(1)[:, 8:].sum(1)).long()
    graph, optimiser, losses = trace(module), torch.optim.Adam(module.parameters(), 0.02), []
    for _ in range(50):
        loss = F.cross_entropy(-crown_margins(graph, Region.around(x, 0.01), y, intermediate="ibp"), y)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
