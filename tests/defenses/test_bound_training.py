"""The start and the regulariser that recipes of certified training share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustkit.certify import interval_margins, trace
from robustkit.certify.interval import box
from robustkit.data import Data
from robustkit.defenses import IntervalTraining, Minibatch, load_recipe
from robustkit.defenses.bound_balance import imbalance
from robustkit.defenses.bound_start import start_tight
from robustkit.defenses.bound_training import intervals, margins_after
from robustkit.errors import BadInput
from robustkit.models import architecture_text, build

Quick = Callable[..., Any]

DEEP = "flatten-" + "".join(f"linear({i},256)-relu-" for i in (64, 256, 256, 256, 256)) + "linear(256,10)"


@pytest.fixture
def batch(digits: Data) -> Minibatch:
    return Minibatch(digits.x, digits.y, digits.index, digits.index, 0.0)


def gains(network: nn.Module, x: Tensor) -> list[float]:
    """Mean width in front of each ReLU over that in front of the one before; the first over the image's."""
    with torch.no_grad():
        state = intervals(trace(network).network(tuple(x.shape[1:])), x, 0.05)
    before = [0] + [node.inputs[0] for node in state.network.nodes if type(node.op).__name__ == "ReLU"]
    widths = [float(state.intervals[number].width.mean()) for number in before]
    return [after / first for first, after in zip(widths, widths[1:])]


def test_with_the_tight_start_widths_stay_as_they_are_from_layer_to_layer(digits: Data) -> None:
    network = build(DEEP)
    assert min(gains(network, digits.x)[1:]) > 3, "PyTorch's start explodes"
    start_tight(network, 0)
    first, *others = gains(network, digits.x)
    assert first == pytest.approx(2, rel=0.1), "no ReLU halves the width of the image"
    assert others == pytest.approx([1] * 4, rel=0.15)


def test_the_tight_start_draws_normal_weights_of_the_papers_width_and_leaves_the_last_layer() -> None:
    text = architecture_text("wong-small", (1, 28, 28), 10)
    network, usual = build(text), build(text)
    start_tight(network, 0)
    for at, inputs in ((0, 16), (2, 256), (5, 1568)):
        weight = network[at].weight.detach()
        near = pytest.approx((2 * torch.pi) ** 0.5 / inputs, rel=3 / (2 * weight.numel()) ** 0.5)
        assert float(weight.std()) == near
        assert abs(float(weight.mean())) < 4 * float(weight.std()) / weight.numel() ** 0.5
        assert torch.equal(network[at].bias, usual[at].bias)
    assert torch.equal(network[7].weight, usual[7].weight)
    again, other = build(text), build(text)
    start_tight(again, 0)
    start_tight(other, 1)
    assert torch.equal(again[2].weight, network[2].weight)
    assert not torch.equal(other[2].weight, network[2].weight)


def test_a_recipe_starts_where_it_says(quick: Quick, weights: Callable[..., dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IntervalTraining, "rate", lambda self, progress: 0.0)
    tight, usual = weights(quick("ibp:epochs=1,start=tight", "tight.safetensors")), weights(quick("ibp:epochs=1", "usual.safetensors"))
    text = architecture_text("digits-cnn", (1, 8, 8), 10)
    expected = build(text)
    assert all(torch.equal(usual[name], value) for name, value in expected.state_dict().items())
    start_tight(expected, 0)
    assert all(torch.equal(tight[name], value) for name, value in expected.state_dict().items())


def test_the_regulariser_is_what_a_hand_computes() -> None:
    """Centres 4, -0.5 and 0, half widths 0.8, 0.1 and 0.1 of an active, an inactive and an open neuron; the image's is 0.1."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[8.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))
        network[1].bias.copy_(torch.tensor([0.0, 0.0, -0.5]))
    state = intervals(trace(network).network((1, 1, 2)), torch.full((4, 1, 1, 2), 0.5), 0.1)
    tightness = (0.5 - 0.1 / (1 / 3)) / 0.5
    balance = ((0.5 - 0.5 / 4) + (0.5 - (5 / 3) ** 2 / (17 / 6) ** 2)) / 0.5
    assert float(imbalance(state, 0.5).detach()) == pytest.approx(tightness + balance, rel=1e-5)
    assert float(imbalance(state, 0.25).detach()) == pytest.approx((0.25 - 0.125) / 0.25, rel=1e-4), (
        "tight enough, only the means are out of balance"
    )


def slow(network: nn.Sequential, x: Tensor, eps: float, tolerance: float) -> float:
    """The two terms in plain numbers, for a chain of fully connected layers: ends of all values are lists over images and neurons."""
    low, high = ([[min(1.0, max(0.0, v + move)) for v in row] for row in x.flatten(1).tolist()] for move in (-eps, eps))
    image, terms = sum(sum(b) - sum(a) for a, b in zip(low, high)) / x.numel(), []
    for layer in network:
        if isinstance(layer, nn.Linear):
            rows, both = list(zip(layer.weight.tolist(), layer.bias.tolist())), list(zip(low, high))
            low = [[s + sum(min(w * u, w * v) for w, u, v in zip(row, a, b)) for row, s in rows] for a, b in both]
            high = [[s + sum(max(w * u, w * v) for w, u, v in zip(row, a, b)) for row, s in rows] for a, b in both]
        if isinstance(layer, nn.ReLU):
            ends = [(u, v) for a, b in zip(low, high) for u, v in zip(a, b)]
            middle, width = (sum(u + v for u, v in ends) / 2 / len(ends), sum(v - u for u, v in ends) / len(ends))
            active, inactive = ([(u + v) / 2 for u, v in ends if u > 0], [(u + v) / 2 for u, v in ends if v < 0])
            means = sum(active) / -sum(inactive)
            spreads = sum((c - middle) ** 2 for c in active) / sum((c - middle) ** 2 for c in inactive)
            for ratio in (image / width, min(means, 1 / means), min(spreads, 1 / spreads)):
                terms.append(max(0.0, tolerance - ratio))
            low, high = ([[max(0.0, v) for v in row] for row in rows] for rows in (low, high))
    return sum(terms) / (len(terms) / 3) / tolerance


@pytest.mark.parametrize("tolerance", [0.5, 1.0])
def test_the_regulariser_of_a_deeper_network_neuron_by_neuron(digits: Data, tolerance: float) -> None:
    network = build("flatten-linear(64,9)-relu-linear(9,8)-relu-linear(8,10)", seed=3)
    x = digits.x[:6]
    state = intervals(trace(network).network((1, 8, 8)), x, 0.004)
    assert float(imbalance(state, tolerance).detach()) == pytest.approx(slow(network, x, 0.004, tolerance), rel=1e-4)


def test_the_regulariser_balances_and_tightens_when_it_is_descended(digits: Data) -> None:
    network = build("flatten-linear(64,64)-relu-linear(64,64)-relu-linear(64,10)")
    graph, optimizer, values = trace(network), torch.optim.Adam(network.parameters(), lr=0.003), []
    for _ in range(120):
        value = imbalance(intervals(graph.network((1, 8, 8)), digits.x[:64], 0.02), 0.5)
        values.append(float(value.detach()))
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert values[0] > 0.6
    assert values[-1] < 0.1
    assert all(bool(torch.isfinite(p).all()) for p in network.parameters())


def test_without_relus_or_without_active_neurons_nothing_breaks(digits: Data) -> None:
    plain = build("flatten-linear(64,10)")
    assert float(imbalance(intervals(trace(plain).network((1, 8, 8)), digits.x, 0.1), 0.5).detach()) == 0
    dead = build("flatten-linear(64,8)-relu-linear(8,10)")
    with torch.no_grad():
        dead[1].bias.fill_(-100.0)
    value = imbalance(intervals(trace(dead).network((1, 8, 8)), digits.x, 0.1), 0.5)
    value.backward()  # type: ignore[no-untyped-call]
    assert 0 <= float(value.detach()) <= 1
    assert dead[1].weight.grad is not None and bool(torch.isfinite(dead[1].weight.grad).all())


@pytest.mark.parametrize("text", ["flatten-linear(64,9)-relu-linear(9,10)", "conv(1,4,3,s2)-bn(4)-relu-flatten-linear(36,10)-relu"])
def test_margins_from_known_intervals_are_those_of_the_whole_network(digits: Data, text: str) -> None:
    seen = trace(build(text)).network((1, 8, 8))
    whole = interval_margins(seen, *box(digits.x, 0.05), digits.y)
    torch.testing.assert_close(margins_after(intervals(seen, digits.x, 0.05), digits.y), whole, rtol=1e-5, atol=1e-5)


def test_the_regulariser_fades_as_the_budget_grows(batch: Minibatch) -> None:
    network = build(architecture_text("digits-cnn", (1, 8, 8), 10))
    plain, more = (IntervalTraining(warmup=0.1, rise=0.5, regularise=weight).bind(network) for weight in (0.0, 0.4))

    def weighed(progress: float, eps: float) -> Tensor:
        at = replace(batch, progress=progress)
        value = imbalance(intervals(trace(network).network((1, 8, 8)), batch.x, eps), 0.5)
        assert float(value.detach()) > 0.1
        return (more(at) - plain(at)) / value

    torch.testing.assert_close(weighed(0.05, 0.15 / 1000), torch.tensor(0.4), rtol=1e-3, atol=0.0)
    torch.testing.assert_close(weighed(0.3, 0.075), torch.tensor(0.2), rtol=1e-3, atol=0.0)
    torch.testing.assert_close(more(replace(batch, progress=0.6)), plain(replace(batch, progress=0.6)))


def test_batch_norm_bounds_use_what_the_minibatch_left(digits: Data) -> None:
    network = build("conv(1,4,3,s2)-bn(4)-relu-flatten-linear(36,10)").train()
    batch = Minibatch(digits.x, digits.y, digits.index, digits.index, 0.5)
    before = network[1].running_mean.clone()
    found = IntervalTraining(eps=0.1, kappa=0.5, rise=0.5).bind(network)(batch)  # type: ignore[arg-type]
    assert not torch.equal(network[1].running_mean, before)
    worst = -interval_margins(trace(network), *box(digits.x, 0.1), digits.y)
    expected = 0.5 * functional.cross_entropy(network(digits.x), digits.y) + 0.5 * functional.cross_entropy(worst, digits.y)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ibp:start=loose", "start"),
        ("ibp:regularise=-1", "regularise = -1.0: expected a weight of at least 0"),
        ("ibp:regularise=nan", "regularise"),
        ("ibp:tolerance=0", "tolerance = 0.0: expected a ratio above 0 and at most 1"),
        ("crown-ibp:beta=1.5", "beta = 1.5: expected a share from 0 to 1"),
        ("crown-ibp:slope=zero", "slope"),
        ("crown-ibp:kappa=-0.1", "kappa = -0.1"),
        ("crown-ibp:eps=0", "eps = 0"),
        ("crown-ibp:betta=1", "did you mean 'beta'"),
    ],
)
def test_bad_values_are_one_clear_line(text: str, says: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_recipe(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
