"""Confidence bounds of means: their level on distributions with known mean, and how much they give away."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import rel_entr
from scipy.stats import binom

from robustkit.binomial import lower_bound
from robustkit.certify.confidence import Drawn, lower_mean

DISTRIBUTIONS: dict[str, tuple[Callable[[np.random.Generator, tuple[int, int]], np.ndarray], float]] = {
    "coin": (lambda g, size: (g.random(size) < 0.97).astype(float), 0.97),
    "rare": (lambda g, size: (g.random(size) < 0.02).astype(float), 0.02),
    "beta": (lambda g, size: g.beta(6, 2, size), 0.75),
    "nearly constant": (lambda g, size: 0.6 + 0.02 * (g.random(size) - 0.5), 0.6),
    "two-valued": (lambda g, size: np.where(g.random(size) < 0.9, 0.7, 0.0), 0.63),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize(("n", "alpha"), [(20, 0.05), (400, 0.05), (400, 0.5)])
def test_the_stated_level_holds_for_scores(name: str, n: int, alpha: float) -> None:
    draw, mean = DISTRIBUTIONS[name]
    scores = draw(np.random.default_rng(5), (4000, n))
    wrong = int((lower_mean(scores.sum(1), (scores**2).sum(1), n, alpha) > mean).sum())
    assert binom.sf(wrong - 1, 4000, alpha) > 1e-4


def test_the_entropy_bound_solves_its_equation_from_below() -> None:
    n, alpha = 500, 0.01
    mean = np.array([0.02, 0.5, 0.9, 0.999])
    coins = lower_mean(mean * n, mean * n, n, alpha)  # scores of 0 and 1: variance is largest, so this bound decides
    spent = (rel_entr(mean, coins) + rel_entr(1 - mean, 1 - coins)) * n
    assert np.allclose(spent, np.log(2 / alpha), rtol=1e-9)
    assert bool((spent >= np.log(2 / alpha) * (1 - 1e-12)).all())
    assert float(lower_mean(n, n, n, alpha)) == pytest.approx((alpha / 2) ** (1 / n), abs=1e-12)
    assert float(lower_mean(0, 0, n, alpha)) == 0


def test_scores_of_0_and_1_lose_little_against_counting_and_steady_ones_win() -> None:
    n, alpha = 10_000, 0.001
    for k in (9_990, 9_500, 7_000):
        counted, averaged = float(lower_bound(k, n, alpha)), float(lower_mean(k, k, n, alpha))
        assert averaged < counted
        assert k / n - averaged < 1.5 * (k / n - counted)
    steady = float(lower_mean(0.7 * n, 0.7**2 * n, n, alpha))
    assert 0.7 - steady < 0.25 * (0.7 - float(lower_bound(0.7 * n, n, alpha)))


def test_both_bounds_hold_together_and_share_the_level() -> None:
    votes = np.array([[900.0, 60.0, 40.0], [10.0, 970.0, 20.0]])
    drawn, label, alpha = Drawn(votes, votes, 1000, "vote"), np.array([0, 1]), 0.01
    low, high = drawn.label_and_others(label, alpha)
    assert np.allclose(low, lower_bound([900, 970], 1000, alpha / 2))
    assert np.allclose(high, np.minimum(1 - lower_bound([940, 980], 1000, alpha / 4), 1 - low))
    scores = Drawn(votes, votes, 1000, "mean")
    below, above = scores.label_and_others(label, alpha)
    assert bool((below < low).all())
    assert bool((above > high).all())


def test_hope_is_never_below_what_comes() -> None:
    """Giving up is only sound without loss where no continuation could have done better than the hope."""
    generator, n, upto = np.random.default_rng(0), 300, 100
    label = np.zeros(50, dtype=np.int64)
    for aggregate in ("vote", "mean"):
        scores = generator.dirichlet([6, 1, 1], (50, n))
        if aggregate == "vote":
            scores = np.eye(3)[scores.argmax(2)]
        parts = [Drawn(scores[:, :end].sum(1), (scores[:, :end] ** 2).sum(1), end, aggregate) for end in (upto, n)]  # type: ignore[arg-type]
        hoped, come = parts[0].hoped(label, n).label_and_others(label, 0.01), parts[1].label_and_others(label, 0.01)
        assert bool((hoped[0] >= come[0]).all())
        assert bool((hoped[1] <= come[1]).all())
