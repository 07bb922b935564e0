"""Surrogates and ensembles: one model is that model, fusions by definition, one query of the target."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from robustkit import load_data, load_model
from robustkit.attacks import MIFGSM, PGD, Transfer
from robustkit.attacks.ensemble import Ensemble, fuse_logits, fused_loss
from robustkit.attacks.losses import cross_entropy
from robustkit.classifier import Classifier
from robustkit.data import Data
from robustkit.errors import BadInput
from robustkit.models import build

FUSIONS = ["logits", "probabilities", "loss"]


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits:n=128")


@pytest.mark.parametrize(("fuse", "loss"), [("logits", "ce"), ("loss", "ce"), ("logits", "margin"), ("probabilities", "margin")])
@pytest.mark.parametrize(("decay", "threat"), [(0.0, "l2:0.4"), (1.0, "linf:0.02")])
def test_an_ensemble_of_the_model_itself_is_pgd(decay: float, threat: str, fuse: Any, loss: Any, digits: Data) -> None:
    """The same last points as the white-box attack's, also for twice the same model.

    (The cross-entropy of fused probabilities is equal too, but for rounding where the model is sure.)
    """
    model = load_model("zoo:digits-standard")
    x, y = digits
    for models in (("digits-standard",), ("zoo:digits-standard", "digits-standard")):
        found = Transfer(models=models, fuse=fuse, decay=decay, loss=loss)(model, x, y, threat=threat, stop="never")
        white = Last(decay=decay, loss=loss)(model, x, y, threat=threat, stop="never")
        same = (found.parameters - white.parameters).flatten(1).abs().amax(1) < 1e-5
        assert float(same.float().mean()) > 0.97
        assert set(found.queries[found.size > 0].tolist()) == {1}
        assert not bool(found.gradients.any()), "none of the target's"


class Last(MIFGSM):
    """MI-FGSM (PGD without decay) that ends at its last point, as an attack on another model must."""

    def step(self, rows: Any, state: Any, view: Any, threat: Any) -> Any:
        found = super().step(rows, state, view, threat)
        view.book["highest"] = torch.full_like(view.book["highest"], -torch.inf)
        return found


@pytest.mark.parametrize("fuse", FUSIONS)
def test_more_surrogates_transfer_better(fuse: Any, digits: Data) -> None:
    target = load_model("zoo:digits-ibp")
    x, y = digits
    threat = "linf:0.25"
    rates = {}
    for models in (("digits-standard",), ("digits-pgd",), ("digits-standard", "digits-pgd")):
        found = Transfer(models=models, fuse=fuse)(target, x, y, threat=threat)
        rates[models] = float(found.success.float().mean())
    assert rates[("digits-standard", "digits-pgd")] >= max(rates.values()) > 0.3


def test_fusions_by_definition() -> None:
    every = [torch.randn(6, 4, generator=torch.Generator().manual_seed(i)) * 3 for i in range(3)]
    share = torch.tensor([0.5, 0.3, 0.2])
    mean = sum(w * z for w, z in zip(share, every))
    chance = sum(w * z.softmax(1) for w, z in zip(share, every))
    assert torch.allclose(fuse_logits(every, "logits", share), mean, atol=1e-6)
    assert torch.allclose(fuse_logits(every, "probabilities", share).softmax(1), chance, atol=1e-6)
    models = [Classifier(lambda x, z=z: z) for z in every]
    y, none = torch.tensor([0, 1, 2, 3, 0, 1]), torch.full((6,), -1)
    losses = sum(w * cross_entropy(z, y, none) for w, z in zip(share, every))
    fused = fused_loss(cross_entropy, models, "loss", [5, 3, 2])
    assert torch.allclose(fused(torch.zeros(6, 1, 1, 1), y, none), losses, atol=1e-5)


@pytest.mark.parametrize("fuse", FUSIONS[:2])
def test_an_ensemble_is_a_model_like_any_other(fuse: Any, digits: Data) -> None:
    names = ["zoo:digits-standard", "zoo:digits-pgd"]
    x, y = digits
    ensemble = Classifier(Ensemble(names, fuse))
    every = [load_model(name).logits(x) for name in names]
    assert torch.allclose(ensemble.logits(x), fuse_logits(every, fuse, torch.tensor([0.5, 0.5])), atol=1e-5)
    found = PGD(steps=10)(ensemble, x, y, threat="linf:0.1")
    assert bool(found.success.any())
    assert bool((ensemble.logits(found.adversarial).argmax(1) != y)[found.success].all())
    alone = Ensemble(["zoo:digits-pgd"], fuse)
    single, model = (PGD(steps=10)(m, x, y, threat="linf:0.15") for m in (alone, load_model("zoo:digits-pgd")))
    assert torch.equal(single.success, model.success)


def test_normalisation_of_members_is_kept() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    member = Classifier(net, mean=[0.3], std=[0.2])
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(Classifier(Ensemble([member])).logits(x), member.logits(x), atol=1e-5)


def test_results_do_not_depend_on_the_batch(digits: Data) -> None:
    x, y = digits.x[:40], digits.y[:40]
    attack = Transfer(models=("digits-pgd", "digits-ibp"), probability=0.5, random_start=True, restarts=2)
    whole, single = (attack(load_model("zoo:digits-standard"), x, y, threat="linf:0.2", batch_size=size) for size in (64, 1))
    assert torch.equal(whole.adversarial, single.adversarial)
    assert torch.equal(whole.queries, single.queries)


@pytest.mark.parametrize("bad", [{"models": ()}, {"fuse": "x"}, {"weights": (1, 2, 3)}, {"steps": 0}], ids=str)
def test_bad_values(bad: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="transfer"):
        Transfer(**({"models": ("digits-pgd",)} | bad))


def test_surrogates_of_another_task_are_refused(digits: Data) -> None:
    with pytest.raises(BadInput, match="unknown model"):
        Transfer(models=("nothing",))(load_model("zoo:digits-pgd"), *digits, threat="linf:0.1")
    with pytest.raises(BadInput, match=r"images of shape \(1, 28, 28\)"):
        Transfer(models=("mnist-pgd",))(load_model("zoo:digits-pgd"), *digits, threat="linf:0.1")
    five = Classifier(build("conv(1,4,3,s2,p1)-relu-flatten-linear(64,5)"), classes=5)
    with pytest.raises(BadInput, match="10 classes"):
        Transfer(models=("digits-pgd",))(five, digits.x, digits.y % 5, threat="linf:0.1")
    with pytest.raises(BadInput, match="callable"):
        Ensemble([lambda x: x])
