"""Statistical certificates: the level of whole certificates, at exact probabilities, with the power to see planted mistakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, norm

from robustkit.binomial import lower_bound
from robustkit.certify import confidence
from robustkit.certify.confidence import Drawn
from robustkit.certify.pixeldp import PixelDP, pixeldp_radius
from robustkit.certify.renyi import Renyi, renyi_radius
from robustkit.certify.smoothing import SmoothingCertifier
from robustkit.models.smoothed import Smoothing
from robustkit.spec import number

REPETITIONS, DRAWS, ALPHA, SIGMA = 20_000, 100, 0.05, 0.5
CERTIFIERS = [SmoothingCertifier(n=DRAWS), PixelDP(n=DRAWS), Renyi(n=DRAWS)]
PROBABILITIES = [(0.51, 0.49), (0.9, 0.1), (0.999, 0.001), (0.5, 0.3), (0.9, 0.02)]


def failures(certifier: Any, p: float, q: float) -> int:
    """Certificates of 20 000 that reach beyond the tight radius of Cohen et al. at the true probabilities."""
    generator = np.random.default_rng(3)
    votes = generator.multinomial(DRAWS, [p, q, max(0.0, 1 - p - q)], size=REPETITIONS).astype(np.float64)
    label = np.zeros(REPETITIONS, dtype=np.int64)
    _, radius = certifier.judged(Drawn(votes, votes, DRAWS, "vote"), label, ALPHA, Smoothing(number(str(SIGMA))))
    return int((radius > SIGMA / 2 * (norm.ppf(p) - norm.ppf(q))).sum())


@pytest.mark.parametrize("certifier", CERTIFIERS, ids=lambda c: c.name)
@pytest.mark.parametrize(("p", "q"), PROBABILITIES)
def test_no_more_certificates_fail_than_alpha_allows(certifier: Any, p: float, q: float) -> None:
    assert binom.sf(failures(certifier, p, q) - 1, REPETITIONS, ALPHA) > 1e-4


@pytest.mark.parametrize("p", [0.51, 0.9])
def test_of_two_classes_as_many_fail_as_the_exact_level_says(p: float) -> None:
    """Clopper-Pearson errs with a known probability below alpha: a bound that is too careful shows as well."""
    k = np.arange(DRAWS + 1)
    truth = float(binom.pmf(k, DRAWS, p)[lower_bound(k, DRAWS, ALPHA) > p].sum())
    assert 0 < truth <= ALPHA
    found = failures(SmoothingCertifier(n=DRAWS), p, 1 - p)
    low, high = binom.ppf([1e-5, 1 - 1e-5], REPETITIONS, truth)
    assert low <= found <= high


def _shifted(run: Callable[..., Any]) -> Callable[..., Any]:
    return lambda successes, draws, alpha: run(np.minimum(np.asarray(successes) + 1, draws), draws, alpha)


def _two_sided(run: Callable[..., Any]) -> Callable[..., Any]:
    return lambda successes, draws, alpha: run(successes, draws, 2 * alpha)


def _wald(run: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(successes: Any, draws: int, alpha: float) -> Any:
        share = np.asarray(successes, dtype=np.float64) / draws
        return share - norm.isf(alpha) * np.sqrt(share * (1 - share) / draws)

    return wrong


@pytest.mark.parametrize("bug", [_shifted, _two_sided, _wald], ids=lambda f: f.__name__.strip("_"))
def test_mistakes_in_the_confidence_bound_are_caught(bug: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confidence, "lower_bound", bug(lower_bound))
    found = [failures(SmoothingCertifier(n=DRAWS), p, q) for p, q in PROBABILITIES]
    assert min(binom.sf(wrong - 1, REPETITIONS, ALPHA) for wrong in found) < 1e-6


def excess(radius: Callable[..., Any]) -> float:
    """The most by which radii at exact probabilities exceed Cohen's two-sided radius."""
    p, q = (v.flatten() for v in np.meshgrid(np.linspace(0.02, 0.999999, 80), np.linspace(1e-6, 0.98, 80)))
    inside = (p > q) & (p + q <= 1)
    p, q = p[inside], q[inside]
    return float((radius(p, q, SIGMA) - SIGMA / 2 * (norm.ppf(p) - norm.ppf(q))).max())


def test_other_radii_never_exceed_the_tight_one_at_exact_probabilities() -> None:
    """And where a factor 2 under the root or the other classes' probability is lost they do."""
    assert excess(pixeldp_radius) <= 0 and excess(renyi_radius) <= 0
    assert excess(lambda p, q, sigma: renyi_radius(p, q, 2**0.5 * sigma)) > 0
    assert excess(lambda p, q, sigma: pixeldp_radius(p, 0 * q, sigma)) > 0


def test_at_probability_zero_of_being_wrong_all_radii_are_finite() -> None:
    for radius in (pixeldp_radius, renyi_radius):
        found = radius(np.array([1.0, 0.5, 0.2]), np.array([0.0, 0.5, 0.8]), SIGMA)
        assert bool(np.isfinite(found).all()) and float(found[0]) > 0 and found[1:].tolist() == [0, 0]
