"""Deep kNN: exact neighbours, valid p-values, thresholds from training images, and an attack that sees through the votes."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor, nn

import robustkit as rk
from robustkit import streams
from robustkit.attacks import PGD, GuidedPGD
from robustkit.classifier import Classifier
from robustkit.defenses.conformal import Calibration
from robustkit.defenses.deep_knn import DeepKNN, NeighbourClassifier
from robustkit.defenses.neighbour_figure import draw_neighbours
from robustkit.defenses.neighbours import OUTPUT, Bank, Layers, default_layers
from robustkit.models import build
from robustkit.numerics import pad_rows

SPEC = "knn:(zoo:digits-standard),bank=800,calibration=400,reject=0.05"


@pytest.fixture(scope="module")
def knn() -> Classifier:
    return rk.load_model(SPEC)


@pytest.fixture(scope="module")
def digits() -> rk.data.Data:
    return rk.load_data("digits")


def inside(classifier: Classifier) -> NeighbourClassifier:
    assert isinstance(classifier.module, NeighbourClassifier)
    return classifier.module


def test_neighbours_votes_and_scores_are_those_of_brute_force(knn: Classifier, digits: Any) -> None:
    """Against numpy in float64 on activations computed layer by layer, without hooks or bank."""
    model, x = inside(knn), digits.images(slice(0, 40))
    network, images = rk.load_model("zoo:digits-standard").module, model.images
    assert isinstance(network, nn.Sequential)
    assert model.layers.names == ("1", "3", "6", OUTPUT)
    found, total = model.neighbours(x), np.zeros((len(x), 10))
    a, b = x.double(), images.x.double()
    network = network.double()
    for name, layer in network.named_children():
        with torch.no_grad():
            a, b = layer(a), layer(b)
        shown = OUTPUT if name == "7" else name
        if shown not in found:
            continue
        one, other = (v.flatten(1).numpy() for v in (a, b))
        one, other = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (one, other))
        cosine = one @ other.T
        at, similarity = found[shown]
        highest = -np.sort(-cosine, axis=1)[:, : model.k]
        np.testing.assert_allclose(similarity.numpy(), highest, atol=2e-6)
        np.testing.assert_allclose(np.take_along_axis(cosine, at.numpy(), 1), highest, atol=2e-6)
        assert all(len(set(row)) == model.k for row in at.tolist())
        for i, row in enumerate(at.tolist()):
            total[i] += np.bincount(images.y[row].numpy(), minlength=10)
    scores = model.scores(x).numpy()
    assert ((scores - total > 0) & (scores - total < 0.5)).all(), "votes, and less than half a vote for nearness"
    np.testing.assert_allclose(knn.logits(x)[:, :10].exp().numpy(), scores, rtol=1e-5)


def test_batches_change_nothing(knn: Classifier, digits: Any) -> None:
    x = digits.images(slice(0, 48))
    whole = knn.logits(x)
    alone = torch.cat([knn.logits(pad_rows(x[i : i + 1], 16))[:1] for i in range(48)])
    assert torch.allclose(whole, alone, atol=1e-5)


@pytest.mark.parametrize("k", [1, 37, 200])
def test_the_search_by_classes_is_that_of_the_whole_bank(k: int, knn: Classifier, digits: Any) -> None:
    """Also where more neighbours are wanted than a class has."""
    model, x = inside(knn), digits.images(slice(0, 48))
    for layer, features in enumerate(model._features(x)):
        whole = (features @ model.bank.features(layer).t()).topk(k, dim=1)
        found = model.bank.search(features, layer, k)
        assert torch.allclose(found.similarity, whole.values, atol=1e-6)
        assert float((found.at == whole.indices).float().mean()) > 0.99  # equal but for near ties


def test_bank_and_calibration_are_disjoint_training_images(knn: Classifier) -> None:
    train, test = (set(rk.load_data(f"digits:split={s}").index.tolist()) for s in ("train", "test"))
    bank, held = DeepKNN(bank=800, calibration=400).divide(rk.load_data("digits:split=train"), torch.arange(0))
    one, other = set(bank.index.tolist()), set(held.index.tolist())
    assert (len(one), len(other)) == (800, 400)
    assert not one & other
    assert one | other <= train
    assert not (one | other) & test
    assert set(bank.y.bincount().tolist()) == {80}
    assert set(inside(knn).images.index.tolist()) == one
    with pytest.raises(rk.BadInput, match="share images"):
        NeighbourClassifier(rk.load_model("zoo:digits-standard"), bank, bank.subset(slice(0, 100)), (), 10, Fraction(1, 20))


def test_calibration_prefers_images_that_the_network_has_not_seen() -> None:
    data = rk.load_data("digits:split=train")
    base = rk.load_model("zoo:digits-standard")
    base.metadata |= {"trained_indices": "0-899"}
    made = rk.models.wrapped.wrapped_model("knn", "(x),bank=600,calibration=300", lambda _: base)
    _, held = DeepKNN(bank=600, calibration=300).divide(data, torch.arange(900))
    assert int(held.index.min()) > 899
    assert set(range(900)) <= {i for r in made.metadata["trained_indices"].split(",") for i in _run(r)}


def _run(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def test_p_values_are_valid_and_thresholds_keep_their_share() -> None:
    """Over many calibrations: P(p of the true class <= t) is at most t, and near it; so is rejection."""
    draws, size = 400, 99
    scores = streams.normal(streams.row_keys(3, "scores", torch.arange(draws)), (size + 50, 4))
    y = streams.integers(streams.row_keys(3, "labels", torch.arange(draws * (size + 50))), 4).view(draws, -1)
    small: dict[float, list[float]] = {0.05: [], 0.2: [], 0.5: []}
    rejected = []
    for z, label in zip(scores, y):
        found = Calibration(z[:size], label[:size])
        p = found.p_values(z[size:]).gather(1, label[size:, None])
        for t, seen in small.items():
            seen.append(float((p <= t + 1e-9).float().mean()))
        rejected.append(float((z[size:].amax(1) < found.threshold(Fraction(1, 20))).float().mean()))
    for t, seen in small.items():
        assert np.mean(seen) == pytest.approx(t, abs=0.015)
    assert np.mean(rejected) == pytest.approx(0.05, abs=0.01)
    one = Calibration(torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, dtype=torch.int64))
    assert one.p_values(torch.tensor([[0.5], [2.0], [9.0]]))[:, 0].tolist() == [0.25, 0.75, 1.0]
    with pytest.raises(rk.BadInput, match="at least 99"):
        one.threshold(Fraction(1, 100))


def test_test_images_conform_like_calibration_images(knn: Classifier, digits: Any) -> None:
    model = inside(knn)
    scores = model.scores(digits.x)
    assert float((scores.argmax(1) == digits.y).float().mean()) > 0.95
    assert ks_2samp(scores.amax(1).numpy(), model.calibration.highest.numpy()).pvalue > 0.001
    assert float((knn.logits(digits.x).argmax(1) == 10).float().mean()) < 0.11
    p = model.p_values(digits.x)
    assert torch.equal(p.gather(1, scores.argmax(1, keepdim=True))[:, 0], p.amax(1)), "the answer has the highest p-value"
    assert bool(((model.credibility(digits.x) > 0) & (model.confidence(digits.x) < 1)).all())


def test_credibility_knows_noise_from_digits(knn: Classifier, digits: Any) -> None:
    noise = streams.uniform(streams.row_keys(0, "noise", torch.arange(200)), (1, 8, 8))
    strange, usual = (inside(knn).credibility(v).median() for v in (noise, digits.x))
    assert float(strange) < 0.05 < 0.3 < float(usual)
    turned_off = rk.load_model(SPEC.replace("0.05", "0"))
    assert turned_off.logits(noise).shape == (200, 10)
    assert turned_off.surface.rejects is False
    assert float((knn.logits(noise).argmax(1) == 10).float().mean()) > 0.5


def test_the_surrogate_sees_what_the_votes_hide(knn: Classifier, digits: Any, tmp_path: Any) -> None:
    model, x, y = inside(knn), digits.images(slice(0, 16)), digits.y[:16]
    leaf = x.clone().requires_grad_()
    assert not knn.forward(leaf).requires_grad
    (gradient,) = torch.autograd.grad(model.soft_logits(leaf)[:, :10].logsumexp(1).sum(), leaf)
    assert bool((gradient.flatten(1).abs().amax(1) > 0).all())
    soft = model.soft_logits(x)[:, :10].argmax(1)
    assert float((soft == model.scores(x).argmax(1)).float().mean()) > 0.85
    options: dict[str, Any] = {"attacks": ["pgd:steps=20,loss=margin"], "certifiers": ["none"], "report": False, "progress": False}
    options |= {"goal": "accepted-error"}
    found = rk.evaluate(knn, (x, y), "linf:0.25", out=tmp_path / "run", **options).summary()
    assert found["model"]["surface"] == "declared: surrogate for gradients, rejects"
    assert [stage["name"] for stage in found["stages"]] == ["pgd surrogate", "pgd deployed"]
    blind = PGD(steps=20, loss="margin")(lambda image: knn.module(image), x, y, threat="linf:0.25", goal="accepted-error")
    assert found["robust_accuracy"] < 0.3 < 0.7 < found["clean_accuracy"] - float(blind.success.float().mean())


@pytest.mark.parametrize("attack", [PGD(steps=6, loss="margin"), GuidedPGD(steps=6, targets=2, restarts=2)], ids=lambda a: a.name)
def test_witnesses_are_accepted_wrong_and_the_same_in_any_batch(attack: Any, knn: Classifier, digits: Any) -> None:
    x, y = digits.images(slice(0, 32)), digits.y[:32]
    pool = rk.load_data("digits:split=train,n=200")
    options: dict[str, Any] = {"threat": "linf:0.2", "goal": "accepted-error", "pool": pool}
    found, other = (attack(knn, x, y, batch_size=size, **options) for size in (64, 1))
    hit = found.success
    given = knn.logits(found.adversarial[hit]).argmax(1)
    assert 3 < int(hit.sum())
    assert bool(((given != y[hit]) & (given != 10)).all())
    assert torch.equal(hit, other.success)
    assert torch.equal(found.adversarial, other.adversarial)


def test_a_guided_start_lies_towards_the_nearest_image_of_the_class() -> None:
    """On a 1-nearest-neighbour rule without any gradient only the start can succeed."""
    pool = rk.load_data("digits:split=train,n=300")
    x, y = rk.load_data("digits:n=32")

    def nearest(images: Tensor) -> Tensor:
        apart = torch.cdist(images.flatten(1), pool.x.flatten(1))
        return torch.stack([-apart[:, pool.y == k].amin(1) for k in range(10)], 1).detach()

    right = nearest(x).argmax(1) == y
    guided, random = (a(nearest, x, y, threat="linf:0.4", pool=pool) for a in (GuidedPGD(steps=1), PGD(steps=1, loss="margin")))
    assert int(random.success.sum()) < int(right.sum()) / 4
    assert int(guided.success.sum()) > int(right.sum()) * 3 / 4


class Twice(nn.Module):
    """One activation used twice, and a tuple from a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.act = nn.Linear(64, 8), nn.Linear(8, 10), nn.ReLU()
        self.idle, self.pair = nn.Linear(2, 2), nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.pair(self.act(self.one(x.flatten(1))))[0]
        found: Tensor = self.act(self.two(hidden))
        return found


def test_layers_by_name_of_any_network() -> None:
    network, x = Twice(), torch.ones(3, 1, 8, 8)
    assert default_layers(network) == ("act", OUTPUT)
    last, output = Layers(network)(x)
    assert torch.equal(last, output), "of a module used twice, the last"
    assert default_layers(nn.Sequential(nn.Flatten(), nn.Linear(4, 2))) == ("1", OUTPUT)
    assert not any(m._forward_hooks for m in network.modules())
    for names, message in ((("nowhere",), "layer"), (("idle",), "no part"), (("pair",), "tuple"), (("one", "one"), "twice")):
        with pytest.raises(rk.BadInput, match=message):
            Layers(network, names)(x)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("knn:zoo:digits-standard", "which model"),
        ("knn:(zoo:digits-standard", "bracket"),
        ("knn:(zoo:digits-standard)bank=3", "follows"),
        ("knn:(zoo:digits-standard),bnak=3", "bank"),
        ("knn:(zoo:digits-standard)", "too few"),
        ("knn:(zoo:digits-standard),bank=800,calibration=20", "at least 99"),
        ("knn:(zoo:digits-standard),bank=800,calibration=400,k=800", "fewer neighbours"),
        ("knn:(zoo:digits-standard),data=(digits:split=test)", "training split"),
        ("knn:(zoo:digits-standard),reject=1", "below 1"),
        ("knn:(smooth:(zoo:digits-standard),sigma=0.1),bank=800,calibration=400", "random"),
    ],
)
def test_mistakes_are_told(spec: str, message: str) -> None:
    with pytest.raises(rk.BadInput, match=message):
        rk.load_model(spec)


def test_a_model_that_does_not_say_its_data() -> None:
    with pytest.raises(rk.BadInput, match="data=mnist"):
        DeepKNN().wrap(Classifier(build("flatten-linear(64,10)")))
    with pytest.raises(rk.BadInput, match="no image of class 1"):
        Bank([torch.ones(2, 3)], torch.tensor([0, 2]), 3)


def test_its_specification_loads_the_same_model(knn: Classifier, digits: Any) -> None:
    again = rk.load_model(knn.spec)
    assert (again.spec, again.sha256, again.classes) == (knn.spec, knn.sha256, 11)
    assert torch.equal(again.logits(digits.x), knn.logits(digits.x))
    assert rk.load_model(SPEC.replace("0.05", "0.06")).sha256 != knn.sha256


def test_neighbours_as_pictures(knn: Classifier, digits: Any) -> None:
    made = draw_neighbours(inside(knn), digits.images(slice(0, 2)), shown=5)
    assert made.startswith(b"\x89PNG")
    assert made == draw_neighbours(inside(knn), digits.images(slice(0, 2)), shown=5)
