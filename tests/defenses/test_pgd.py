"""Adversarial training and its inner maximisation."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from robustkit.attacks.apgd import APGD
from robustkit.attacks.pgd import PGD
from robustkit.data import load_data
from robustkit.defenses import Minibatch, load_recipe
from robustkit.defenses.inner import Inner
from robustkit.errors import BadInput
from robustkit.models import build
from robustkit.threats import Linf, Threat, load_threat

Quick = Callable[..., Any]


@pytest.mark.parametrize("text", ["linf:0.1", "l2:0.5"])
@pytest.mark.parametrize("attack", [PGD(steps=3), APGD(steps=5)])
def test_inner_points_lie_in_the_ball_and_raise_the_loss(network: nn.Sequential, batch: Minibatch, text: str, attack: Any) -> None:
    threat: Threat = load_threat(text)
    worst = Inner(attack, network, threat)(batch)
    sizes = threat.size(batch.x, worst - batch.x)
    assert float(sizes.max()) <= float(threat.eps) * (1 + 1e-6)
    assert float(worst.min()) >= 0
    assert float(worst.max()) <= 1
    assert not worst.requires_grad
    with torch.no_grad():
        before, after = (functional.cross_entropy(network(x), batch.y, reduction="none") for x in (batch.x, worst))
    assert float((after > before).float().mean()) > 0.9


def test_the_share_scales_the_budget(network: nn.Sequential, batch: Minibatch) -> None:
    inner = Inner(PGD(steps=3), network, Linf("0.1"))
    assert float((inner(batch, 0.25) - batch.x).abs().max()) == pytest.approx(0.025, rel=1e-4)
    assert torch.equal(inner(batch, 0.0), batch.x)


def test_the_network_in_training_is_seen_but_not_touched(batch: Minibatch) -> None:
    network = build("conv(1,4,3,s2)-bn(4)-relu-flatten-linear(36,10)").train()
    inner = Inner(PGD(steps=2), network, Linf("0.1"))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    first = inner(batch)
    assert network.training
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    with torch.no_grad():
        next(network[4].parameters()).neg_()
    assert not torch.equal(inner(batch), first), "the weights are shared: later steps of training are seen"


def test_attacks_without_gradients_are_refused(network: nn.Sequential) -> None:
    class Blind(PGD):
        access = "decision"

    with pytest.raises(BadInput, match="training needs one with gradients"):
        Inner(Blind(), network, Linf("0.1"))


def test_the_loss_is_that_of_adversarial_images_and_grows_with_the_budget(network: nn.Sequential, batch: Minibatch) -> None:
    losses = {eps: load_recipe(f"pgd:eps={eps}").bind(network)(batch) for eps in ("0.01", "0.1", "0.3")}
    assert functional.cross_entropy(network(batch.x), batch.y) < losses["0.01"] < losses["0.1"] < losses["0.3"]


def test_it_lowers_its_own_loss_and_makes_more_robust_than_plain_training(quick: Quick) -> None:
    test = load_data("digits:n=128")
    robust = {}
    for name, recipe in {"standard": "standard:epochs=40", "pgd": "pgd:eps=0.15,steps=4,epochs=40"}.items():
        found = quick(recipe, f"{name}.safetensors", data="digits:n=700", arch="conv(1,8,3,s2,p1)-relu-flatten-linear(128,10)")
        assert found.loss < 1
        result = PGD(steps=20)(found.classifier("cpu"), *test, threat=Linf("0.15"))
        robust[name] = float(((found.classifier("cpu")(test.x).argmax(1) == test.y) & ~result.success).float().mean())
    assert robust["pgd"] > robust["standard"] + 0.2


def test_the_budget_is_kept_exact() -> None:
    assert load_recipe("pgd:eps=8/255").spec.options["eps"] == Fraction(8, 255)
