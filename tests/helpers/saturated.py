"""A network whose gradients a saturating function destroys, without a line of code: the same decisions as another's."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from robustkit.models import load_model


def pairwise(gain: float = 100, function: type[nn.Module] = nn.Tanh, name: str = "zoo:digits-standard") -> nn.Sequential:
    """Every pair of classes casts a vote, the saturated difference of their logits."""
    network = load_model(name).module
    assert isinstance(network, nn.Sequential)
    pairs = list(itertools.combinations(range(10), 2))
    differences = torch.zeros(len(pairs), 10)
    for row, (one, other) in enumerate(pairs):
        differences[row, one], differences[row, other] = 1, -1
    amplified, votes = nn.Linear(10, len(pairs), bias=False), nn.Linear(len(pairs), 10, bias=False)
    amplified.weight = nn.Parameter(gain * differences)
    votes.weight = nn.Parameter(differences.t().contiguous())
    return nn.Sequential(*network, amplified, function(), votes).eval()
