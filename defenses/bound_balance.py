"""The regulariser of Shi et al. 2021, https://arxiv.org/abs/2103.17268: while the budget grows it keeps
interval bounds from exploding, and active and inactive neurons in balance.

With centres c and half widths r of the values in front of each of m ReLU layers, means E over
images and neurons, and a tolerance t:

    tightness = sum over layers of relu(t - E r_input / E r) / (t m)
    balance   = sum over layers of (relu(t - a) + relu(t - b)) / (t m)

a is the ratio of E[c; active] to -E[c; inactive], b that of the sums of (c - E c)^2 over active and
inactive neurons, each ratio turned so that it is at most 1. Active is a lower bound above 0,
inactive an upper one below 0. A layer without neurons of both kinds has no balance to speak of and
adds nothing to it, as in the authors' code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustkit.certify import ops
from robustkit.certify.backward import State
from robustkit.certify.interval import Interval


def imbalance(state: State, tolerance: float) -> Tensor:
    """Tightness + balance, a scalar, from the intervals of a state; 0 without ReLU layers."""
    image = state.intervals[0].width.mean() / 2
    layers = [state.intervals[node.inputs[0]] for node in state.network.nodes if isinstance(node.op, ops.ReLU)]
    found = [_tightness(image, layer, tolerance) + _balance(layer, tolerance) for layer in layers]
    return torch.stack(found).mean() / tolerance if found else image.new_zeros(())


def _tightness(image: Tensor, layer: Interval, tolerance: float) -> Tensor:
    return torch.relu(tolerance - image / _positive(layer.width.mean() / 2))


def _balance(layer: Interval, tolerance: float) -> Tensor:
    active, inactive = (layer.low > 0).to(layer.centre), (layer.high < 0).to(layer.centre)
    if not bool(active.any()) or not bool(inactive.any()):
        return layer.centre.new_zeros(())
    spread = (layer.centre - layer.centre.mean()).square()
    means = _ratio((layer.centre * active).mean(), -(layer.centre * inactive).mean())
    spreads = _ratio((spread * active).sum(), (spread * inactive).sum())
    return torch.relu(tolerance - means) + torch.relu(tolerance - spreads)


def _ratio(one: Tensor, other: Tensor) -> Tensor:
    """The smaller over the larger of two positive numbers."""
    return torch.minimum(one, other) / _positive(torch.maximum(one, other))


def _positive(value: Tensor) -> Tensor:
    return value.clamp(min=1e-12)
