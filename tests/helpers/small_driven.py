"""A small network, images that it mostly has right, and when two results are the same."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor, nn

from robustkit.classifier import Classifier
from robustkit.methods import Result


def network() -> nn.Module:
    """Random weights; the last bias makes all five classes equally likely."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        last = nn.Linear(24, 5)
        made = nn.Sequential(nn.Conv2d(1, 6, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 24), nn.ReLU(), last).eval()
    with torch.no_grad():
        last.bias.sub_(made(torch.rand(500, 1, 8, 8, generator=torch.Generator().manual_seed(9))).mean(0))
    return made


def samples(count: int = 90) -> tuple[Tensor, Tensor]:
    """Images and labels, most of them those the network gives, so that it is mostly right."""
    x = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = Classifier(network()).logits(x).argmax(1)
    y[::11] = (y[::11] + 1) % 5
    return x, y


def same(one: Result, other: Result) -> None:
    for field in fields(Result):
        assert torch.equal(getattr(one, field.name), getattr(other, field.name)), field.name
