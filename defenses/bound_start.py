"""The initialisation of Shi et al. 2021, "Fast Certified Robust Training with Short Warmup",
https://arxiv.org/abs/2103.17268: weights with which interval bounds neither explode nor vanish.

A layer with n inputs makes widths n E|w| times as large, a ReLU after it halves them. The gain of
both is 1 where E|w| = 2 / n: for normal weights a standard deviation of sqrt(2 pi) / n.

Deviations: residual branches are not halved; biases stay as they were drawn.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from robustkit import streams


def start_tight(network: nn.Module, seed: int) -> None:
    """Draw the weights of all convolutions and fully connected layers but the last one anew, in place."""
    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Linear, _ConvNd))][:-1]
    keys = streams.row_keys(seed, "train/bound-start", torch.arange(len(layers)))
    with torch.no_grad():
        for key, layer in zip(keys, layers):
            drawn = streams.normal(key[None], tuple(layer.weight.shape))[0]
            layer.weight.copy_(drawn * (math.sqrt(2 * math.pi) / layer.weight[0].numel()))
