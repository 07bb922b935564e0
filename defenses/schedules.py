"""Schedules as pure functions of the progress of training, a share from 0 to 1.

Nothing of them has to be kept in a checkpoint.
"""

from __future__ import annotations

import math


def ramp(progress: float, begin: float, end: float) -> float:
    """0 up to `begin`, then straight to 1 at `end`, then 1."""
    if progress >= end:
        return 1.0
    return max(0.0, (progress - begin) / (end - begin))


def one_cycle(progress: float, rise: float = 0.3, first: float = 1 / 25, last: float = 1e-5) -> float:
    """The learning rate as a share of its peak: by half cosines from `first` up to 1 at `rise`, then down to `last`.

    Smith & Topin 2019, https://arxiv.org/abs/1708.07120; the momentum is not cycled.
    """
    if progress < rise:
        return _cosine(first, 1.0, progress / rise)
    return _cosine(1.0, last, (progress - rise) / (1 - rise))


def late_decay(progress: float, warm: float = 0.01, keep: float = 0.8, last: float = 0.01) -> float:
    """The learning rate as a share of its peak: a short straight rise, full until `keep`, then straight down to `last`."""
    if progress < warm:
        return (progress + 0.01 * warm) / (1.01 * warm)
    return 1.0 - (1.0 - last) * ramp(progress, keep, 1.0)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
