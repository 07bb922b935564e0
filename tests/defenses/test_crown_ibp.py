"""Training on CROWN-IBP bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustkit.certify import IBP, CrownIBP, Region, crown_margins, trace, worst_logits
from robustkit.data import Data, load_data
from robustkit.defenses import CrownIntervalTraining, IntervalTraining, Minibatch
from robustkit.defenses.recipe import Objective
from robustkit.errors import BadInput
from robustkit.models import architecture_text, build
from robustkit.threats import Linf

Quick = Callable[..., Any]
SMALL = "conv(1,8,3,s2,p1)-relu-flatten-linear(128,10)"


@pytest.fixture
def network(digits: Data) -> nn.Sequential:
    return build(architecture_text("digits-cnn", digits.shape, 10))


@pytest.fixture
def batch(digits: Data) -> Minibatch:
    return Minibatch(digits.x[:64], digits.y[:64], digits.index[:64], digits.index[:64], 0.0)


def backward(network: nn.Module, batch: Minibatch, eps: float) -> Tensor:
    return -crown_margins(trace(network), Region.around(batch.x, eps), batch.y, intermediate="ibp")


def forward(network: nn.Module, batch: Minibatch, eps: float) -> Tensor:
    return worst_logits(trace(network), batch.x, batch.y, eps)


def recipe(**options: Any) -> CrownIntervalTraining:
    return CrownIntervalTraining(**({"eps": 0.1, "warmup": 0.1, "rise": 0.5} | options))


def test_the_share_of_the_backward_bounds_falls_while_the_budget_grows(network: nn.Sequential, batch: Minibatch) -> None:
    loss = recipe(kappa=0.25).bind(network)
    clean = functional.cross_entropy(network(batch.x), batch.y)
    half = 0.5 * backward(network, batch, 0.05) + 0.5 * forward(network, batch, 0.05)
    assert torch.equal(loss(batch), clean)
    torch.testing.assert_close(loss(replace(batch, progress=0.3)), 0.625 * clean + 0.375 * functional.cross_entropy(half, batch.y))
    last = 0.25 * clean + 0.75 * functional.cross_entropy(forward(network, batch, 0.1), batch.y)
    torch.testing.assert_close(loss(replace(batch, progress=0.5)), last)
    torch.testing.assert_close(loss(replace(batch, progress=1.0)), last)


@pytest.mark.parametrize("slope", ["adaptive", "same"])
def test_with_beta_1_the_backward_bounds_have_the_last_word(network: nn.Sequential, batch: Minibatch, slope: str) -> None:
    found = recipe(beta=1.0, slope=slope).bind(network)(replace(batch, progress=1.0))
    worst = -crown_margins(trace(network), Region.around(batch.x, 0.1), batch.y, slope=slope, intermediate="ibp")
    torch.testing.assert_close(found, functional.cross_entropy(worst, batch.y))
    assert found < functional.cross_entropy(forward(network, batch, 0.1), batch.y), "backward bounds are tighter at the start"


def test_intervals_of_the_regulariser_are_used_again_and_change_nothing(network: nn.Sequential, batch: Minibatch) -> None:
    at = replace(batch, progress=0.3)
    ours, theirs = recipe(regularise=1.0), IntervalTraining(eps=0.1, warmup=0.1, rise=0.5, regularise=1.0)  # type: ignore[arg-type]
    plain = replace(theirs, regularise=0.0).bind(network)(at)
    added = theirs.bind(network)(at) - plain
    torch.testing.assert_close(ours.bind(network)(at) - recipe().bind(network)(at), added, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("progress", [0.2, 0.45, 1.0])
def test_gradients_reach_every_weight_and_are_those_of_finite_differences(batch: Minibatch, progress: float) -> None:
    network = build(SMALL).double()
    few = Minibatch(batch.x[:4].double(), batch.y[:4], batch.index[:4], batch.key[:4], progress)
    loss: Objective = recipe(beta=0.5, slope="same").bind(network)
    loss(few).backward()  # type: ignore[no-untyped-call]
    for parameter in network.parameters():
        assert parameter.grad is not None
        at = int(parameter.grad.abs().argmax())
        slope = float(parameter.grad.view(-1)[at])
        assert slope != 0
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.view(-1)[at] += step
                values.append(float(loss(few)))
                parameter.view(-1)[at] -= step
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-3)


def test_a_network_without_a_relaxation_is_refused_before_the_warm_up(batch: Minibatch) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softsign())
    with pytest.raises(BadInput, match="Softsign"):
        CrownIntervalTraining().bind(network)(batch)


def share(model: Any, data: Data, method: Any, eps: float) -> float:
    budgets = torch.full((len(data),), eps, dtype=torch.float64)
    return float((method.bind(model, Linf(eps))(data.x, data.y, budgets) > 0).float().mean())


def test_it_proves_what_a_plain_twin_does_not_and_intervals_suffice_in_the_end(quick: Quick) -> None:
    test, options = load_data("digits:n=128"), {"data": "digits:n=700", "arch": SMALL}
    trained = quick("crown-ibp:eps=0.1,epochs=60,start=tight,regularise=0.5", "crown.safetensors", **options).classifier("cpu")
    plain = quick("standard:epochs=40", "plain.safetensors", **options).classifier("cpu")
    assert share(plain, test, IBP(), 0.1) < 0.1
    proven = share(trained, test, IBP(), 0.1)
    assert proven > 0.4
    assert share(trained, test, CrownIBP(), 0.1) >= proven


class Stopped(Exception):
    """A fault in the middle of a training."""


@pytest.mark.parametrize("at", [3, 9, 15])
def test_interrupted_anywhere_it_ends_with_the_same_file(quick: Quick, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    text = "crown-ibp:eps=0.1,epochs=9,shift=1,start=tight,regularise=0.5"
    arch = "conv(1,4,3,s2)-bn(4)-relu-flatten-linear(36,10)"
    whole = quick(text, "whole/model.safetensors", arch=arch)
    bind = CrownIntervalTraining.bind

    def failing(self: CrownIntervalTraining, network: nn.Module) -> Objective:
        loss, calls = bind(self, network), []

        def counted(batch: Minibatch) -> Tensor:
            calls.append(batch)
            if len(calls) > at:
                raise Stopped
            return loss(batch)

        return counted

    with monkeypatch.context() as broken:
        broken.setattr(CrownIntervalTraining, "bind", failing)
        with pytest.raises(Stopped):
            quick(text, arch=arch, save_every=0)
    again = quick(text, arch=arch)
    assert (again.resumed, whole.resumed) == (at, 0)
    assert again.path.read_bytes() == whole.path.read_bytes()
    assert whole.metadata["recipe"].startswith("crown-ibp:")
