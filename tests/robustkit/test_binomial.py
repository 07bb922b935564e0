"""Binomial tails and intervals: scipy.stats' own, without importing it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from robustkit import binomial

TRIALS = [1, 2, 7, 64, 500, 100_000]


@pytest.mark.parametrize("n", TRIALS)
@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.97])
def test_tails(n: int, p: float) -> None:
    k = np.unique(np.linspace(0, n, 40).astype(int))
    assert np.allclose(binomial.at_least(k, n, p), stats.binom.sf(k - 1, n, p), rtol=1e-9, atol=1e-300)


def test_tails_at_the_ends() -> None:
    assert binomial.at_least(0, 0, 0.5) == 1 and binomial.at_least(3, 2, 0.5) == 0
    assert binomial.at_least([1, 2], [0, 2], 0.5).tolist() == [0, 0.25]
    assert binomial.at_least(1, 5, 0.0) == 0 and binomial.at_least(5, 5, 1.0) == 1


@pytest.mark.parametrize("n", TRIALS)
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_intervals(n: int, confidence: float) -> None:
    for k in {0, 1, n // 3, n - 1, n}:
        expected = stats.binomtest(k, n).proportion_ci(confidence, method="exact")
        assert binomial.interval(k, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-11)


def test_a_bound_for_every_count() -> None:
    k, alpha = np.arange(101), 0.001
    found = binomial.lower_bound(k, 100, alpha)
    assert found[0] == 0 and np.all(np.diff(found) > 0)
    assert np.allclose(binomial.at_least(k[1:], 100, 0.5) <= alpha, found[1:] >= 0.5)  # two ways to the same decision


@pytest.mark.parametrize("n", TRIALS)
@pytest.mark.parametrize("p", [0.0, 0.001, 0.3, 1.0])
def test_most(n: int, p: float) -> None:
    assert binomial.most(n, p, 0.95) == int(stats.binom.ppf(0.95, n, p))


def test_an_evaluation_does_not_wait_for_scipy_stats() -> None:
    code = "import sys, robustkit.engine, robustkit.cli.commands; sys.exit('scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
