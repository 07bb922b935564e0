"""Exact binomial tails and intervals, from scipy's incomplete beta function: scipy.stats takes a second to import."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import betainc, betaincinv

from robustkit.verdict.evidence import Floats


def at_least(successes: Any, trials: Any, p: float) -> Floats:
    """Probability of so many successes or more (shapes broadcast), each trial succeeding with probability p."""
    k, n = np.broadcast_arrays(np.asarray(successes, np.float64), np.asarray(trials, np.float64))
    inner = (k > 0) & (k <= n)
    found: Floats = np.where(inner, betainc(np.where(inner, k, 1), np.where(inner, n - k + 1, 1), p), k <= 0).astype(np.float64)
    return found


def lower_bound(successes: Any, trials: Any, alpha: float) -> Floats:
    """One-sided Clopper-Pearson bound: below the probability of success with confidence 1 - alpha."""
    k, n = np.broadcast_arrays(np.asarray(successes, np.float64), np.asarray(trials, np.float64))
    found: Floats = np.where(k > 0, betaincinv(np.maximum(k, 1e-300), n - k + 1, alpha), 0.0)
    return found


def interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided Clopper-Pearson interval of the probability of success."""
    alpha = (1 - confidence) / 2
    return float(lower_bound(successes, trials, alpha)), 1 - float(lower_bound(trials - successes, trials, alpha))


def most(trials: int, p: float, confidence: float) -> int:
    """The fewest successes that are not exceeded with this confidence."""
    exceeded = at_least(np.arange(1, trials + 1), trials, p)
    return int((exceeded > 1 - confidence).sum())
