"""Architectures: by name, as text, built, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_cases import SMALL
from torch import nn

from robustkit.errors import BadInput
from robustkit.models import architecture_names, architecture_text, build, output_shape, state_digest
from robustkit.models.architecture import skeleton


@pytest.mark.parametrize(
    ("name", "shape", "weights"),
    [
        ("wong-small", (1, 28, 28), 166406),
        ("wong-small", (3, 32, 32), 214918),
        ("digits-cnn", (1, 8, 8), 43050),
        ("mlp", (1, 8, 8), 64 * 256 + 256 + 256 * 256 + 256 + 2570),
        ("mlp:hidden=[20]", (1, 8, 8), 64 * 20 + 20 + 210),
        ("mlp:[]", (1, 8, 8), 650),
        ("resnet-tiny", (3, 32, 32), None),
    ],
)
def test_named_architectures(name: str, shape: tuple[int, int, int], weights: int | None) -> None:
    text = architecture_text(name, shape, 10)
    net = build(text).eval()
    assert net(torch.rand(2, *shape)).shape == (2, 10)
    assert weights is None or sum(p.numel() for p in net.parameters()) == weights
    assert architecture_text(text, shape, 10) == text
    assert output_shape(text, shape) == (10,)


def test_wong_small_is_the_shared_architecture() -> None:
    assert architecture_text("wong-small", (1, 28, 28), 10) == (
        "conv(1,16,4,s2,p1)-relu-conv(16,32,4,s2,p1)-relu-flatten-linear(1568,100)-relu-linear(100,10)"
    )
    assert set(architecture_names()) == {"digits-cnn", "mlp", "resnet-tiny", "wong-small"}


def test_every_layer_computes_what_it_says() -> None:
    text = (
        "conv(2,4,3,s1,p1,nobias)-bn(4)-leakyrelu(0.2)-res(conv(4,4,3,p1)-tanh|)-maxpool(2)-res(conv(4,6,3,s2,p1)|conv(4,6,1,s2))"
        "-sigmoid-avgpool(3,s1,p1)-dropout(0.3)-globalavgpool-flatten-linear(6,3,nobias)"
    )
    net: Any = build(text, seed=3).eval()
    x = torch.rand(2, 2, 8, 8)
    by_hand = nn.functional.leaky_relu(net[1](nn.functional.conv2d(x, net[0].weight, padding=1)), 0.2)
    by_hand = by_hand + torch.tanh(net[3].body[0](by_hand))
    by_hand = nn.functional.max_pool2d(by_hand, 2)
    by_hand = torch.sigmoid(net[5].body(by_hand) + nn.functional.conv2d(by_hand, net[5].shortcut[0].weight, net[5].shortcut[0].bias, 2))
    by_hand = nn.functional.avg_pool2d(by_hand, 3, 1, 1).mean((2, 3)) @ net[11].weight.T
    assert torch.allclose(net(x), by_hand, atol=1e-6)
    assert "5.shortcut.0.weight" in net.state_dict()
    assert net[0].bias is None


def test_building_is_seeded_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second, other = build(SMALL, 1), build(SMALL, 1), build(SMALL, 2)
    skeleton(SMALL)
    assert torch.equal(before, torch.get_rng_state())
    assert state_digest(first) == state_digest(second) != state_digest(other)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("conv(1,4)", "kernel is missing"),
        ("conv(1,4,3,q1)", "unexpected q1"),
        ("conv(1,-4,3)", "above 0"),
        ("conv(1,0,3)", "above 0"),
        ("conv(1,4,3,s0)", "at least s1"),
        ("conv(1,4,3", "parentheses"),
        ("conv(1,4,3))", "parentheses"),
        ("relu)-(flatten", "parentheses"),
        ("rleu", "did you mean 'relu'"),
        ("relu--flatten", "unknown layer"),
        ("", "unknown layer"),
        ("__import__(os)", "unknown layer"),
        ("relu(1)", "unexpected 1"),
        ("leakyrelu(x)", "could not convert"),
        ("dropout(3)", "dropout"),
        ("res(relu)", "BODY|SHORTCUT"),
        ("res(|relu)", "BODY|SHORTCUT"),
        ("linear(999999999,999999999)-linear(4,4)", "does not take images"),
        ("linear(9999999999,2)", "whole number"),
        ("res(" * 20 + "relu" + "|)" * 20, "deeper"),
        ("-".join(["relu"] * 3000), "3000 layers"),
        ("flatten-linear(63,10)", "does not take images"),
    ],
)
def test_malformed_architectures_are_named(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words.replace("|", r"\|")) as caught:
        output_shape(text, (1, 8, 8))
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="conv(1,2)-relu|s linear", max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_architecture_text_is_built_or_refused_in_words(text: str) -> None:
    try:
        net = skeleton(text)
    except BadInput:
        return
    assert len(net) == text.count("-") + 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wong-smal", "did you mean 'wong-small'"),
        ("mlp:hidden=[0]", "at least 1"),
        ("wong-small:x=1", "option"),
        ("flatten-linear(64,3)", "3 outputs"),
    ],
)
def test_unknown_architectures_are_named(name: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        architecture_text(name, (1, 8, 8), 10)
