"""Training for randomized smoothing: Gaussian noise, stability, SmoothAdv."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustkit import streams
from robustkit.certify.smoothing import SmoothingCertifier
from robustkit.data import load_data
from robustkit.defenses import GaussianTraining, Minibatch, SmoothAdv, StabilityTraining, load_recipe
from robustkit.defenses.recipe import Objective
from robustkit.errors import BadInput
from robustkit.models.smoothed import Smoothing, smoothed
from robustkit.spec import number
from robustkit.threats import L2

Quick = Callable[..., Any]
SMALL = "conv(1,8,3,s2,p1)-relu-flatten-linear(128,10)"


class Spy(nn.Module):
    """A network that shows what it, and every copy of it, was fed."""

    fed: list[Tensor] = []

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        Spy.fed.append(x.detach().clone())
        logits: Tensor = self.network(x)
        return logits


@pytest.fixture
def spied(network: nn.Sequential) -> Spy:
    Spy.fed = []
    return Spy(network)


def test_gaussian_training_sees_each_image_once_with_noise_of_sigma(spied: Spy, batch: Minibatch) -> None:
    loss = GaussianTraining(sigma=number("0.25")).bind(spied)(batch)
    assert len(Spy.fed) == 1
    noise = Spy.fed[0] - batch.x
    assert float(noise.std()) == pytest.approx(0.25, rel=0.02)
    assert abs(float(noise.mean())) < 0.01
    assert float(Spy.fed[0].min()) < -0.3, "not clipped to the box: the deployed model is not either"
    assert not torch.equal(noise[0], noise[1])
    torch.testing.assert_close(loss, functional.cross_entropy(spied(Spy.fed[0]), batch.y))


def test_noise_is_fresh_in_every_epoch_and_depends_on_the_image_alone(spied: Spy, batch: Minibatch) -> None:
    objective = GaussianTraining().bind(spied)
    objective(batch)
    objective(replace(batch, key=streams.row_keys(0, "test", batch.index, 1)))
    some = torch.tensor([9, 4, 77])
    objective(Minibatch(batch.x[some], batch.y[some], batch.index[some], batch.key[some], 0.0))
    first, second, few = Spy.fed
    assert not torch.equal(first, second)
    assert torch.equal(first[some], few)


def test_stability_holds_the_noisy_prediction_to_the_clean_one(spied: Spy, batch: Minibatch) -> None:
    zero, one, three = (StabilityTraining(sigma=number("0.5"), weight=w).bind(spied)(batch) for w in (0.0, 1.0, 3.0))
    clean, moved = (spied(Spy.fed[i]) for i in (0, 1))
    assert torch.equal(Spy.fed[0], batch.x)
    assert float((Spy.fed[1] - batch.x).std()) == pytest.approx(0.5, rel=0.02)
    torch.testing.assert_close(zero, functional.cross_entropy(clean, batch.y))
    crossed = -(clean.softmax(1) * moved.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(one - zero, crossed, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(three - zero, 3 * (one - zero), atol=1e-5, rtol=1e-4)


def soft_loss(network: nn.Module, x: Tensor, noise: Tensor, y: Tensor) -> Tensor:
    scores = network((x[:, None] + noise).flatten(0, 1)).softmax(1).view(len(x), noise.shape[1], -1).mean(1)
    return -scores.gather(1, y[:, None]).log()[:, 0]


def test_smoothadv_keeps_the_noise_while_the_image_moves(spied: Spy, batch: Minibatch) -> None:
    """Every pass sees the same draws; the image ends in the ball, and is better than chance against their mean score."""
    recipe = SmoothAdv(sigma=number("0.25"), eps=number("0.5"), draws=3, steps=4)
    loss = recipe.bind(spied)(batch)
    assert len(Spy.fed) == 4 + 1, "one pass of all draws a step, and one to learn from"
    views = [fed.view(len(batch.x), 3, *batch.x.shape[1:]) for fed in Spy.fed]
    noise = recipe.noise(batch)
    assert float(noise.std()) == pytest.approx(0.25, rel=0.02)
    torch.testing.assert_close(views[0] - noise, batch.x[:, None].expand_as(noise), atol=1e-6, rtol=0)
    points = [(fed - noise).mean(1) for fed in views]
    for fed, point in zip(views, points):
        torch.testing.assert_close(fed - noise, point[:, None].expand_as(noise), atol=1e-6, rtol=0)
    worst = points[-1]
    moved = L2("0.5").size(batch.x, worst - batch.x)
    assert float(moved.max()) <= 0.5 * (1 + 1e-5)
    assert float(moved.median()) > 0.3
    assert -1e-6 < float(worst.min())
    assert float(worst.max()) < 1 + 1e-6
    with torch.no_grad():
        clean, reached = (soft_loss(spied, x, noise, batch.y) for x in (batch.x, worst))
        chance = soft_loss(spied, L2("0.5").apply(batch.x, L2("0.5").random(batch.x, torch.full((256,), 0.5), batch.key)), noise, batch.y)
    assert float((reached > clean).float().mean()) > 0.95
    assert float((reached - clean).mean()) > 3 * float((chance - clean).mean())
    torch.testing.assert_close(loss, functional.cross_entropy(spied(Spy.fed[4]), batch.y.repeat_interleave(3)))


def test_smoothadv_climbs_the_mean_score_and_not_the_mean_loss(spied: Spy, batch: Minibatch) -> None:
    SmoothAdv(sigma=number("0.5"), eps=number("0.25"), draws=4, steps=1).bind(spied)(batch)
    noise = SmoothAdv(sigma=number("0.5"), draws=4).noise(batch)
    leaf = batch.x.clone().requires_grad_()
    gradient = torch.autograd.grad(soft_loss(spied, leaf, noise, batch.y).sum(), leaf)[0]
    threat = L2("0.25")
    eps = torch.full((len(batch.x),), 0.25, dtype=torch.float64)
    wanted = threat.apply(batch.x, threat.project(batch.x, threat.step(batch.x, torch.zeros_like(leaf), gradient, 2 * eps), eps))
    torch.testing.assert_close((Spy.fed[1].view_as(noise) - noise).mean(1), wanted, atol=1e-4, rtol=0)


def test_without_a_budget_smoothadv_is_gaussian_training_on_its_draws(spied: Spy, batch: Minibatch) -> None:
    start = replace(batch, progress=0.0)
    for every in (True, False):
        Spy.fed = []
        recipe = SmoothAdv(draws=3, steps=1, every=every)
        loss = recipe.bind(spied)(start)
        kept = recipe.noise(batch)[:, : 3 if every else 1]
        seen = (batch.x[:, None] + kept).flatten(0, 1)
        assert torch.equal(Spy.fed[-1], seen)
        torch.testing.assert_close(loss, functional.cross_entropy(spied(seen), batch.y.repeat_interleave(kept.shape[1])))


@pytest.mark.parametrize("text", ["smoothing:epochs=3", "stability:epochs=3", "smoothadv:epochs=3,steps=1"])
def test_interrupted_they_end_with_the_same_weights(quick: Quick, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quick(text, "whole/model.safetensors", arch=SMALL)
    recipe = load_recipe(text)
    bind = type(recipe).bind

    def broken(self: Any, network: nn.Module) -> Objective:
        loss, calls = bind(self, network), []

        def counted(batch: Minibatch) -> Tensor:
            calls.append(None)
            if len(calls) > 3:
                raise KeyboardInterrupt
            return loss(batch)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(type(recipe), "bind", broken)
        with pytest.raises(KeyboardInterrupt):
            quick(text, arch=SMALL)
    again = quick(text, arch=SMALL)
    assert again.resumed == 3
    assert again.path.read_bytes() == whole.path.read_bytes()


def test_smoothed_their_certified_radii_are_larger_than_after_plain_training(quick: Quick) -> None:
    """Mean certified l2 radius under noise of 0.25, 0 where nothing is certified; SmoothAdv beats noise alone."""
    test, found = load_data("digits:n=128"), {}
    for recipe in ["standard:", "smoothing:sigma=0.25,", "stability:sigma=0.25,", "smoothadv:sigma=0.25,eps=0.5,steps=2,"]:
        name = recipe.partition(":")[0]
        made = quick(f"{recipe}epochs=40", f"{name}.safetensors", data="digits:n=700", arch=SMALL)
        model = smoothed(made.classifier("cpu"), Smoothing(number("0.25")))
        radius = SmoothingCertifier(n=1000)(model, *test, threat="l2:0.5", radius=True).radius
        found[name] = float(radius.clamp(min=0).mean())
    assert found["stability"] > 1.05 * found["standard"], found
    assert found["smoothing"] > 1.1 * found["standard"], found
    assert found["smoothadv"] > 1.05 * found["smoothing"], found


@pytest.mark.parametrize(
    "text",
    ["smoothing:sigma=0", "stability:weight=-1", "smoothadv:eps=0", "smoothadv:draws=0", "smoothadv:steps=0", "smoothadv:rise=2"],
)
def test_bad_values_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match=text.partition(":")[2].partition("=")[0]):
        load_recipe(text)
