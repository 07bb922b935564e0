"""Floating-point certificates: networks built to defeat real arithmetic, nothing lost on others, clear refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustkit as rk
from robustkit import load_data, load_model, registry
from robustkit.attacks import PGD
from robustkit.certify import IBP, AlphaCrown, Crown, CrownIBP, Sound, rounding
from robustkit.classifier import Classifier
from robustkit.errors import BadInput
from robustkit.threats import L1, L2, Linf, Threat

Made = tuple[nn.Module, tuple[int, ...]]
POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool2d)
METHODS = [IBP(), CrownIBP(), Crown(), Crown("same"), AlphaCrown(steps=3), AlphaCrown(steps=3, intermediate="fixed")]


def absorbing(constant: float = 2.0**21) -> nn.Module:
    """Logits x and 0.3, but for a large constant that is added and taken off again: float32 rounds x to quarters."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        module[1].weight.fill_(1.0)  # type: ignore[operator, union-attr]
        module[1].bias.fill_(constant)  # type: ignore[operator, union-attr]
        module[3].weight.copy_(torch.tensor([[1.0], [0.0]]))  # type: ignore[operator, union-attr]
        module[3].bias.copy_(torch.tensor([-constant, 0.3]))  # type: ignore[operator, union-attr]
    return module


@pytest.mark.parametrize("method", METHODS, ids=lambda m: str(m.spec))
def test_a_network_that_defeats_real_arithmetic(method: Any) -> None:
    """Proven in exact arithmetic, and rightly so; the float32 network errs within the ball all the same."""
    module, x, y = absorbing(), torch.full((1, 1, 1, 1), 0.5), torch.zeros(1, dtype=torch.int64)
    classifier, threat = Classifier(module, input_shape=(1, 1, 1)), Linf("0.13")
    eps = torch.full((1,), 0.13, dtype=torch.float64)
    assert float(method.bind(classifier, threat)(x.double(), y, eps)) == pytest.approx(0.07, abs=1e-6)
    witness = torch.full_like(x, 0.371)
    logits = module(witness).detach()[0]
    assert float(logits[0]) < float(logits[1]) and float((witness - x).abs()) < 0.13
    assert float(method(classifier, x, y, threat=threat).radius) >= 0.13 - 1e-9
    sound = Sound(method)(classifier, x, y, threat=threat)
    assert float(sound.radius) == -torch.inf and sound.guarantee == "floating-point" and sound.dtype == "float64"
    mild = Classifier(absorbing(16.0), input_shape=(1, 1, 1))
    assert float(Sound(method)(mild, x, y, threat=threat).radius) >= 0.13 - 1e-9


@pytest.mark.parametrize("threat", [Linf("0.02"), L2("0.05"), L1("0.1")])
def test_next_to_nothing_is_lost_on_ordinary_networks(network: Made, threat: Threat) -> None:
    module, shape = network
    classifier = Classifier(module.float())
    x = torch.rand(16, *shape, generator=torch.Generator().manual_seed(7))
    y = classifier.logits(x).argmax(1)
    eps = torch.full((16,), float(threat.eps), dtype=torch.float64)
    for method in METHODS[:3] + METHODS[4:5]:
        if threat.name not in method.threats:
            continue
        plain, sound = method.bind(classifier, threat)(x.double(), y, eps), Sound(method).bind(classifier, threat)(x.double(), y, eps)
        proven = plain > 0
        assert bool((sound[~proven] <= 0).all()) and bool(proven.any())
        # which slopes are found, and which of several equal inputs of a maximum is followed, is a matter of last digits
        searches = isinstance(method, AlphaCrown) or (method != IBP() and any(isinstance(m, POOLS) for m in module.modules()))
        lost = 0.02 if searches else 2e-4 * (1 + classifier.logits(x).abs().amax(1).double())
        assert bool(((sound > 0) | (plain < lost))[proven].all())


def test_certified_counts_on_a_real_network(shared_data: Path) -> None:
    """mnist-ibp at 0.1: not one certificate of 500 is lost."""
    classifier = load_model("zoo:mnist-ibp")
    x, y = load_data("mnist:n=500", root=shared_data)
    plain, sound = IBP()(classifier, x, y, threat="linf:0.1"), Sound(IBP())(classifier, x, y, threat="linf:0.1")
    proven = plain.radius > 0
    assert int(proven.sum()) > 470 and int((sound.radius > 0).sum()) == int(proven.sum())
    assert bool((sound.margin[proven] < plain.margin[proven] + 1e-4).all())


@pytest.mark.parametrize("method", METHODS[:3] + METHODS[4:5], ids=lambda m: str(m.spec))
@pytest.mark.parametrize("name", ["conv", "residual", "norms", "leaky"])
def test_margins_of_float32_logits_are_above_the_bounds(make_network: Callable[..., Made], name: str, method: Any) -> None:
    """At the radius found, with the margin itself: attacked images, in forwards of 1 and 5 rows."""
    module, shape = make_network(name)
    classifier = Classifier(module.float())
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(3))
    y = classifier.logits(x).argmax(1)
    found = Sound(method)(classifier, x, y, threat=Linf("0.1"), radius=True)
    proven = found.radius > 0
    assert bool(proven.any())
    for row in proven.nonzero()[:2, 0].tolist():
        threat = Linf("0.1").at(float(found.radius[row]))
        attacked = PGD(steps=10)(classifier, x[row : row + 1], y[row : row + 1], threat=threat, stop="never")
        assert not bool(attacked.success.any())
        logits = torch.cat([module(attacked.adversarial), module(attacked.adversarial.expand(5, *shape))[:1]]).detach()
        margin = logits[:, y[row]] - logits.scatter(1, y[row].expand(len(logits), 1), -torch.inf).amax(1)
        assert float(margin.min()) >= float(found.margin[row])


@pytest.mark.parametrize("method", METHODS[:3], ids=lambda m: str(m.spec))
def test_without_the_errors_it_would_not_refuse(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "SINGLE", 0.0)
    x, y = torch.full((1, 1, 1, 1), 0.5), torch.zeros(1, dtype=torch.int64)
    assert float(Sound(method)(Classifier(absorbing()), x, y, threat=Linf("0.13")).radius) > 0


def test_batches_and_rows_change_no_verdict(make_network: Callable[..., Made]) -> None:
    module, shape = make_network("conv")
    bound = Sound(Crown()).bind(Classifier(module.float()), Linf("0.1"))
    x = torch.rand(40, *shape, generator=torch.Generator().manual_seed(3))
    y, eps = module(x).argmax(1), torch.linspace(0, 0.1, 40, dtype=torch.float64)
    whole = bound(x, y, eps)
    for rows in (1, 16, 23):
        parts = torch.cat([bound(*part) for part in zip(x.split(rows), y.split(rows), eps.split(rows))])
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
        assert torch.equal(parts > 0, whole > 0)


def test_what_is_no_number_is_no_proof(make_network: Callable[..., Made]) -> None:
    module, shape = make_network("relu")
    classifier, x = Classifier(module.float()), torch.rand(4, *shape)
    y, eps = module(x).argmax(1), torch.full((4,), 1e-4, dtype=torch.float64)
    bound = Sound(Crown()).bind(classifier, Linf("0.1"))
    broken = x.clone()
    broken[1, 0, 0, 0] = torch.nan
    found = bound(broken, y, eps)
    assert float(found[1]) == -torch.inf and bool(torch.isfinite(found[[0, 2, 3]]).all())


def test_specifications_and_refusals() -> None:
    made = registry.make("certifier", "sound:(crown:same)")
    assert made == Sound(Crown("same")) and str(made.spec) == "sound:method=(crown:slope=same)"
    assert registry.make("certifier", str(made.spec)) == made and made.title == "sound crown"
    assert registry.make("certifier", "sound:ibp") == Sound(IBP()) and made.digest != Sound(Crown()).digest
    with pytest.raises(BadInput, match="expected one certifier in parentheses"):
        registry.make("certifier", "sound")
    classifier, x, y = Classifier(absorbing()), torch.rand(1, 1, 1, 1), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(BadInput, match="no floating-point certificate is known for smoothing: use ibp"):
        registry.make("certifier", "sound:(smoothing:sigma=0.25)").bind(classifier, L2("0.1"))
    with pytest.raises(BadInput, match="ibp does not work for threat l1"):
        Sound(IBP())(classifier, x, y, threat=L1("0.1"))
    with pytest.raises(BadInput, match="float32 models, this one holds torch.float64"):
        Sound(IBP()).bind(Classifier(absorbing().double()), Linf("0.1"))
    with pytest.raises(BadInput, match="sound must see inside|ibp must see inside"):
        Sound(IBP()).bind(Classifier(lambda x: x.flatten(1)), Linf("0.1"))


def test_through_the_engine(tmp_path: Path) -> None:
    run = rk.certify("zoo:digits-ibp", "digits:n=30", "linf:0.1", method=["ibp", "crown"], sound=True, out=tmp_path / "run", report=False)
    rows = [row for row in run.summary()["stages"] if row["kind"] == "certifier"]
    assert [row["name"] for row in rows] == ["sound ibp", "sound crown"]
    assert [row["guarantee"] for row in rows] == ["floating-point"] * 2
    plain = rk.certify("zoo:digits-ibp", "digits:n=30", "linf:0.1", method="ibp", out=tmp_path / "plain", report=False)
    row = plain.summary()["stages"][0]
    assert row["guarantee"] == "real-arithmetic"
    assert 0.7 < run.summary()["certified_accuracy"] <= plain.summary()["certified_accuracy"] + 0.1
    both = rk.evaluate("zoo:digits-ibp", "digits:n=16", "linf:0.1", attacks=["fgsm"], sound=True, out=tmp_path / "both", report=False)
    names = [row["name"] for row in both.summary()["stages"] if row["kind"] == "certifier"]
    assert names and all(name.startswith("sound ") for name in names)


def test_sampling_has_no_floating_point_certificate(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no floating-point certificate is known for smoothing"):
        rk.certify("zoo:digits-standard", "digits:n=4", "l2:0.2", method="smoothing:sigma=0.25,n=100", sound=True, out=tmp_path / "run")


def test_images_are_float32(make_network: Callable[..., Made]) -> None:
    """The same bound for float32 images and their float64 copies, wherever real arithmetic agrees."""
    module, shape = make_network("conv")
    bound = Sound(CrownIBP()).bind(Classifier(module.float()), Linf("0.1"))
    x = torch.rand(16, *shape, generator=torch.Generator().manual_seed(3))
    y, eps = module(x).argmax(1), torch.full((16,), 0.01, dtype=torch.float64)
    single, double = bound(x, y, eps), bound(x.double(), y, eps)
    both: Tensor = (single > 0) & (double > 0)
    assert bool(both.any())
    torch.testing.assert_close(single[both], double[both], atol=1e-9, rtol=1e-9)
