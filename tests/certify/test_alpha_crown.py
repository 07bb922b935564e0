"""alpha-CROWN: sound, never worse than its start, better where that is known, whatever memory and order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkit import load_data, load_model, registry
from robustkit.certify import AlphaCrown, Crown, Region, backward, optimise, trace
from robustkit.certify.interval import Interval
from robustkit.certify.optimise import Ascent
from robustkit.certify.starts import BUDGET, other_classes
from robustkit.classifier import Classifier
from robustkit.errors import BadInput
from robustkit.threats import L2, Linf

Made = tuple[nn.Module, tuple[int, ...]]
SLACK = 1e-9


def started(module: nn.Module, x: Tensor, eps: float, norm: str, y: Tensor) -> tuple[Any, Tensor, Tensor]:
    """A state with CROWN's intervals, all other classes, and CROWN's margins."""
    with torch.no_grad():
        network = trace(module).network(tuple(x.shape[1:]), x.dtype, copy=True)
        state = backward.prepare(network, Region.around(x, eps, norm))
        backward.bound_nodes(state, "adaptive")
        others = other_classes(y, network.classes)
        return state, others, backward.bound_margins(state, y, others, state.relax("adaptive"))


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("linf", 0.3), ("l2", 0.4), ("l1", 1.0)])
def test_sound_and_never_worse_than_the_start(
    network: Made, norm: str, eps: float, least_found: Callable[..., Tensor], sample: Callable[..., Tensor]
) -> None:
    module, shape = network
    x = sample(shape, corners=False)
    y = module(x).argmax(1)
    state, others, margins = started(module, x, eps, norm, y)
    found = least_found(module, x, eps, norm, y).gather(1, others)
    still = torch.minimum(margins, torch.tensor(0.0))  # nothing counts as verified, so that all are optimised
    for hidden in (False, True):
        ascent = Ascent(state.pick(torch.arange(4)), y, others, still, hidden)
        for _ in range(4):
            ascent.step(0.2)
        assert bool((ascent.best <= torch.maximum(found, still) + SLACK).all())
        assert bool((ascent.best >= still).all())
        for number, interval in ascent.state.intervals.items():
            assert bool((interval.width <= state.intervals[number].width + SLACK).all())


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("name", ["relu", "conv", "strides", "residual", "leaky", "sigmoid", "gelu", "functional", "branches"])
def test_intervals_and_margins_hold_at_points(
    make_network: Callable[..., Made], name: str, own: bool, sample: Callable[..., Tensor]
) -> None:
    module, shape = make_network(name)
    x = sample(shape, corners=False)
    y = module(x).argmax(1)
    state, others, margins = started(module, x, 0.3, "linf", y)
    ascent = Ascent(state, y, others, torch.full_like(margins, -torch.inf), True, own)
    first = ascent.bound().detach()
    for _ in range(8):
        ascent.step(0.3)
    torch.testing.assert_close(first, torch.maximum(first, margins), atol=1e-9, rtol=1e-9)  # it starts where CROWN ended
    assert bool((ascent.best >= margins - SLACK).all())
    drawn = torch.rand(60, *x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    drawn[30:] = drawn[30:].round()
    region = state.region
    with torch.no_grad():
        for point in region.low + drawn * (region.high - region.low):
            values = [point]
            for node in state.network.nodes[1:]:
                values.append(node.op.forward(*(values[i] for i in node.inputs)))
            for number, value in enumerate(values):
                low, high = ascent.state.intervals[number].low, ascent.state.intervals[number].high
                assert bool((value >= low - SLACK).all()) and bool((value <= high + SLACK).all())
            assert bool((ascent.best <= values[-1].gather(1, y[:, None]) - values[-1].gather(1, others) + SLACK).all())


@pytest.mark.parametrize("seed", range(4))
def test_comes_closer_to_the_exact_minimum(seed: int, exact_minimum: Callable[..., float]) -> None:
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 1.5)
    layers = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in module if isinstance(m, nn.Linear)]
    x, y = torch.rand(1, 1, 1, 3, generator=generator, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    state, others, margins = started(module, x, 0.3, "linf", y)
    exact = exact_minimum(layers, state.region.low.flatten().numpy(), state.region.high.flatten().numpy(), np.array([1.0, -1.0]))
    opened = torch.minimum(margins, torch.full_like(margins, -1e-9)) - 100  # never verified
    found = []
    for hidden in (False, True):
        ascent = Ascent(state.pick(torch.arange(1)), y, others, opened, hidden)
        for _ in range(40):
            ascent.best = opened
            ascent.step(0.1)
            found.append((hidden, float(ascent.best)))
    best = {hidden: max(v for h, v in found if h == hidden) for hidden in (False, True)}
    assert float(margins) - SLACK <= best[False] <= exact + 1e-6 and best[False] - 1e-3 <= best[True] <= exact + 1e-6


@pytest.mark.parametrize("name", ["conv", "residual", "sigmoid"])
def test_memory_changes_hardly_anything(
    make_network: Callable[..., Made], name: str, monkeypatch: pytest.MonkeyPatch, sample: Callable[..., Tensor]
) -> None:
    """With less memory samples are worked on alone and slopes are shared: other numbers, sound all the same."""
    module, shape = make_network(name)
    x = sample(shape, corners=False)
    y = module(x).argmax(1)
    state, others, margins = started(module, x, 0.3, "linf", y)
    shifted = margins - 5.0 - margins.amax()  # all open
    monkeypatch.setattr(optimise, "EVERY", 2)

    def run(budget: int) -> Tensor:
        rows = torch.arange(4)
        return optimise.optimise(state.pick(rows), y, others, shifted, steps=6, rate=0.1, hidden=True, budget=budget)

    whole = run(BUDGET)
    each = run(1 << 19)
    assert bool((whole >= shifted.amin(1)).all())
    torch.testing.assert_close(each, whole, atol=0.05, rtol=0.05)
    monkeypatch.setattr(optimise, "BUDGET", 1 << 14)
    assert bool((run(1) >= margins.amin(1) - SLACK).all())


def test_dropping_changes_no_other_sample(make_network: Callable[..., Made], sample: Callable[..., Tensor]) -> None:
    module, shape = make_network("strides")
    x = sample(shape, corners=False)
    y = module(x).argmax(1)
    state, others, margins = started(module, x, 0.3, "linf", y)
    opened = margins - 5.0 - margins.amax()
    kept, whole = (Ascent(state.pick(torch.arange(4)), y, others, opened, True) for _ in range(2))
    for ascent in (kept, whole):
        ascent.step(0.1)
    kept.drop(torch.tensor([0, 3]))
    for ascent in (kept, whole):
        ascent.step(0.1)
    torch.testing.assert_close(kept.best, whole.best[[0, 3]], atol=1e-10, rtol=1e-10)


# ---- bugs must show


def test_slopes_outside_of_the_relaxation_are_never_used(
    make_network: Callable[..., Made], monkeypatch: pytest.MonkeyPatch, sample: Callable[..., Tensor]
) -> None:
    module, shape = make_network("leaky")
    x = sample(shape, corners=False)
    y = module(x).argmax(1)
    state, others, margins = started(module, x, 0.3, "linf", y)
    ascent = Ascent(state, y, others, margins - 100, True)
    sound = ascent.bound().detach()

    def plant() -> None:
        with torch.no_grad():
            for slopes in ascent.slopes.values():
                slopes.add_(torch.where(slopes > 0.5, 7.0, -7.0))

    plant()
    torch.testing.assert_close(ascent.bound().detach(), sound)
    monkeypatch.setattr(optimise.Own, "pull", _unclamped)
    plant()
    assert float((ascent.bound().detach() - sound).abs().max()) > 0.1


def _unclamped(self: Any, form: Any, inputs: Any, result: Any, groups: Any) -> Any:
    rows = form.rows(groups)
    loose, stable, upper, gap, before, after = form.spread(self.fixed, groups).unbind(2)
    lower = rows.clamp(min=0) * (stable + loose * self.slopes[self.key])
    constant = (lower * before - rows.clamp(min=0) * after + rows.clamp(max=0) * gap).sum(2)
    return [form.like(lower + rows.clamp(max=0) * upper)], constant


@pytest.mark.parametrize("bug", ["stale intervals", "gap lost", "intervals not negated"])
def test_bugs_are_caught(
    bug: str,
    make_network: Callable[..., Made],
    least_found: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
    sample: Callable[..., Tensor],
) -> None:
    module, shape = make_network("conv")
    x = sample(shape, corners=False) * 0.6 + 0.2
    y = module(x).argmax(1)
    state, others, margins = started(module, x, 0.3, "linf", y)
    if bug == "stale intervals":  # of a smaller ball
        smaller, _, _ = started(module, x, 0.02, "linf", y)
        state.intervals = dict(smaller.intervals)
    elif bug == "gap lost":
        made = optimise._owned

        def wrong(*arguments: Any) -> Any:
            own = made(*arguments)
            own.fixed = own.fixed.clone()
            own.fixed[:, :, 3] = 0
            return own

        monkeypatch.setattr(optimise, "_owned", wrong)
    else:
        narrowed = optimise.narrowed
        monkeypatch.setattr(optimise, "narrowed", lambda s, n, w, b, through: narrowed(s, n, w, -b.flip(1), through))
    ascent = Ascent(state, y, others, margins - 100, True)
    for _ in range(3):
        ascent.step(0.1)
    ascent.best = ascent.best.where(ascent.best > margins, margins)
    found = least_found(module, x, 0.3, "linf", y).gather(1, others)
    region = ascent.state.region
    holds = all(_held(ascent.state, point) for point in (region.at, region.low, region.high))
    assert not holds or float((ascent.best - found).max()) > 1e-4


def _held(state: Any, point: Tensor) -> bool:
    """Whether the intervals hold what the neurons do at a point."""
    values = [point]
    with torch.no_grad():
        for node in state.network.nodes[1:]:
            values.append(node.op.forward(*(values[i] for i in node.inputs)))
    found: list[Interval] = [state.intervals[n] for n in range(len(values))]
    return all(bool(((v >= i.low - 1e-6) & (v <= i.high + 1e-6)).all()) for v, i in zip(values, found))


# ---- the certifier


def test_fields() -> None:
    made = registry.make("certifier", "alpha-crown:steps=5,intermediate=fixed,lr=0.25")
    assert made == AlphaCrown(5, "fixed", 0.25) and made.cost < AlphaCrown().cost
    for wrong in ({"steps": 0}, {"intermediate": "free"}, {"lr": 0.0}):
        with pytest.raises(BadInput, match=str(next(iter(wrong)))):
            AlphaCrown(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("threat", [Linf("0.2"), L2("0.4")])
@pytest.mark.parametrize("method", [AlphaCrown(steps=4), AlphaCrown(steps=4, intermediate="fixed")])
def test_never_worse_than_crown(
    network: Made, method: AlphaCrown, threat: Any, sample: Callable[..., Tensor], full: Callable[..., Tensor]
) -> None:
    module, shape = network
    classifier = Classifier(module.double())
    x = sample(shape, 16, corners=False)
    y = module(x).argmax(1)
    start = Crown().bind(classifier, threat)(x, y, full(16, float(threat.eps)))
    found = method.bind(classifier, threat)(x, y, full(16, float(threat.eps)))
    assert bool((found >= start - SLACK).all())


def test_verifies_more_on_a_real_network(shared_data: Path, full: Callable[..., Tensor]) -> None:
    """The first 10 MNIST images at 0.3: CROWN proves none, auto_LiRPA's figures say that optimised bounds prove about one in six of 100."""
    classifier = load_model(str(shared_data / "weights" / "mnist-cnn-a-adv.safetensors"))
    x, y = load_data("mnist:n=10", root=shared_data)
    start = Crown().bind(classifier, Linf("0.3"))(x, y, full(10, 0.3))
    fixed = AlphaCrown(intermediate="fixed").bind(classifier, Linf("0.3"))(x, y, full(10, 0.3))
    whole = AlphaCrown().bind(classifier, Linf("0.3"))(x, y, full(10, 0.3))
    assert bool((fixed >= start).all()) and float(fixed.mean()) > float(start.mean()) + 0.5
    assert float(whole.mean()) > float(fixed.mean()) + 1 and int((whole > 0).sum()) >= 2


def test_what_is_no_number_is_no_proof(
    make_network: Callable[..., Made], sample: Callable[..., Tensor], full: Callable[..., Tensor]
) -> None:
    module, shape = make_network("conv")
    bound = AlphaCrown(steps=3).bind(Classifier(module.float()), Linf("0.1"))
    x, y = sample(shape, 16, corners=False).float(), torch.zeros(16, dtype=torch.int64)
    broken = x.clone()
    broken[3, 0, 0, 0] = torch.nan
    found, clean = bound(broken, y, full(16, 0.2)), bound(x, y, full(16, 0.2))
    assert float(found[3]) == -torch.inf
    torch.testing.assert_close(found[:3], clean[:3], atol=1e-4, rtol=1e-4)
    assert bool((bound(x, y, full(16, -0.1)) == -torch.inf).all())
