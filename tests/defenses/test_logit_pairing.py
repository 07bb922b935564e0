"""Adversarial logit pairing."""

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
from robustkit.defenses import AdversarialTraining, LogitPairing, Minibatch, load_recipe
from robustkit.defenses.logit_pairing import apart
from robustkit.errors import BadInput
from robustkit.threats import Linf

Quick = Callable[..., Any]


def test_the_distance_is_the_mean_square_over_images_and_logits() -> None:
    one, other = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    assert float(apart(one, other)) == pytest.approx((4 + 9 + 1) / 4)


def test_its_parts_are_those_of_the_paper(network: nn.Sequential, batch: Minibatch) -> None:
    """Without pairing and clean images it is adversarial training; at budget 0 pairs are at distance 0."""
    adversarial = AdversarialTraining().bind(network)(batch)
    assert torch.equal(LogitPairing(weight=0, clean=0).bind(network)(batch), adversarial)
    plain = functional.cross_entropy(network(batch.x), batch.y)
    mixed = LogitPairing(weight=0, clean=0.25).bind(network)(batch)
    torch.testing.assert_close(mixed, 0.25 * plain + 0.75 * adversarial)
    one, two = (LogitPairing(weight=weight).bind(network)(batch) for weight in (1.0, 3.0))
    half = LogitPairing(weight=0).bind(network)(batch)
    assert one > half
    torch.testing.assert_close(two - half, 3 * (one - half))
    start = LogitPairing(weight=100, rise=0.5).bind(network)(replace(batch, progress=0.0))
    torch.testing.assert_close(start, plain)


def test_it_makes_more_robust_than_plain_training(quick: Quick) -> None:
    test = load_data("digits:n=128")
    robust = {}
    for name, recipe in {"standard": "standard:epochs=30", "paired": "logit-pairing:eps=0.15,steps=4,epochs=30"}.items():
        model = quick(recipe, f"{name}.safetensors", data="digits:n=700", arch="conv(1,8,3,s2,p1)-relu-flatten-linear(128,10)").classifier(
            "cpu"
        )
        result = PGD(steps=20)(model, *test, threat=Linf("0.15"))
        robust[name] = float(((model(test.x).argmax(1) == test.y) & ~result.success).float().mean())
    assert robust["paired"] > robust["standard"] + 0.2


@pytest.mark.parametrize("text", ["logit-pairing:weight=-1", "logit-pairing:clean=1.5", "logit-pairing:steps=0"])
def test_bad_values_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match=text.partition(":")[2].partition("=")[0]):
        load_recipe(text)
