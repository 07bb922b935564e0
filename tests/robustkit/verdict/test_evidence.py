"""Evidence: intervals that only narrow, in whatever order, and contradictions that never count."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustkit.verdict.evidence import Evidence, guarantee_class

N = 6
EPS = [Fraction(0), Fraction(8, 255), Fraction(1, 10), Fraction(1, 2), Fraction(1)]


def evidence(correct: list[bool] | None = None) -> Evidence:
    count = N if correct is None else len(correct)
    index, zeros = np.arange(count), np.zeros(count)
    right = np.ones(count, dtype=bool) if correct is None else np.array(correct)
    return Evidence(index, index.copy(), index.copy(), zeros, zeros.copy(), right)


def broke(held: Evidence, at: list[int], size: list[float], stage: int = 1) -> None:
    held.broke(np.array(at), np.array(size, dtype=np.float64), stage, np.array([9] * len(at)))


def proved(held: Evidence, at: list[int], radius: list[float], stage: int = 2, guarantee: str = "real-arithmetic") -> None:
    held.proved(np.array(at), np.array(radius, dtype=np.float64), guarantee, stage)


_SIZES = st.sampled_from([0.05, 0.1, float(np.nextafter(0.1, 0)), 0.3, 0.5, 1.0, np.inf])
_UPDATES = st.lists(st.tuples(st.booleans(), st.integers(0, N - 1), _SIZES, st.integers(1, 3)), max_size=12)


def apply(held: Evidence, update: tuple[bool, int, float, int]) -> None:
    attack, at, size, stage = update
    if attack:
        broke(held, [at], [size], stage)
    else:
        proved(held, [at], [size if np.isfinite(size) else -np.inf], 10 + stage)


@given(_UPDATES, st.lists(st.booleans(), min_size=N, max_size=N), st.randoms())
def test_updates_only_narrow_and_their_order_does_not_matter(
    updates: list[tuple[bool, int, float, int]], correct: list[bool], random: object
) -> None:
    one, other = evidence(correct), evidence(correct)
    for update in updates:
        lower, upper = one.lower, one.upper.copy()
        apply(one, update)
        assert (one.lower >= lower).all()
        assert (one.upper <= upper).all()
    random.shuffle(updates)  # type: ignore[attr-defined]
    for update in updates:
        apply(other, update)
    assert np.array_equal(one.upper, other.upper)
    assert np.array_equal(one.lower, other.lower)
    assert one.contradicted() == other.contradicted()


@given(_UPDATES, st.lists(st.booleans(), min_size=N, max_size=N))
def test_certified_is_at_most_robust_is_at_most_clean(updates: list[tuple[bool, int, float, int]], correct: list[bool]) -> None:
    held = evidence(correct)
    for update in updates:
        apply(held, update)
    held.contradicted()
    assert (held.lower < held.upper).all()
    assert held.clean_accuracy() == np.mean(correct)
    before = 1.0
    for eps in EPS:
        certified, robust, clean = held.certified_accuracy(eps), held.robust_accuracy(eps), held.clean_accuracy()
        assert certified <= robust <= clean
        assert robust <= before
        assert len(held.open_at(eps)) == pytest.approx((robust - certified) * N)
        before = robust


def test_where_intervals_start() -> None:
    held = evidence([True, False])
    assert held.lower.tolist() == [0.0, -np.inf]
    assert held.upper.tolist() == [np.inf, 0.0]
    assert held.clean_accuracy() == held.robust_accuracy(Fraction(10)) == 0.5
    assert held.certified_accuracy(Fraction(1, 1000)) == 0
    assert held.certified_accuracy(Fraction(0)) == 0.5
    assert held.open_at(Fraction(1, 10)).tolist() == [0]


def test_budgets_are_compared_exactly() -> None:
    held = evidence()
    below, above = float(np.nextafter(0.1, 0)), float(np.nextafter(0.1, 1))
    broke(held, [0, 1, 2], [below, 0.1, above])
    assert Fraction(0.1) > Fraction(1, 10) > Fraction(below)
    assert held.robust_accuracy(Fraction(1, 10)) == pytest.approx(5 / 6)  # only `below` is within 1/10
    assert held.robust_accuracy(0.1) == pytest.approx(4 / 6)
    proved(held, [3, 4], [below, float(np.nextafter(below, 0))])
    assert held.certified_accuracy(Fraction(1, 10)) == pytest.approx(1 / 6)  # the largest float64 below 1/10 counts as 1/10


def test_the_smallest_witness_and_its_stage_are_kept() -> None:
    held = evidence()
    broke(held, [0, 1], [0.3, 0.3], stage=4)
    broke(held, [0, 1], [0.2, 0.4], stage=5)
    broke(held, [0], [0.2], stage=6)
    assert held.upper[:2].tolist() == [0.2, 0.3]
    assert held.upper_stage[:3].tolist() == [5, 4, -1]
    assert held.adversarial_class[:3].tolist() == [9, 9, -1]


def test_a_witness_inside_a_certified_ball_makes_the_stage_suspect() -> None:
    held = evidence()
    proved(held, [0, 1, 2], [0.1, 0.1, 0.2], stage=1)
    proved(held, [1, 2], [0.05, 0.05], stage=2)
    broke(held, [3], [0.01], stage=3)
    assert held.contradicted() == []
    broke(held, [2], [0.1], stage=3)
    assert held.contradicted() == [1]
    assert held.lower.tolist() == [0, 0.05, 0.05, 0, 0, 0]
    assert held.contradicted() == [1]
    proved(held, [5], [0.5], stage=1)  # a suspect stage stays suspect
    assert held.lower[5] == 0
    assert held.certified_accuracy(Fraction(5, 100)) == pytest.approx(2 / 6)


def test_a_certificate_that_touches_the_witness_is_a_contradiction() -> None:
    held = evidence()
    proved(held, [0], [0.1])
    broke(held, [0], [0.1])
    assert held.contradicted() == [2]


def test_a_certificate_for_a_clean_error_is_a_contradiction() -> None:
    held = evidence([False, True])
    proved(held, [0], [0.1])
    assert held.contradicted() == [2]
    assert held.certified_accuracy(Fraction(1, 10)) == 0


def test_guarantee_classes_are_kept_apart() -> None:
    for name, kind in {
        "real-arithmetic": "deterministic",
        "floating-point": "deterministic",
        "statistical(0.001)": "statistical",
        "conditional(no collisions)": "conditional",
    }.items():
        assert guarantee_class(name) == kind
    held = evidence()
    proved(held, [0], [0.5], stage=1, guarantee="statistical(0.001)")
    proved(held, [1], [0.5], stage=2, guarantee="conditional(x)")
    proved(held, [2], [0.5], stage=3, guarantee="floating-point")
    eps = Fraction(1, 2)
    assert [held.certified_accuracy(eps, kind) for kind in ("deterministic", "statistical", "conditional")] == [pytest.approx(1 / 6)] * 3
    assert held.lower.tolist() == [0, 0, 0.5, 0, 0, 0]
    broke(held, [0, 1], [0.1, 0.1])
    assert held.contradicted() == []  # a statistical certificate may fail at its stated rate
    columns = held.columns()
    assert columns["lower_statistical"].tolist() == [0.5] + [-np.inf] * 5
    assert columns["lower_conditional"].tolist() == [-np.inf, 0.5] + [-np.inf] * 4
    assert columns["lower_stage"].tolist() == [-1, -1, 3, -1, -1, -1]
    assert {len(column) for column in columns.values()} == {N}


def test_the_best_certificate_and_its_stage_are_kept() -> None:
    held = evidence()
    proved(held, [0, 1], [0.1, 0.3], stage=1)
    proved(held, [0, 1], [0.2, 0.2], stage=2)
    proved(held, [0], [-np.inf], stage=2)
    lower, stage = held.lower_of("deterministic")
    assert lower[:2].tolist() == [0.2, 0.3]
    assert stage[:2].tolist() == [2, 1]


# ---- adversarial examples by rounding


def test_a_witness_by_rounding_takes_one_proof_and_its_kind_spares_nobody_any_more() -> None:
    held = evidence()
    eps = Fraction(1, 10)
    proved(held, [0, 1, 2], [0.3, 0.3, 0.3])
    assert held.to_attack(eps).tolist() == [3, 4, 5]
    broke(held, [0], [0.05])
    assert held.to_ask64().tolist() == [0]
    held.answered64(np.array([0]), np.array([True]))
    assert held.to_ask64().tolist() == []
    assert held.contradicted() == []
    assert held.lost_by_rounding() == 1
    assert held.lower.tolist() == [0, 0.3, 0.3, 0, 0, 0]
    assert held.certified_accuracy(eps) == pytest.approx(2 / N)
    assert held.open_at(eps).tolist() == [3, 4, 5]
    assert held.to_attack(eps).tolist() == [1, 2, 3, 4, 5]


def test_a_witness_by_rounding_contradicts_a_proof_of_the_float32_logits() -> None:
    held = evidence()
    proved(held, [0, 1], [0.3, 0.3], guarantee="floating-point")
    broke(held, [0], [0.05])
    held.answered64(held.to_ask64(), np.array([True]))
    assert held.contradicted() == [2]
    assert held.lower.tolist() == [0] * N


def test_a_witness_that_float64_confirms_contradicts() -> None:
    held = evidence()
    proved(held, [0, 1], [0.3, 0.3])
    broke(held, [0], [0.05])
    held.answered64(held.to_ask64(), np.array([False]))
    assert held.contradicted() == [2]
    assert held.spared
    assert held.lost_by_rounding() == 0


def test_a_nearer_witness_is_asked_anew() -> None:
    held = evidence()
    proved(held, [0], [0.3])
    broke(held, [0], [0.2])
    held.answered64(np.array([0]), np.array([True]))
    broke(held, [0], [0.1])
    assert held.to_ask64().tolist() == [0]
    held.answered64(np.array([0]), np.array([False]))
    assert held.contradicted() == [2]


def test_proofs_of_the_float32_logits_go_on_sparing() -> None:
    held = evidence()
    held.spared = False
    proved(held, [0], [0.3], guarantee="floating-point")
    proved(held, [1], [0.3], stage=3)
    assert held.to_attack(Fraction(1, 10)).tolist() == [1, 2, 3, 4, 5]
    assert held.open_at(Fraction(1, 10)).tolist() == [2, 3, 4, 5]
