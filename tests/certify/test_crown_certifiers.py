"""The certifiers crown and crown-ibp: figures that others print, any batch, what is no number, what is not known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit import load_data, load_model, registry
from robustkit.certify import Crown, CrownIBP, backward, crown_margins, ops, relax, trace
from robustkit.certify.binding import BLOCK
from robustkit.certify.graph import Network
from robustkit.certify.interval import Interval, interval_margins
from robustkit.certify.region import Region
from robustkit.classifier import Classifier
from robustkit.errors import BadInput
from robustkit.threats import L1, L2, Linf, Threat

Made = tuple[nn.Module, tuple[int, ...]]
SLACK = 1e-9


def test_are_found_by_name() -> None:
    assert registry.make("certifier", "crown") == Crown() and registry.make("certifier", "crown-ibp:same") == CrownIBP("same")
    assert str(Crown().spec) == "crown:slope=adaptive" and Crown().guarantee == "real-arithmetic"
    with pytest.raises(BadInput, match="slope is adaptive or same"):
        Crown("steep")  # type: ignore[arg-type]


def reference(state: Any, number: int, where: Tensor, bounds: Tensor, through: bool = False) -> Interval:
    """Backward bounds in place of interval bounds, not cut with them: what others compute."""
    old, at = state.intervals[number], state.values[number].flatten(1)
    place = (where[:, 0], where[:, 1])
    low = old.low.flatten(1).index_put(place, at[place] + bounds[:, 0])
    high = old.high.flatten(1).index_put(place, at[place] - bounds[:, 1])
    return Interval.between(low.view_as(old.centre), high.view_as(old.centre))


def test_bounds_are_those_of_others_on_a_real_network(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch, full: Callable[..., Tensor]
) -> None:
    """Worst margins that auto_LiRPA prints for the first MNIST test images; ours may only be better."""
    classifier = load_model(str(shared_data / "weights" / "mnist-cnn-a-adv.safetensors"))
    x, y = load_data("mnist:n=100", root=shared_data)
    known = {0.1: [6.7045, 3.1238, 4.7392, 4.6042, 3.1862], 0.3: [-1.4204, -8.0237, -2.8663, -5.9133, -5.4112]}
    bound, cheap = Crown().bind(classifier, Linf("0.1")), CrownIBP().bind(classifier, Linf("0.1"))
    proven = {}
    for eps, theirs in known.items():
        ours = bound(x, y, full(100, eps))
        proven[eps] = int((ours > 0).sum())
        assert bool((ours[:5] >= torch.tensor(theirs) - 1e-3).all())
    assert proven[0.1] >= 93 and proven[0.3] >= 1
    found = cheap(x, y, full(100, 0.1))
    assert int((found > 0).sum()) == 37 and float(found.mean()) == pytest.approx(-0.930, abs=1e-3)
    assert float(cheap(x, y, full(100, 0.3)).mean()) == pytest.approx(-35.74, abs=0.01)
    monkeypatch.setattr(backward, "narrowed", reference)
    monkeypatch.setattr(backward, "loose", lambda node, low, high: torch.ones_like(low, dtype=torch.bool))
    graph = trace(classifier.module)
    for eps, theirs in known.items():
        with torch.no_grad():
            ours = crown_margins(graph, Region.around(x[:5], eps), y[:5]).scatter(1, y[:5, None], torch.inf).amin(1)
        assert ours.tolist() == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("method", [Crown(), Crown("same"), CrownIBP()])
@pytest.mark.parametrize("threat", [Linf("0.1"), L2("0.1"), L1("0.1")])
def test_never_worse_than_intervals(
    network: Made, method: CrownIBP, threat: Threat, sample: Callable[..., Tensor], full: Callable[..., Tensor]
) -> None:
    module, shape = network
    classifier = Classifier(module.double())
    x = sample(shape, 16)
    y = module(x).argmax(1)
    found = method.bind(classifier, threat)(x, y, full(16, 0.1))
    inputs = Region.around(x, 0.1, threat.name)
    with torch.no_grad():
        plain = interval_margins(trace(module).network(shape, torch.float64), inputs.low, inputs.high, y, inputs.ball)
    assert bool((found >= plain.scatter(1, y[:, None], torch.inf).amin(1) - SLACK).all())


@pytest.mark.parametrize("name", ["strides", "relu", "residual"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neither_batch_nor_place_changes_a_bound(
    dtype: torch.dtype, name: str, make_network: Callable[..., Made], sample: Callable[..., Tensor]
) -> None:
    """In float32 to the last bit; in float64, where only proofs near zero are checked again, up to rounding."""
    module, shape = make_network(name)
    bound = Crown().bind(Classifier(module.to(dtype)), Linf("0.1"))
    x, y, eps = sample(shape, 70).to(dtype), torch.arange(70) % 3, torch.linspace(0, 0.3, 70, dtype=torch.float64)
    whole = bound(x, y, eps)
    close = 0.0 if dtype == torch.float32 else 1e-12
    assert len(whole) == 70 and len(bound(x[:0], y[:0], eps[:0])) == 0
    for rows in (1, 16, 47):
        parts = torch.cat([bound(*part) for part in zip(x.split(rows), y.split(rows), eps.split(rows))])
        torch.testing.assert_close(parts, whole, atol=close, rtol=close)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(bound(x[order], y[order], eps[order]), whole[order], atol=close, rtol=close)


def test_rows_that_only_fill_a_batch_up_cost_nothing(
    make_network: Callable[..., Made], monkeypatch: pytest.MonkeyPatch, sample: Callable[..., Tensor], full: Callable[..., Tensor]
) -> None:
    module, shape = make_network("relu")
    seen: list[tuple[int, int]] = []
    margins = Crown.margins

    def watched(self: Crown, network: Network, region: Region, y: Tensor, known: Tensor, real: int) -> Tensor:
        seen.append((len(y), real))
        return margins(self, network, region, y, known, real)

    monkeypatch.setattr(Crown, "margins", watched)
    bound = Crown().bind(Classifier(module.float()), Linf("0.1"))
    x, y = sample(shape, 6).float(), torch.arange(6) % 3
    whole = bound(x, y, full(6, 0.1))
    filled = bound(torch.cat([x, x[-1:].expand(42, *shape)]), torch.cat([y, y[-1:].expand(42)]), full(48, 0.1))
    assert seen[0] == seen[1] and seen[0][0] == BLOCK["cpu"] and len(seen) == 2
    assert torch.equal(filled[:6], whole) and torch.equal(filled[6:], whole[-1:].expand(42))


def test_what_is_no_number_is_no_proof(
    make_network: Callable[..., Made], sample: Callable[..., Tensor], full: Callable[..., Tensor]
) -> None:
    module, shape = make_network("conv")
    classifier = Classifier(module.float())
    x, y = sample(shape, 16).float(), torch.zeros(16, dtype=torch.int64)
    for threat in (Linf("0.1"), L2("0.1"), L1("0.1")):
        bound = Crown().bind(classifier, threat)
        broken = x.clone()
        broken[3, 0, 0, 0] = torch.nan
        found, clean = bound(broken, y, full(16, 0.05)), bound(x, y, full(16, 0.05))
        assert float(found[3]) == -torch.inf
        torch.testing.assert_close(found[:3], clean[:3])
        assert bool((bound(x, y, full(16, -0.1)) == -torch.inf).all())
    for value in (torch.nan, torch.inf):
        with torch.no_grad():
            module[0].bias[0] = value  # type: ignore[index, operator]
        assert bool((Crown().bind(classifier, Linf("0.1"))(x, y, full(16, 0.01)) == -torch.inf).all())


def test_unknown_operations_are_named_with_their_place(full: Callable[..., Tensor]) -> None:
    from robustkit.certify import operation, rules

    class Softsign(ops.Monotone):
        def forward(self, *inputs: Tensor) -> Tensor:
            return F.softsign(inputs[0])

    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Softsign(), nn.Linear(3, 2))
    classifier = Classifier(module, input_shape=(1, 2, 2))
    with pytest.raises(BadInput, match=r"Softsign \(in layer '2'\)"):
        Crown().bind(classifier, Linf("0.1"))
    operation(nn.Softsign)(lambda build, layer, x: build.add(Softsign(), x))
    try:
        with pytest.raises(BadInput, match=r"no linear relaxation is known for Softsign \(in layer '2'\)"):
            Crown().bind(classifier, Linf("0.1"))
        relax.relaxation(Softsign)(
            lambda op, low, high, at, choice: relax.curved(
                op, low, high, at, choice, lambda k, low, high: [k.clamp(1e-9, 1) ** -0.5 - 1, 1 - k.clamp(1e-9, 1) ** -0.5]
            )
        )
        x = torch.rand(16, 1, 2, 2)
        y = classifier.logits(x).argmax(1)
        assert bool((Crown().bind(classifier, Linf("0.1"))(x, y, full(16, 0.001)) > -1).all())
    finally:
        rules.TABLE.pop(nn.Softsign, None)
    with pytest.raises(BadInput, match="no nn.Module: crown must see inside"):
        Crown().bind(Classifier(lambda x: x.flatten(1)), Linf("0.1"))
    with pytest.raises(BadInput, match="input set"):
        Region.around(torch.rand(1, 1, 2, 2), 0.1, "l0")
