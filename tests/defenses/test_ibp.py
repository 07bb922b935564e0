"""Training on interval bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustkit.certify import IBP, trace, worst_logits
from robustkit.data import Data, load_data
from robustkit.defenses import IntervalTraining, Minibatch
from robustkit.errors import BadInput
from robustkit.threats import Linf

Quick = Callable[..., Any]


def certified(model: Any, data: Data, eps: float) -> float:
    budgets = torch.full((len(data),), eps, dtype=torch.float64)
    return float((IBP().bind(model, Linf(eps))(data.x, data.y, budgets) > 0).float().mean())


@pytest.fixture
def batch(digits: Data) -> Minibatch:
    return Minibatch(digits.x, digits.y, digits.index, digits.index, 0.0)


def clean_loss(network: nn.Module, batch: Minibatch) -> Tensor:
    return functional.cross_entropy(network(batch.x), batch.y)


def worst_loss(network: nn.Module, batch: Minibatch, eps: float) -> Tensor:
    return functional.cross_entropy(worst_logits(trace(network), batch.x, batch.y, eps), batch.y)


def test_it_begins_with_the_clean_loss_and_ends_with_the_mixture(network: nn.Sequential, batch: Minibatch) -> None:
    loss = IntervalTraining(eps=0.1, kappa=0.25, warmup=0.1, rise=0.5).bind(network)  # type: ignore[arg-type]
    clean, worst, half = clean_loss(network, batch), worst_loss(network, batch, 0.1), worst_loss(network, batch, 0.05)
    assert torch.equal(loss(batch), clean)
    assert torch.equal(loss(replace(batch, progress=0.1)), clean)
    torch.testing.assert_close(loss(replace(batch, progress=0.3)), 0.625 * clean + 0.375 * half)
    torch.testing.assert_close(loss(replace(batch, progress=0.5)), 0.25 * clean + 0.75 * worst)
    torch.testing.assert_close(loss(replace(batch, progress=1.0)), 0.25 * clean + 0.75 * worst)
    assert clean < half < worst


def test_a_network_the_certifier_does_not_know_is_refused_before_the_warm_up(batch: Minibatch) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softsign())
    with pytest.raises(BadInput, match="Softsign"):
        IntervalTraining().bind(network)(batch)


def test_gradients_reach_every_weight(network: nn.Sequential, batch: Minibatch) -> None:
    IntervalTraining(kappa=0.0).bind(network)(replace(batch, progress=1.0)).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in network.parameters())


def test_it_lowers_its_own_loss_and_certifies_what_its_plain_twin_does_not(quick: Quick) -> None:
    test = load_data("digits:n=128")
    options = {"data": "digits:n=700", "arch": "conv(1,8,3,s2,p1)-relu-flatten-linear(128,10)"}
    trained = quick("ibp:eps=0.1,epochs=80", "ibp.safetensors", **options)
    plain = quick("standard:epochs=40", "plain.safetensors", **options)
    assert trained.loss < 1.2
    assert certified(plain.classifier("cpu"), test, 0.1) < 0.1
    assert certified(trained.classifier("cpu"), test, 0.1) > 0.4
