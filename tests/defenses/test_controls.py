"""Clean logit pairing and logit squeezing, the known-broken controls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from robustkit import load_data, load_model
from robustkit.attacks.apgd import APGD
from robustkit.attacks.pgd import PGD
from robustkit.defenses import CleanLogitPairing, LogitSqueezing, Minibatch, load_recipe
from robustkit.defenses.augment import noisy
from robustkit.errors import BadInput
from robustkit.threats import Linf

Quick = Callable[..., Any]


def test_without_noise_and_weight_both_are_plain_training(network: nn.Sequential, batch: Minibatch) -> None:
    plain = functional.cross_entropy(network(batch.x), batch.y)
    assert torch.equal(CleanLogitPairing(weight=0, sigma=0).bind(network)(batch), plain)
    assert torch.equal(LogitSqueezing(weight=0, sigma=0).bind(network)(batch), plain)


def test_what_they_add_by_hand(network: nn.Sequential, batch: Minibatch) -> None:
    with torch.no_grad():
        z = network(batch.x)
        plain = functional.cross_entropy(z, batch.y)
        squeezed = sum(float(row @ row) for row in z) / z.numel()
        paired = sum(float((z[i] - z[i - 1]) @ (z[i] - z[i - 1])) for i in range(len(z))) / z.numel()
        assert float(LogitSqueezing(weight=2, sigma=0).bind(network)(batch) - plain) == pytest.approx(2 * squeezed, rel=1e-4)
        assert float(CleanLogitPairing(weight=1e4, sigma=0).bind(network)(batch) - plain) == pytest.approx(1e4 * paired, rel=1e-3)


def test_the_noise_is_gaussian_and_belongs_to_the_image(batch: Minibatch) -> None:
    noise = noisy(batch.x, batch.key, 0.5) - batch.x
    assert float(noise.std()) == pytest.approx(0.5, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    some = torch.tensor([7, 3])
    assert torch.equal(noisy(batch.x[some], batch.key[some], 0.5), noisy(batch.x, batch.key, 0.5)[some])


@pytest.mark.parametrize("recipe", ["clean-logit-pairing", "logit-squeezing"])
def test_the_logits_get_small_and_the_model_still_learns(quick: Quick, recipe: str) -> None:
    test = load_data("digits:n=128")
    models = [quick(f"{recipe}:weight={w},epochs=20", f"{w}.safetensors", data="digits:n=700").classifier("cpu") for w in (0, 5)]
    sizes = [float(model(test.x).std(1).mean()) for model in models]
    assert sizes[1] < sizes[0] / 3
    assert float((models[1](test.x).argmax(1) == test.y).float().mean()) > 0.85


@pytest.mark.parametrize("recipe", ["clean-logit-pairing", "logit-squeezing"])
@pytest.mark.parametrize("value", ["weight=-1", "sigma=-0.5"])
def test_bad_values_are_refused(recipe: str, value: str) -> None:
    with pytest.raises(BadInput, match=value.partition("=")[0]):
        load_recipe(f"{recipe}:{value}")


@pytest.mark.parametrize("name", ["mnist-clp", "mnist-lsq"])
def test_the_bundled_controls_look_robust_and_are_not(name: str, shared_data: Path) -> None:
    model, (x, y) = load_model(f"zoo:{name}"), load_data("mnist:n=100", root=shared_data)
    left = {}
    for attack in (PGD(steps=40), APGD(loss="dlr-targeted", steps=50, restarts=1)):
        result = attack(model, x, y, threat=Linf("0.3"))
        left[attack.name] = float(((model(x).argmax(1) == y) & ~result.success).float().mean())
    assert left["pgd"] > 0.2
    assert left["apgd"] < 0.1
