"""Lines below and above every activation but ReLU.

For lines of slope k the points at which f(x) - k x can be extreme solve f'(x) = k, or are kinks: closed
forms for the S-shaped and convex ones; for GELU and SiLU bisection on the three branches on which
f' is monotone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustkit.certify import ops
from robustkit.certify.activations import ELU, Dipping, Softplus
from robustkit.certify.relax import Choice, Lines, curved, kinked, loose_where, relaxation

HALVINGS = 30
"""Bisection steps for the points of a given derivative; an error of d moves a line by order d^2."""


def _nonzero(slope: Tensor, most: float = torch.inf) -> Tensor:
    return slope.clamp(torch.finfo(slope.dtype).tiny, most)


@relaxation(ops.Sigmoid)
def _sigmoid(op: ops.Op, low: Tensor, high: Tensor, at: Tensor, choice: Choice) -> Lines:
    def candidates(slope: Tensor, low: Tensor, high: Tensor) -> list[Tensor]:
        share = 2 * _nonzero(slope, 0.25) / (1 + (1 - 4 * _nonzero(slope, 0.25)).sqrt())
        x = torch.log(share) - torch.log1p(-share)
        return [x, -x]

    return curved(op, low, high, at, choice, candidates)


@relaxation(ops.Tanh)
def _tanh(op: ops.Op, low: Tensor, high: Tensor, at: Tensor, choice: Choice) -> Lines:
    def candidates(slope: Tensor, low: Tensor, high: Tensor) -> list[Tensor]:
        x = torch.log1p((1 - _nonzero(slope, 1)).sqrt()) - torch.log(_nonzero(slope, 1)) / 2
        return [x, -x]

    return curved(op, low, high, at, choice, candidates)


@relaxation(Softplus)
def _softplus(op: Softplus, low: Tensor, high: Tensor, at: Tensor, choice: Choice) -> Lines:
    def candidates(slope: Tensor, low: Tensor, high: Tensor) -> list[Tensor]:
        return [torch.logit(_nonzero(slope, 1)) / op.beta]

    return curved(op, low, high, at, choice, candidates)


@relaxation(ELU)
def _elu(op: ELU, low: Tensor, high: Tensor, at: Tensor, choice: Choice) -> Lines:
    def candidates(slope: Tensor, low: Tensor, high: Tensor) -> list[Tensor]:
        return [torch.log(_nonzero(slope) / max(op.alpha, 1e-30)).clamp(max=0), torch.zeros_like(slope)]

    return curved(op, low, high, at, choice, candidates)


@relaxation(Dipping)
def _dipping_lines(op: Dipping, low: Tensor, high: Tensor, at: Tensor, choice: Choice) -> Lines:
    def candidates(slope: Tensor, low: Tensor, high: Tensor) -> list[Tensor]:
        found = []
        for left, right, rises in ((-torch.inf, -op.bend, False), (-op.bend, op.bend, True), (op.bend, torch.inf, False)):
            a, b = (torch.minimum(torch.maximum(torch.clamp(end, left, right), low), high) for end in (low, high))
            for _ in range(HALVINGS):
                middle = (a + b) / 2
                below = (op.derivative(middle) < slope) == rises
                a, b = torch.where(below, middle, a), torch.where(below, b, middle)
            found.append((a + b) / 2)
        return found

    return curved(op, low, high, at, choice, candidates)


@relaxation(ops.LeakyReLU)
def _leaky(op: ops.LeakyReLU, low: Tensor, high: Tensor, at: Tensor, choice: Choice) -> Lines:
    if op.slope <= 1:
        return kinked(op.slope, low, high, at, choice)
    return curved(op, low, high, at, choice, lambda slope, low, high: [torch.zeros_like(slope)])


@relaxation(ops.Clamp)
def _clamp(op: ops.Clamp, low: Tensor, high: Tensor, at: Tensor, choice: Choice) -> Lines:
    kinks = [k for k in (op.low, op.high) if k is not None]
    return curved(op, low, high, at, choice, lambda slope, low, high: [torch.full_like(slope, k) for k in kinks])


@loose_where(ops.Clamp)
def _bends(op: ops.Clamp, low: Tensor, high: Tensor) -> Tensor:
    found = torch.zeros_like(low, dtype=torch.bool)
    for kink in (op.low, op.high):
        if kink is not None:
            found |= (low < kink) & (high > kink)
    return found
