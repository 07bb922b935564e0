"""Radius search: the smallest budget at which an attack still breaks each sample, by bisection.

All samples are searched together, each at its own budget. An attack need not be monotone in the
budget, so the found size is an upper bound of the robust radius, not its best. Minimum-norm attacks
need no search: they run once, and what they find is shrunk towards the clean image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from robustkit.numerics import choose
from robustkit.samples import Outcome, Samples
from robustkit.verdict.judge import Judge


class Searcher(Protocol):
    """A driver."""

    def run(self, samples: Samples, deliver: Callable[[Outcome], None]) -> None:
        """Attack all samples; `deliver` gets each sample's outcome once."""


ROUNDS = 16
RELATIVE = 1 / 64
"""The search ends where the interval is shorter than this share of its upper end."""


SHRINKS = 8
"""Halvings of the way from the clean image to a witness: what is left is below half a percent."""


def shrink(judge: Judge, samples: Samples, found: Outcome) -> Outcome:
    """Project witnesses onto ever smaller balls while the Judge confirms them; one query a halving."""
    where = found.success.nonzero()[:, 0]
    if not len(where):
        return found
    device = judge.classifier.device
    at = found.at[where]
    x, y, target, p, high = (
        part.to(device) for part in (samples.images(at), samples.y[at], samples.target[at], found.parameters[where], found.size[where])
    )
    predicted, low = found.predicted[where].to(device), torch.zeros_like(high)
    for _ in range(SHRINKS):
        middle = (low + high) / 2
        trial = judge.threat.project(x, p, middle)
        verified, size, logits = judge.confirm(x, y, target, trial, middle)
        p = choose(verified, trial, p)
        low, high = torch.where(verified, low, middle), torch.where(verified, size, high)
        predicted = torch.where(verified, logits.argmax(1), predicted)
    spent = torch.zeros_like(found.queries).index_fill_(0, where, SHRINKS)
    parts = {"parameters": p, "size": high, "predicted": predicted}
    smaller = {name: getattr(found, name).index_copy(0, where, value.cpu()) for name, value in parts.items()}
    return replace(found, queries=found.queries + spent, **smaller)


def search_radius(make_driver: Callable[[], Searcher], samples: Samples, low: Tensor, high: Tensor, most: float) -> Outcome:
    """Bisect the budget of every sample.

    Args:
        make_driver: makes a driver of the attack.
        samples: what to attack; its eps are ignored.
        low: (N,) float64 budgets known or presumed to hold, at least 0.
        high: (N,) float64 sizes of known witnesses, +inf for none.
        most: the budget at which everything is allowed.
    Returns:
        one outcome in sample order: the smallest witness found here, queries and gradients in all.
    """
    count = len(samples)
    low, high = low.clone(), high.clone()
    best: list[tuple[float, Tensor, int] | None] = [None] * count
    queries, gradients = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
    for _ in range(ROUNDS):
        wider = torch.clamp(torch.maximum(2 * low, torch.tensor(most / 16)), max=most)
        trial = torch.where(torch.isinf(high), wider, (low + high) / 2)
        active = torch.where(torch.isinf(high), low < most, high - low > RELATIVE * high).nonzero()[:, 0]
        if not len(active):
            break
        chosen = samples.pick(active)
        chosen.eps = trial[active]
        found: list[Outcome] = []
        make_driver().run(chosen, found.append)
        outcome = Outcome.join(found)
        at = active[outcome.at]
        queries[at] += outcome.queries
        gradients[at] += outcome.gradients
        low[at] = torch.where(outcome.success, low[at], trial[at])
        high[at] = torch.where(outcome.success, torch.minimum(high[at], outcome.size), high[at])
        for i, where in enumerate(at.tolist()):
            held = best[where]
            if bool(outcome.success[i]) and (held is None or float(outcome.size[i]) < held[0]):
                best[where] = (float(outcome.size[i]), outcome.parameters[i], int(outcome.predicted[i]))
    success = torch.tensor([b is not None for b in best])
    size = torch.tensor([b[0] if b else torch.inf for b in best], dtype=torch.float64)
    shape = next((b[1] for b in best if b), torch.zeros(0))
    parameters = torch.stack([b[1] if b else torch.zeros_like(shape) for b in best])
    predicted = torch.tensor([b[2] if b else -1 for b in best])
    return Outcome(torch.arange(count), success, size, parameters, predicted, queries, gradients)
