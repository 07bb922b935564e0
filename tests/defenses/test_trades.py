"""TRADES and its inner maximisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from robustkit.attacks.pgd import PGD
from robustkit.data import load_data
from robustkit.defenses import Minibatch, Trades, load_recipe
from robustkit.defenses.inner import Inner
from robustkit.defenses.trades import Divergence, divergence
from robustkit.errors import BadInput
from robustkit.threats import Linf, load_threat

Quick = Callable[..., Any]


def test_the_divergence_is_torch_s() -> None:
    clean, other = torch.randn(2, 8, 10, generator=torch.Generator().manual_seed(0))
    expected = functional.kl_div(other.log_softmax(1), clean.softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(divergence(clean, other), expected)
    assert float(divergence(clean, clean).abs().max()) < 1e-6


@pytest.mark.parametrize("text", ["linf:0.1", "l2:0.8"])
def test_the_inner_points_lie_in_the_ball_and_move_the_prediction(network: nn.Sequential, batch: Minibatch, text: str) -> None:
    threat = load_threat(text)
    worst = Inner(Divergence(steps=5), network, threat)(batch)
    assert float(threat.size(batch.x, worst - batch.x).max()) <= float(threat.eps) * (1 + 1e-6)
    random = threat.apply(batch.x, threat.random(batch.x, torch.full(batch.y.shape, float(threat.eps)).double(), batch.key, boundary=True))
    with torch.no_grad():
        clean = network(batch.x)
        assert float((divergence(clean, network(worst)) > divergence(clean, network(random))).float().mean()) > 0.95


def test_the_labels_do_not_matter_to_the_inner_points(network: nn.Sequential, batch: Minibatch) -> None:
    inner = Inner(Divergence(steps=3), network, Linf("0.1"))
    assert torch.equal(inner(batch), inner(replace(batch, y=(batch.y + 1) % 10)))


def test_its_parts(network: nn.Sequential, batch: Minibatch) -> None:
    clean = functional.cross_entropy(network(batch.x), batch.y)
    assert torch.equal(Trades(beta=0).bind(network)(batch), clean)
    one, six = (Trades(beta=beta).bind(network)(batch) - clean for beta in (1.0, 6.0))
    assert one > 0
    torch.testing.assert_close(six, 6 * one)


def test_gradients_flow_through_the_clean_prediction_too(network: nn.Sequential, batch: Minibatch) -> None:
    torch.autograd.backward(Trades(beta=1000).bind(network)(batch))
    found = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    assert len(found) == len(list(network.parameters()))
    assert all(float(g.abs().max()) > 0 for g in found)


def test_it_makes_more_robust_than_plain_training(quick: Quick) -> None:
    test = load_data("digits:n=128")
    robust = {}
    for name, recipe in {"standard": "standard:epochs=30", "trades": "trades:eps=0.15,steps=4,epochs=30,beta=3"}.items():
        model = quick(recipe, f"{name}.safetensors", data="digits:n=700", arch="conv(1,8,3,s2,p1)-relu-flatten-linear(128,10)").classifier(
            "cpu"
        )
        result = PGD(steps=20)(model, *test, threat=Linf("0.15"))
        robust[name] = float(((model(test.x).argmax(1) == test.y) & ~result.success).float().mean())
    assert robust["trades"] > robust["standard"] + 0.2


def test_bad_values_are_refused() -> None:
    with pytest.raises(BadInput, match="beta"):
        load_recipe("trades:beta=-1")
