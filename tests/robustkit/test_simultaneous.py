"""Statistical certificates of a whole set: the level each has to meet, and that all of them hold as often as stated."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta, binom, norm

import robustkit as rk
from robustkit.certify.ibp import IBP
from robustkit.certify.smoothing import STRICTER, SmoothingCertifier
from robustkit.guarantees import alpha_of, guarantee_class
from robustkit.plan import Stage
from robustkit.simultaneous import halvings, lower_at_once, simultaneous
from robustkit.verdict.evidence import Evidence


def evidence(count: int) -> Evidence:
    index, zeros = np.arange(count), np.zeros(count)
    return Evidence(index, index, index, zeros, zeros.copy(), np.arange(count) > 0)


def stage(number: int, **options: Any) -> Stage:
    return Stage(number, SmoothingCertifier(**options), "radius", Fraction(1, 10))


def test_guarantees_say_their_class_and_alpha() -> None:
    assert [guarantee_class(g) for g in ("statistical(0.001)", "floating-point", "conditional(x)")] == [
        "statistical",
        "deterministic",
        "conditional",
    ]
    assert alpha_of("statistical(0.001)") == 0.001
    assert alpha_of("statistical(alpha)") == 1.0


def test_alpha_is_halved_until_it_is_below_its_share() -> None:
    assert [halvings(0.001, 0.001 / n) for n in (1, 2, 3, 4, 5, 1000, 1024, 1025)] == [0, 1, 2, 2, 3, 10, 10, 11]
    assert halvings(0.01, 0.02) == 0


def test_the_first_level_that_is_strict_enough_is_taken() -> None:
    held, count = evidence(7), 6  # six correct images: alpha / 8 is the first level of at most alpha / 6
    ladder = np.arange(7)[:, None] * 0.1 - 0.01 * np.arange(1, 5)[None]
    held.proved(np.arange(7), np.arange(7) * 0.1, "statistical(0.01)", 1, ladder)
    at_once = lower_at_once(held, [stage(1, alpha=Fraction(1, 100))])
    assert at_once is not None
    told = simultaneous(*at_once, Fraction("0.3"))
    assert told["level"] == 0.01 / 8
    assert (told["alpha"], told["images"], told["confidence"]) == (0.01, count, 0.99)
    assert told["certified"] == pytest.approx(3 / 7)  # 0.37, 0.47 and 0.57: radii at the stricter level
    assert held.certified_accuracy(Fraction("0.3"), "statistical") == pytest.approx(4 / 7)
    assert told["wrong"] == int(binom.ppf(0.95, count, 0.01)) == 1


def test_levels_that_were_not_judged_count_for_nothing() -> None:
    held = evidence(7)
    held.proved(np.arange(7), np.full(7, 1.0), "statistical(0.01)", 1, np.full((7, 2), 0.9))
    told = lower_at_once(held, [stage(1, alpha=Fraction(1, 100))])
    assert told is not None
    assert (told[0] == -np.inf).all()


def test_several_methods_share_the_probability_to_err_and_one_method_at_two_budgets_does_not() -> None:
    held = evidence(5)
    for number in (1, 2):
        held.proved(np.arange(5), np.full(5, 1.0), "statistical(0.01)", number, np.full((5, 4), 0.9))
    same = lower_at_once(held, [stage(1, alpha=Fraction(1, 100)), stage(2, alpha=Fraction(1, 100))])
    other = lower_at_once(held, [stage(1, alpha=Fraction(1, 100)), stage(2, alpha=Fraction(1, 100), n=500)])
    assert same is not None and other is not None
    assert (same[1]["alpha"], same[1]["level"]) == (0.01, 0.01 / 4)
    assert (other[1]["alpha"], other[1]["level"]) == (0.02, 0.01 / 8)


def test_deterministic_certificates_need_no_correction() -> None:
    held = evidence(5)
    held.proved(np.arange(5), np.full(5, 1.0), "real-arithmetic", 1)
    assert lower_at_once(held, [Stage(1, IBP(), "radius", Fraction(1, 10))]) is None


def test_all_hold_at_once_as_often_as_stated_and_uncorrected_ones_do_not() -> None:
    """2000 sets of 32 images whose true probability is known: how often is some bound above it?"""
    generator, n, alpha, count, sets = np.random.default_rng(0), 200, 0.05, 32, 2000
    p = 0.8
    k = generator.binomial(n, p, size=(sets, count))
    often = halvings(alpha, alpha / count)
    wrong = {level: int((beta.ppf(level, k, n - k + 1) > p).any(1).sum()) for level in (alpha, alpha / 2**often)}
    assert wrong[alpha / 2**often] <= binom.ppf(0.999, sets, alpha)
    assert wrong[alpha] > 0.4 * sets


def test_the_stricter_radii_are_those_of_the_same_draws(tmp_path: Path) -> None:
    run = rk.certify(
        "zoo:digits-standard", "digits:n=24", "l2:0.2", method="smoothing:sigma=0.25,n=1000", out=tmp_path / "run", curve=True, report=False
    )
    (number,) = run.evidence.proofs
    radius, ladder = run.evidence.proofs[number][1], run.evidence.stricter[number]
    assert ladder.shape == (24, STRICTER)
    assert (np.diff(ladder[radius > 0], axis=1)[np.isfinite(ladder[radius > 0][:, 1:])] <= 0).all()
    counts = np.arange(1, 1001)
    table = 0.25 * norm.ppf(beta.ppf(0.001, counts, 1000 - counts + 1))
    for i in np.flatnonzero(radius > 0):
        k = int(counts[np.argmin(np.abs(table - radius[i]))])  # the count that explains the radius
        for often in (1, 5, STRICTER):
            exact = 0.25 * norm.ppf(beta.ppf(0.001 / 2**often, k, 1000 - k + 1))
            assert ladder[i, often - 1] == (pytest.approx(exact, rel=1e-6) if exact > 0 else -np.inf)
    summary = run.summary()
    assert summary["simultaneous"]["certified"] <= summary["certified_statistical"]
    with np.load(run.folder / "samples.npz") as held:
        assert (held["lower_simultaneous"] <= held["lower_statistical"]).all()


def test_a_board_leaves_out_what_it_cannot_check(tmp_path: Path) -> None:
    from robustkit.leaderboard.files import COLUMNS, columns
    from robustkit.leaderboard.manifest import checked_summary

    options: dict[str, Any] = {"report": False, "out": tmp_path / "run", "curve": True}
    run = rk.certify("smooth:(zoo:digits-standard),sigma=0.25", "digits:n=3", "l2:0.2", method="smoothing:n=500", **options)
    found = columns((run.folder / "samples.npz").read_bytes(), 3, "samples.npz")
    assert list(found) == list(COLUMNS)
    assert np.array_equal(found["lower_statistical"], run.evidence.lower_of("statistical")[0])
    assert "simultaneous" in run.summary()
    told = checked_summary(run.summary(), "summary.json")
    assert set(run.summary()) - set(told) == {"simultaneous", "certified_radius"}
