"""Analysis by synthesis: the envelope's gradient against differences, attacks on latents, training, the binary form and distal images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_synthesis import centres, images, lively, still

import robustkit as rk
from robustkit import registry, streams
from robustkit.attacks import PGD, Envelope, LatentDescent
from robustkit.certify import SynthesisBound
from robustkit.classifier import Classifier
from robustkit.defenses import train
from robustkit.defenses.binarised import Binarised, line_search
from robustkit.defenses.distal import confidence, distal
from robustkit.models.synthesis import synthesis_of
from robustkit.threats import load_threat


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A small one for the digits, trained for a moment."""
    out = tmp_path_factory.mktemp("abs") / "digits.safetensors"
    made = train("abs:epochs=7,batch=100,lr=0.01", "digits", arch="abs(10,4,8,starts=200,steps=20)", out=out, progress=False)
    return made.classifier("cpu")


@pytest.fixture(scope="module")
def digits() -> Any:
    return rk.load_data("digits")


def test_the_envelopes_gradient_is_that_of_the_deployed_model() -> None:
    network = lively("abs(3,2,8,starts=200,steps=150)", seed=1).double()
    model, x, h = synthesis_of(network), images(2, seed=4).double(), 1e-3
    leaf = x.clone().requires_grad_()
    logits = model.envelope(leaf)
    assert not model(leaf).requires_grad
    torch.testing.assert_close(logits.detach(), model(x), rtol=1e-9, atol=1e-9)
    for number in range(3):
        (gradient,) = torch.autograd.grad(logits[:, number].sum(), leaf, retain_graph=True)
        for pixel in (20, 37):
            step = torch.zeros(64, dtype=torch.float64).index_fill_(0, torch.tensor([pixel]), h).view(1, 1, 8, 8)
            slope = (model(x + step)[:, number] - model(x - step)[:, number]) / (2 * h)
            torch.testing.assert_close(gradient.flatten(1)[:, pixel], slope, rtol=2e-3, atol=2e-3)


def test_latent_descent_finds_the_crossing_on_the_way(trained: Classifier, digits: Any) -> None:
    """Towards a fixed image g the class changes where the bisecting plane is crossed: known exactly."""
    network = still("abs(3,1,8,starts=50,steps=30)", seed=2)
    classifier, x, g = Classifier(network), images(12), centres(network)
    y = classifier.logits(x).argmax(1)
    apart = torch.cdist(x.flatten(1), g).square()
    result = LatentDescent(steps=5, halvings=12, rounds=1, targets=2)(classifier, x, y, threat="l2:9")
    assert bool(result.success.all())
    ways = []
    for other in range(3):
        way, own = g[other] - x.flatten(1), g[y]
        # |x + t way - g_y|^2 = |x + t way - g_other|^2, linear in t
        slope = 2 * (way * (g[other] - own)).sum(1)
        share = (apart[:, other] - apart.gather(1, y[:, None])[:, 0]) / slope
        ways.append(torch.where(y == other, math.inf, share * way.norm(dim=1)))
    shortest = torch.stack(ways, 1).amin(1).double()
    assert bool((result.size >= shortest * 0.999).all())
    given = classifier.logits(result.adversarial).argmax(1)
    assert bool((given != y).all())


@pytest.mark.parametrize(
    "attack", [LatentDescent(steps=4, halvings=4, rounds=2), Envelope(steps=8, every=4, restarts=2)], ids=lambda a: a.name
)
def test_attacks_on_latents_in_any_batch(attack: Any, trained: Classifier, digits: Any) -> None:
    x, y = digits.images(slice(0, 20)), digits.y[:20]
    found, other = (attack(trained, x, y, threat="linf:0.25", batch_size=size) for size in (64, 1))
    hit = found.success
    assert int(hit.sum()) > 3
    assert bool((trained.logits(found.adversarial[hit]).argmax(1) != y[hit]).all())
    for name in ("adversarial", "success", "queries", "gradients"):
        assert torch.equal(getattr(found, name), getattr(other, name)), name


def test_training_reaches_a_classifier_that_says_what_made_it(trained: Classifier, digits: Any) -> None:
    logits = trained.logits(digits.x)
    assert float((logits.argmax(1) == digits.y).float().mean()) > 0.85
    assert trained.metadata["architecture"] == "abs(10,4,8,starts=200,steps=20)"
    assert "epochs=7" in trained.metadata["recipe"]
    loss = float(trained.metadata["train_loss"])
    assert loss < float(digits.x.flatten(1).var(0).sum()), "better than the mean image"


def test_the_engine_sees_through_the_missing_gradient_by_itself(
    trained: Classifier, digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robustkit.checks.diagnostics.Examination.run", lambda self: [])  # thousands of queries, each a descent
    x, y = digits.images(slice(0, 32)), digits.y[:32]
    options: dict[str, Any] = {"attacks": ["pgd:steps=10,loss=margin"], "certifiers": ["abs"], "report": False, "progress": False}
    found = rk.evaluate(trained, (x, y), "l2:0.7", out=tmp_path / "run", **options).summary()
    assert [stage["name"] for stage in found["stages"]][:3] == ["abs", "pgd surrogate", "pgd deployed"]
    assert found["certified_accuracy"] == 0
    assert 0 <= found["certified_conditional"] <= found["robust_accuracy"]
    blind = PGD(steps=10, loss="margin")(lambda image: trained.module(image), x, y, threat="l2:0.7")  # type: ignore[operator]
    assert found["robust_accuracy"] < found["clean_accuracy"] - float(blind.success.float().mean()) - 0.2


def test_black_and_white_only(trained: Classifier, digits: Any) -> None:
    base = trained
    made = registry.make("wrapper", "binary:factors=[1,1,1,1,1,1,1,1,1.1,1]").wrap(base)
    assert isinstance(made.module, Binarised)
    x, y = digits.images(slice(0, 24)), digits.y[:24]
    plain = base.logits((x >= 0.5).float())
    plain[:, 8] *= 1.1
    assert torch.equal(made.logits(x), plain)
    leaf = x.clone().requires_grad_()
    assert not made.forward(leaf).requires_grad
    (gradient,) = torch.autograd.grad(made.surrogate(leaf).logsumexp(1).sum(), leaf)
    near = (x - 0.5).abs() < 0.1
    assert float(gradient[near].abs().mean()) > 3 * float(gradient[~near].abs().mean()) > 0
    right = made.logits(x).argmax(1) == y
    adaptive = Envelope(steps=20, every=5)(made, x, y, threat="linf:0.3").success | ~right
    blind = PGD(steps=10, loss="margin")(lambda image: made.module(image), x, y, threat="linf:0.3").success | ~right  # type: ignore[operator]
    assert int(adaptive.sum()) > int(blind.sum())
    descent = LatentDescent(steps=4, halvings=5)(made, x, y, threat="l0:64")
    assert bool((descent.success | ~right).all()), "the reconstruction itself is of another class"
    for spec, message in (("binary:factors=[1,2]", "2 factors"), ("binary:factors=[0]", "above 0")):
        with pytest.raises(rk.BadInput, match=message):
            registry.make("wrapper", spec).wrap(base)
    with pytest.raises(rk.BadInput, match="no analysis by synthesis"):
        SynthesisBound().bind(made, load_threat("l2:1"))


def test_the_line_search_undoes_a_handicap() -> None:
    logits = -5 - 5 * streams.uniform(streams.row_keys(0, "energies", torch.arange(300)), (4,))
    y = logits.argmax(1)
    handicap = torch.tensor([1.0, 1.05, 0.96, 1.0])
    found = torch.tensor(line_search(logits * handicap, y))
    before, after = (float(((logits * handicap * f).argmax(1) == y).float().mean()) for f in (torch.ones(4), found))
    assert before < 0.95 < 0.985 < after
    assert torch.allclose(found * handicap / (found[0] * handicap[0]), torch.ones(4), atol=0.02)
    assert line_search(logits, y) == (1.0, 1.0, 1.0, 1.0)


def test_noise_is_explained_by_no_class(trained: Classifier, digits: Any) -> None:
    noise = images(16, seed=2)
    strange, usual = (confidence(trained, v).amax(1).median() for v in (noise, digits.images(slice(0, 64))))
    assert float(strange) < 0.25 < float(usual) - 0.05
    found = distal(trained, (1, 8, 8), count=10, steps=8)
    assert float(found.before.mean()) < 0.3
    assert bool((found.images >= 0).all() & (found.images <= 1).all())
    assert float(found.moved.min()) > 0.5
    assert torch.equal(found.images, distal(trained, (1, 8, 8), count=10, steps=8).images)
    assert "noise images" in str(found)
    plain = distal(rk.load_model("zoo:digits-standard"), (1, 8, 8), count=10, steps=8)
    assert float(plain.after.mean()) > 0.9 > float(found.after.mean())
