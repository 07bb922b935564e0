"""One-sided confidence bounds from draws: of a probability by counting, of a mean of scores in [0,1].

Counts: Clopper & Pearson 1934, exact. Scores: the better of two bounds that each take half of the
level. Hoeffding's inequality in its relative-entropy form (Hoeffding 1963) loses nothing against
counting where scores are nearly 0 or 1; the empirical Bernstein bound (Maurer & Pontil 2009,
https://arxiv.org/abs/0907.3740), which PixelDP names too, is better where their variance is small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr

from robustkit.binomial import lower_bound
from robustkit.verdict.evidence import Floats

HALVINGS = 60
"""Bisection steps; the end kept is the safe one."""

DOUBT = 1e-4
"""Level at which a sample is given up: an error costs a certificate, never its truth."""


@dataclass
class Drawn:
    """What `draws` draws of R images have given."""

    sums: Floats
    """(R,K) votes, or sums of scores in [0,1]."""
    squares: Floats
    """(R,K) sums of the squares of scores."""
    draws: int
    aggregate: Literal["vote", "mean"]

    @staticmethod
    def none(rows: int, classes: int, aggregate: Literal["vote", "mean"]) -> Drawn:
        """No draw yet."""
        return Drawn(np.zeros((rows, classes)), np.zeros((rows, classes)), 0, aggregate)

    def pick(self, at: Any) -> Drawn:
        """The images at positions `at`."""
        return Drawn(self.sums[at], self.squares[at], self.draws, self.aggregate)

    def add(self, at: Any, sums: Floats, squares: Floats) -> None:
        """More draws of the images at positions `at`; `draws` is the caller's to set."""
        self.sums[at] += sums
        self.squares[at] += squares

    def hoped(self, label: NDArray[np.int64], draws: int) -> Drawn:
        """What `draws` draws in all can still say: the rest give the label as often as these allow but for DOUBT, without varying."""
        at = np.arange(len(self.sums)), label
        rate = 1 - self._below(self.draws - self.sums[at], self.draws - 2 * self.sums[at] + self.squares[at], DOUBT)
        sums = self.sums.copy()
        sums[at] += (draws - self.draws) * rate
        return Drawn(sums, np.zeros_like(sums), draws, self.aggregate)

    def least(self, label: NDArray[np.int64], alpha: float) -> Floats:
        """(R,) below the probability (or mean score) of the label, with confidence 1 - alpha."""
        at = np.arange(len(label)), label
        return self._below(self.sums[at], self.squares[at], alpha)

    def label_and_others(self, label: NDArray[np.int64], alpha: float) -> tuple[Floats, Floats]:
        """(R,) lower bound of the label and upper bound of every other class, all together with confidence 1 - alpha."""
        low = self.least(label, alpha / 2)
        short = self._below(self.draws - self.sums, self.draws - 2 * self.sums + self.squares, alpha / (2 * (self.sums.shape[1] - 1)))
        short[np.arange(len(label)), label] = 1
        return low, np.minimum(1 - short.min(1), 1 - low)

    def _below(self, sums: Floats, squares: Floats, alpha: float) -> Floats:
        if self.aggregate == "vote":
            return lower_bound(sums, self.draws, alpha)
        return lower_mean(sums, squares, self.draws, alpha)


def lower_mean(sums: Any, squares: Any, draws: int, alpha: float) -> Floats:
    """Below the mean of independent scores in [0,1] with confidence 1 - alpha, from their sum and that of their squares."""
    total, second = np.asarray(sums, dtype=np.float64), np.asarray(squares, dtype=np.float64)
    mean = np.clip(total / draws, 0, 1)
    return np.maximum(_entropy_bound(mean, np.log(2 / alpha) / draws), _bernstein_bound(mean, total, second, draws, alpha / 2))


def _entropy_bound(mean: Floats, limit: float) -> Floats:
    """The smallest p at most `mean` whose Bernoulli relative entropy from it is not above the limit, rounded down."""
    low, high = np.zeros_like(mean), mean.copy()
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        out = rel_entr(mean, middle) + rel_entr(1 - mean, 1 - middle) > limit
        low, high = np.where(out, middle, low), np.where(out, high, middle)
    return low


def _bernstein_bound(mean: Floats, total: Floats, second: Floats, draws: int, alpha: float) -> Floats:
    """Empirical Bernstein: mean - sqrt(2 V ln(2/alpha) / n) - 7 ln(2/alpha) / (3 (n - 1)), V the sample variance."""
    if draws < 2:
        return np.zeros_like(mean)
    level = np.log(2 / alpha)
    variance = np.clip((second - total * total / draws) / (draws - 1), 0, None)
    return np.asarray(mean - np.sqrt(2 * variance * level / draws) - 7 * level / (3 * (draws - 1)))
