"""Models that declare what to do about them: surrogates, votes of random models, rejection."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustkit as rk
from robustkit import streams
from robustkit.attacks import APGD, PGD, Square
from robustkit.classifier import Classifier
from robustkit.core.comparisons import margins
from robustkit.models import build
from robustkit.surface import Surface, surface_of
from robustkit.verdict.goals import Goal
from robustkit.verdict.judge import Judge


def network() -> nn.Module:
    return build("conv(1,6,3,s2,p1)-relu-flatten-linear(96,5)", seed=1).requires_grad_(False)


def images(count: int) -> Tensor:
    return streams.uniform(streams.row_keys(0, "images", torch.arange(count)), (1, 8, 8))


class Quantised(nn.Module):
    """Rounds its input to a few levels: no gradient gets through."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net((x * 15).round() / 15)
        return logits

    def adaptive_surface(self) -> Surface:
        return Surface(surrogate=self.net)


class Noisy(nn.Module):
    """Adds Gaussian noise to its input, from keys or from torch's global generator."""

    def __init__(self, sigma: float, takes_keys: bool = True) -> None:
        super().__init__()
        self.net, self.sigma, self.takes_keys = network(), sigma, takes_keys

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        noise = torch.randn_like(x) if keys is None else streams.normal(keys, tuple(x.shape[1:]))
        logits: Tensor = self.net(x + self.sigma * noise)
        return logits

    def adaptive_surface(self) -> Surface:
        return Surface(random="vote", votes=100, draws=4)


class Careful(nn.Module):
    """Rejects what it is not sure of: a last logit at a fixed height above the second best."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.net, self.threshold = network(), threshold

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return torch.cat([logits, logits.topk(2).values[:, 1:] + self.threshold], 1)

    def adaptive_surface(self) -> Surface:
        return Surface(rejects=True)


def labelled(model: Any, count: int) -> tuple[Tensor, Tensor]:
    x = images(count)
    return x, Judge(Classifier(model), rk.Linf(0), Goal()).logits(x).argmax(1)


@pytest.mark.parametrize("attack", [PGD(steps=10), APGD(steps=10, restarts=1)], ids=lambda a: a.name)
def test_gradients_go_through_the_surrogate_and_hits_through_the_deployed_model(attack: Any) -> None:
    model = Quantised()
    x, y = labelled(model, 32)
    bare = network()
    blind = PGD(steps=10)(lambda image: bare((image * 15).round() / 15), x, y, threat="linf:0.15")
    seeing = attack(model, x, y, threat="linf:0.15")
    assert int(seeing.success.sum()) > 20 > 10 > int(blind.success.sum())
    hit = seeing.success
    assert bool((model(seeing.adversarial[hit]).argmax(1) != y[hit]).all())


def test_the_engine_attacks_the_surrogate_and_the_deployed_model(tmp_path: Any) -> None:
    x, y = labelled(Quantised(), 40)
    options: dict[str, Any] = {"attacks": ["pgd:steps=10"], "certifiers": ["none"], "report": False, "progress": False}
    both = rk.evaluate(Quantised(), (x, y), "linf:0.15", out=tmp_path / "both", **options).summary()
    assert [s["name"] for s in both["stages"]] == ["pgd surrogate", "pgd deployed"]
    assert both["model"]["surface"] == "declared: surrogate for gradients"
    naive = rk.evaluate(Quantised(), (x, y), "linf:0.15", out=tmp_path / "naive", adaptive="off", **options).summary()
    assert [s["name"] for s in naive["stages"]] == ["pgd deployed"]
    assert both["robust_accuracy_at_most"] < 0.5 < naive["robust_accuracy_at_most"]
    assert naive["robust_accuracy"] is None, "its attack saw no gradient"
    with pytest.raises(rk.BadInput, match="adaptive"):
        rk.evaluate(Quantised(), (x, y), "linf:0.15", out=tmp_path / "x", adaptive="maybe", **options)


@pytest.mark.parametrize("attack", [PGD(steps=8, restarts=2), Square(queries=200, restarts=2)], ids=lambda a: a.name)
def test_witnesses_of_a_random_model_withstand_fresh_draws(attack: Any) -> None:
    model = Noisy(0.1)
    x, y = labelled(model, 24)
    found = attack(model, x, y, threat="linf:0.2")
    assert 2 < int(found.success.sum())
    hit = found.success
    draws = [model(found.adversarial[hit], streams.row_keys(9, "fresh", torch.arange(int(hit.sum())), i)).argmax(1) for i in range(300)]
    right = (torch.stack(draws) == y[hit]).float().mean(0)
    assert float(right.max()) < 0.5, "the label has not the majority"


def test_a_random_model_with_keys_gives_the_same_in_any_batch() -> None:
    model = Noisy(0.1)
    x, y = labelled(model, 20)
    for attack in (PGD(steps=4), Square(queries=12)):
        one, other = (attack(model, x, y, threat="linf:0.2", batch_size=size) for size in (1, 256))
        for name in ("adversarial", "success", "size", "queries", "gradients"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_draws_are_counted() -> None:
    model = Noisy(0.05)
    x, y = labelled(model, 16)
    correct = Judge(Classifier(model), rk.Linf(0), Goal()).correct(x, y, Classifier(model).tally(x, streams.content_keys(x)))
    found = PGD(steps=3)(model, x, y, threat="linf:0")
    assert not bool(found.success.any())
    assert set(found.queries[correct].tolist()) == {3 * 4 + 2}  # two candidates are judged: the last point and the best
    assert set(found.gradients[correct].tolist()) == {3 * 4}


def test_global_generators_stay_where_they_are() -> None:
    model = Noisy(0.1, takes_keys=False)
    x, y = labelled(model, 16)
    state = torch.random.get_rng_state()
    one = PGD(steps=3)(model, x, y, threat="linf:0.2")
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(3)
    assert torch.equal(one.adversarial, PGD(steps=3)(model, x, y, threat="linf:0.2").adversarial)


def test_a_coin_is_no_witness() -> None:
    """Where label and rival share the votes, no candidate is verified, however many are tried."""

    class Coin(nn.Module):
        takes_keys = True
        adaptive_surface = Surface(random="vote", votes=100)

        def forward(self, x: Tensor, keys: Tensor) -> Tensor:
            heads = streams.uniform(keys, (1,)) < 0.5
            return torch.cat([heads.float(), 1 - heads.float()], 1) + 0 * x.flatten(1).sum(1, keepdim=True)

    judge = Judge(Classifier(Coin()), rk.Linf("0.1"), Goal())
    x = images(400)
    y = torch.zeros(400, dtype=torch.int64)
    p = 0.1 * (images(400) - 0.5)
    verified, _, _ = judge.confirm(x, y, y - 1, p, torch.full((400,), 0.1, dtype=torch.float64))
    assert not bool(verified.any())


def test_accepted_errors_are_fewer_than_errors() -> None:
    model = Careful(0.03)
    x = images(64)
    y = network()(x).argmax(1)
    strict = PGD(steps=10, loss="margin")(model, x, y, threat="linf:0.15")
    accepted = PGD(steps=10, loss="margin")(model, x, y, threat="linf:0.15", goal="accepted-error")
    assert 0 < int(accepted.success.sum()) < int(strict.success.sum())
    found = model(accepted.adversarial[accepted.success]).argmax(1)
    assert bool((found != 5).all()), "accepted"
    assert bool((found != y[accepted.success]).all()), "and wrong"


def test_what_an_attack_sees_of_a_rejecting_model() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 5.0], [0.0, 4.0, 1.0, -1.0]])
    y = torch.tensor([0, 0])
    goal = Goal("accepted-error")
    assert goal.seen(logits, y).tolist() == [[5.0, 1.0, 2.0], [0.0, 4.0, 1.0]]
    assert goal.margin(logits, y, y - 1).tolist() == [-3.0, 4.0]
    assert margins(logits, y).tolist() == [2.0, 4.0]


def test_the_engine_refuses_accepted_errors_of_a_model_that_never_rejects(tmp_path: Any) -> None:
    x, y = labelled(network(), 16)
    with pytest.raises(rk.BadInput, match="rejects"):
        rk.evaluate(network(), (x, y), "linf:0.1", goal="accepted-error", out=tmp_path / "run", report=False)
    done = rk.evaluate(Careful(0.1), (x, y), "linf:0.05", goal="accepted-error", suite="quick", out=tmp_path / "rejecting")
    assert done.summary()["goal"] == "accepted-error"


@pytest.mark.parametrize(
    ("options", "message"), [({"random": "maybe"}, "none, vote or mean"), ({"votes": 3}, "at least"), ({"draws": 0}, "at least")]
)
def test_bad_surfaces(options: dict[str, Any], message: str) -> None:
    with pytest.raises(rk.BadInput, match=message):
        Surface(**options)


def test_a_surface_has_to_be_one() -> None:
    class Wrong:
        adaptive_surface = "bpda"

    with pytest.raises(rk.BadInput, match="Surface"):
        surface_of(Wrong())
