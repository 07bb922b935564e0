"""Runs a certifier over samples: exact arithmetic, padded batches, proofs near zero redone in float64.

A proof is a margin strictly above 0. Verdicts do not depend on the batch size: rows are padded to
a multiple of 16 and budgets are rounded down to float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustkit.errors import BadInput
from robustkit.methods import Bound
from robustkit.numerics import exact_mode, pad_rows, padded

NEAR = 1e-4
"""Margins below NEAR x (1 + scale) are computed again in float64."""

CLEAR = 1e-12
"""A proof needs a margin of at least CLEAR x (1 + max|z|): what float64 may round off in bounds of usual networks."""


def prove(bound: Bound, x: Tensor, y: Tensor, eps: Tensor, *, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Whether no error lies within each sample's closed ball; for correct samples of one batch.

    Args:
        bound: what Certifier.bind gave.
        x, y: (R,C,H,W) images in [0,1], (R,) labels.
        eps: (R,) float64 budgets, at least 0.
        scale: (R,) largest |logit| of the clean images where known: float32 errors grow with it.
    Returns:
        proven (R,) bool, margin (R,) float64, -inf where the bound is no number; on the device of x.
    """
    if not len(x):
        return torch.zeros(0, dtype=torch.bool, device=x.device), torch.zeros(0, dtype=torch.float64, device=x.device)
    if eps.dtype != torch.float64 or eps.shape != y.shape or bool((~(eps >= 0)).any()):
        raise BadInput("certification budgets: expected one float64 number of at least 0 for every sample")
    margin = _margin(bound, x, y, eps)
    size = 1 + (torch.zeros_like(margin) if scale is None else scale.to(margin))
    near = (margin.abs() < NEAR * size).nonzero()[:, 0]
    if len(near) and x.dtype != torch.float64:
        margin = margin.index_put((near,), _margin(bound, x[near].double(), y[near], eps[near]))
    return margin >= CLEAR * size, margin


def _margin(bound: Bound, x: Tensor, y: Tensor, eps: Tensor) -> Tensor:
    rows = padded(len(x))
    with exact_mode(), torch.no_grad():
        found = bound(pad_rows(x, rows), pad_rows(y, rows), pad_rows(eps, rows))[: len(x)].to(x.device, torch.float64)
    return torch.where(torch.isfinite(found), found, -torch.inf)


def largest_radius(
    bound: Bound, x: Tensor, y: Tensor, low: Tensor, high: Tensor, rounds: int = 12, *, scale: Tensor | None = None, close: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The largest radius that a search finds a proof for, per sample: valid, not maximal.

    Rounds halve the bracket and interpolate its margins in turn.

    Args:
        bound, x, y, scale: as in `prove`.
        low: (R,) float64, tried first; a sample unproven there is given up.
        high: (R,) float64 finite, never tried itself: the smallest known witness, or the whole box.
        rounds: radii tried between them.
        close: a sample is done where what is left of its bracket is at most this share of its upper end.
    Returns:
        radius (R,) float64, -inf where not even `low` is proven (0 is a radius like any other), and
        the margin (R,) float64 proven there.
    """
    if rounds < 0 or high.shape != low.shape or not bool((torch.isfinite(high) & (high >= low)).all()):
        raise BadInput("radius search: expected low <= high < inf for every sample, and at least 0 rounds")
    proven, margin = prove(bound, x, y, low, scale=scale)
    best, bad = torch.where(proven, low, -torch.inf), high.clone()
    short = torch.full_like(margin, -torch.inf)  # the margin at `bad`, once it is known
    for number in range(rounds):
        alive = ((best >= 0) & (bad - best > close * bad)).nonzero()[:, 0]
        if not len(alive):
            break
        share = torch.full_like(best[alive], 0.5)
        if number % 2:  # where a straight line through both margins would cross zero
            share = torch.where(torch.isfinite(short[alive]), margin[alive] / (margin[alive] - short[alive]), share)
        probe = best[alive] + share.clamp(0.01, 0.99) * (bad[alive] - best[alive])
        proven, found = prove(bound, x[alive], y[alive], probe, scale=None if scale is None else scale[alive])
        best[alive], bad[alive] = torch.where(proven, probe, best[alive]), torch.where(proven, bad[alive], probe)
        margin[alive], short[alive] = torch.where(proven, found, margin[alive]), torch.where(proven, short[alive], found)
    return best, margin
