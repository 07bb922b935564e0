"""Interval bounds: exact on linear models, textbook on sequential ones, never crossed, differentiable."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkit.certify import interval, trace
from robustkit.certify.interval import Ball, box, interval_logits, interval_margins, worst_logits

Made = tuple[nn.Module, tuple[int, ...]]
SLACK = 1e-9


def points(low: Tensor, high: Tensor, count: int) -> Tensor:
    """Random points and corners of each sample's box: (count, N, ...)."""
    draws = torch.rand(count, *low.shape, dtype=low.dtype, generator=torch.Generator().manual_seed(1))
    draws[count // 2 :] = (draws[count // 2 :] > 0.5).to(low.dtype)
    return low + draws * (high - low)


def descend(module: nn.Module, low: Tensor, high: Tensor, c: Tensor, steps: int = 25) -> Tensor:
    """The least c . logits that projected sign gradient descent finds within each sample's box.

    low, high: (N, ...); c: (G,N,K). Returns (G,N).
    """
    goals = c.flatten(0, 1)
    low, high = (end.repeat(len(c), *[1] * (end.dim() - 1)) for end in (low, high))
    x = ((low + high) / 2).requires_grad_()
    for step in range(steps):
        (gradient,) = torch.autograd.grad((module(x) * goals).sum(), x)
        length = (high - low) * (0.5 if step == 0 else 2.0 / (step + 2))
        x = torch.minimum(torch.maximum(x.detach() - length * gradient.sign(), low), high).requires_grad_()
    return (module(x).detach() * goals).sum(1).view(c.shape[:2])


def sample(shape: tuple[int, ...], count: int = 6) -> Tensor:
    return torch.rand(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("eps", [0.003, 0.05, 0.4])
def test_bounds_contain_sampled_and_attacked_outputs(network: Made, eps: float) -> None:
    module, shape = network
    x = sample(shape)
    low, high = box(x, eps)
    graph = trace(module)
    with torch.no_grad():
        lower, upper = interval_logits(graph, low, high)
        y = module(x).argmax(1)
        margins = interval_margins(graph, low, high, y)
        assert bool((lower <= upper + SLACK).all())
    for logits in [module(p).detach() for p in points(low, high, 60)]:
        assert bool((logits >= lower - SLACK).all()) and bool((logits <= upper + SLACK).all())
        assert bool((logits.gather(1, y[:, None]) - logits >= margins - SLACK).all())
    unit = torch.eye(lower.shape[1], dtype=torch.float64)
    each = unit.unsqueeze(1).expand(-1, len(x), -1)
    assert bool((descend(module, low, high, each).T >= lower - SLACK).all())
    assert bool((-descend(module, low, high, -each).T <= upper + SLACK).all())
    assert bool((descend(module, low, high, unit[y] - each).T >= margins - SLACK).all())


def test_a_point_has_its_logits_as_bounds(network: Made) -> None:
    module, shape = network
    x = sample(shape)
    with torch.no_grad():
        lower, upper = interval_logits(trace(module), x, x)
        torch.testing.assert_close(lower, module(x), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(upper, module(x), rtol=1e-9, atol=1e-9)


def test_with_gradients_on_the_same_bounds_come_out(network: Made) -> None:
    module, shape = network
    low, high = box(sample(shape), 0.1)
    y = torch.zeros(len(low), dtype=torch.int64)
    recorded = interval_margins(trace(module), low, high, y)
    with torch.no_grad():
        overwritten = interval_margins(trace(module), low, high, y)
    torch.testing.assert_close(recorded.detach(), overwritten, rtol=1e-12, atol=1e-12)
    assert recorded.requires_grad


def test_a_larger_ball_never_has_a_larger_margin(network: Made) -> None:
    module, shape = network
    x, y = sample(shape), torch.zeros(6, dtype=torch.int64)
    with torch.no_grad():
        found = [interval_margins(trace(module), *box(x, eps), y) for eps in (0.0, 0.01, 0.1, 0.3, 1.0)]
    assert all(bool((b <= a + SLACK).all()) for a, b in zip(found, found[1:]))


def textbook(module: nn.Sequential, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """W+ l + W- u + b and W+ u + W- l + b, layer by layer."""
    for layer in module:
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            plus, minus = layer.weight.clamp(min=0), layer.weight.clamp(max=0)

            def run(weight: Tensor, value: Tensor, layer: nn.Module = layer) -> Tensor:
                zero = {"bias": torch.zeros_like(layer.bias)}  # type: ignore[arg-type]
                return torch.func.functional_call(layer, {"weight": weight, **zero}, (value,))

            bias = layer.bias.view(-1, *[1] * (low.dim() - 2)) if isinstance(layer, nn.Conv2d) else layer.bias
            low, high = run(plus, low) + run(minus, high) + bias, run(plus, high) + run(minus, low) + bias
        else:
            low, high = layer(low), layer(high)
    return low, high


@pytest.mark.parametrize("name", ["linear", "relu", "sigmoid", "leaky", "tanh-last", "conv", "pools"])
def test_bounds_are_the_textbook_ones(make_network: Callable[..., Made], name: str) -> None:
    module, shape = make_network(name)
    assert isinstance(module, nn.Sequential)
    low, high = box(sample(shape), 0.07)
    with torch.no_grad():
        for ours, theirs in zip(interval_logits(trace(module), low, high), textbook(module, low, high)):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_linear_margins_are_exact(make_network: Callable[..., Made]) -> None:
    module, shape = make_network("linear")
    x, y = sample(shape) * 0.5 + 0.25, torch.tensor([0, 1, 2, 3, 0, 1])
    weight = module[1].weight.detach()  # type: ignore[index]
    spread = weight[y].unsqueeze(1) - weight
    with torch.no_grad():
        logits = module(x)
        clean = logits.gather(1, y[:, None]) - logits
        found = interval_margins(trace(module), *box(x, 0.2), y)
        torch.testing.assert_close(found, clean - 0.2 * spread.abs().sum(2), rtol=1e-7, atol=1e-7)
        ball = Ball(x, torch.ones_like(x[:1]), torch.full((6,), 0.2, dtype=torch.float64))
        found = interval_margins(trace(module), *box(x, 0.2), y, ball)
        torch.testing.assert_close(found, clean - 0.2 * spread.square().sum(2).sqrt(), rtol=1e-7, atol=1e-7)


def test_merging_the_specification_is_tighter_than_bounding_the_logits(make_network: Callable[..., Made]) -> None:
    module, shape = make_network("relu")
    low, high = box(sample(shape), 0.1)
    y = torch.zeros(6, dtype=torch.int64)
    with torch.no_grad():
        merged = interval_margins(trace(module), low, high, y)
        lower, upper = interval_logits(trace(module), low, high)
    assert bool((merged[:, 1:] > (lower[:, :1] - upper)[:, 1:] + 1e-3).any(1).all())
    assert bool((merged[:, 1:] >= (lower[:, :1] - upper)[:, 1:] - SLACK).all())
    assert bool((merged[:, 0] == 0).all())


def test_specifications_in_pieces_are_the_same(make_network: Callable[..., Made], monkeypatch: pytest.MonkeyPatch) -> None:
    module, shape = make_network("conv")
    low, high = box(sample(shape), 0.1)
    y = torch.tensor([0, 1, 2, 3, 4, 0])
    with torch.no_grad():
        whole = interval_margins(trace(module), low, high, y)
        monkeypatch.setattr(interval, "PAIRS", 0)
        torch.testing.assert_close(interval_margins(trace(module), low, high, y), whole, rtol=1e-12, atol=1e-12)
        monkeypatch.setattr(interval, "CHUNK", 2 * 54 * 5)
        torch.testing.assert_close(interval_margins(trace(module), low, high, y), whole, rtol=1e-12, atol=1e-12)


def test_the_ball_is_exact_for_a_padded_convolution() -> None:
    layer = nn.Conv2d(2, 3, 3, stride=2, padding=1).double()
    module, mean, std = nn.Sequential(layer, nn.Flatten()), torch.tensor([0.2, 0.4]), torch.tensor([0.5, 0.25])
    x = torch.full((1, 2, 5, 5), 0.5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: module((v - mean.view(2, 1, 1)) / std.view(2, 1, 1))[0], x).flatten(1)
    y = torch.zeros(1, dtype=torch.int64)
    graph = trace(module, mean=mean, std=std)
    with torch.no_grad():
        logits = graph.network((2, 5, 5), torch.float64).forward(x)
        ball = Ball(x, torch.ones_like(x[:1]), torch.full((1,), 0.3, dtype=torch.float64))
        found = interval_margins(graph, *box(x, 0.3), y, ball)
        reach = 0.3 * jacobian.norm(dim=1)
        # no fully connected last layer: the ends of the logits' intervals are subtracted
        torch.testing.assert_close(found[:, 1:], ((logits[:, :1] - reach[0]) - (logits + reach))[:, 1:], rtol=1e-6, atol=1e-6)


def test_bounds_over_the_ball_contain_its_points(network: Made) -> None:
    module, shape = network
    x, y, generator = sample(shape), torch.zeros(6, dtype=torch.int64), torch.Generator().manual_seed(5)
    radius = 0.3
    ball = Ball(x, torch.ones_like(x[:1]), torch.full((6,), radius, dtype=torch.float64))
    with torch.no_grad():
        margins = interval_margins(trace(module), *box(x, radius), y, ball)
        assert bool((margins >= interval_margins(trace(module), *box(x, radius), y) - SLACK).all())
    for attempt in range(80):
        p = torch.randn(x.shape, dtype=torch.float64, generator=generator)
        if attempt % 2:
            leaf = x.clone().requires_grad_()
            logits = module(leaf)
            (p,) = torch.autograd.grad((logits[:, attempt // 2 % logits.shape[1]] - logits[:, 0]).sum(), leaf)
            p = p + 1e-9
        point = (x + radius * p / p.flatten(1).norm(dim=1).view(-1, *[1] * len(shape))).clamp(0, 1)
        logits = module(point).detach()
        assert bool((logits[:, :1] - logits >= margins - SLACK).all())


def test_the_box_is_clipped_and_rounded_outward() -> None:
    x = torch.tensor([[0.0, 0.1, 0.3, 0.95, 1.0]])
    low, high = box(x, 0.1)
    assert float(low.min()) == 0 and float(high.max()) == 1
    inside = (low > 0) & (high < 1)
    assert bool(inside.any())
    for dtype, eps in ((torch.float32, 0.1), (torch.float32, 1 / 3), (torch.float64, 1 / 3), (torch.float32, 1e-9)):
        values = torch.rand(1, 1000, dtype=dtype, generator=torch.Generator().manual_seed(3)) * 0.2 + 0.4
        low, high = box(values, eps)
        for value, below, above in zip(values[0].tolist(), low[0].tolist(), high[0].tolist()):
            assert Fraction(below) <= Fraction(value) - Fraction(eps)
            assert Fraction(above) >= Fraction(value) + Fraction(eps)
    each = box(torch.full((2, 3), 0.5), torch.tensor([0.1, 0.2], dtype=torch.float64))
    assert bool((each[1][0] < each[1][1]).all())
    assert bool(torch.isnan(box(x, -0.1)[0]).all())


def test_clipping_matters(make_network: Callable[..., Made]) -> None:
    module, shape = make_network("relu")
    x, y = sample(shape).round(), torch.zeros(6, dtype=torch.int64)
    with torch.no_grad():
        clipped = interval_margins(trace(module), *box(x, 0.2), y)
        unclipped = interval_margins(trace(module), x - 0.2, x + 0.2, y)
    assert bool((clipped[:, 1:] > unclipped[:, 1:] + 1e-6).all())


@pytest.mark.parametrize("name", ["norms", "residual", "functional", "pools", "sigmoid"])
def test_gradients_agree_with_finite_differences(make_network: Callable[..., Made], name: str) -> None:
    module, shape = make_network(name)
    graph, x, y = trace(module), sample(shape, 3), torch.tensor([0, 1, 2])
    factors = torch.rand(3, graph.network(shape, torch.float64).classes, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

    def value() -> Tensor:
        return (worst_logits(graph, x, y, 0.02) * factors).sum()

    value().backward()
    for parameter in module.parameters():
        assert parameter.grad is not None
        with torch.no_grad():
            direction = torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
            expected = float((parameter.grad * direction).sum())
            ends = []
            for sign in (1, -1):
                parameter.add_(sign * 1e-6 * direction)
                ends.append(value().item())
                parameter.sub_(sign * 1e-6 * direction)
        assert expected == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-5)


def test_worst_logits_follow_training() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    x = torch.rand(64, 1, 4, 4)
    y = (x.flatten(1)[:, :8].sum(1) > x.flatten(1)[:, 8:].sum(1)).long()
    graph, optimiser, losses = trace(module), torch.optim.Adam(module.parameters(), 0.02), []
    for _ in range(60):
        loss = nn.functional.cross_entropy(worst_logits(graph, x, y, 0.01), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        assert torch.equal(worst_logits(graph, x, y, 0.01), worst_logits(trace(module), x, y, 0.01))


@pytest.mark.parametrize("seed", range(12))
def test_bounds_contain_the_exact_range(seed: int, exact_minimum: Callable[..., float]) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = [[3, 5, 3], [4, 6, 4, 3], [2, 4, 4, 3, 2]][seed % 3]
    module = nn.Sequential(nn.Flatten())
    for a, b in zip(sizes, sizes[1:]):
        layer = nn.Linear(a, b).double()
        layer.weight.data.copy_(torch.randn(b, a, generator=generator, dtype=torch.float64) / a**0.5)
        layer.bias.data.copy_(torch.randn(b, generator=generator, dtype=torch.float64) * 0.3)
        module.extend([layer, nn.ReLU()])
    module = module[:-1]
    layers = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in module if isinstance(m, nn.Linear)]
    x = torch.rand(1, 1, 1, sizes[0], generator=generator, dtype=torch.float64)
    low, high = box(x, 0.2)
    y = torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        lower, upper = interval_logits(trace(module), low, high)
        margins = interval_margins(trace(module), low, high, y)
        reached = torch.stack([module(p)[0] for p in points(low, high, 200)]).numpy()
    unit = np.eye(sizes[-1])
    for j in range(sizes[-1]):
        for c, bound in ((unit[j], lower[0, j]), (-unit[j], -upper[0, j]), (unit[0] - unit[j], margins[0, j])):
            minimum = exact_minimum(layers, low.flatten().numpy(), high.flatten().numpy(), c)
            assert float(bound) <= minimum + 1e-6
            assert minimum <= (reached @ c).min() + 1e-6
