"""Schedules: their ends, their order, their smoothness."""

from __future__ import annotations

from itertools import pairwise

import pytest

from robustkit.defenses.schedules import late_decay, one_cycle, ramp

STEPS = [i / 1000 for i in range(1001)]


def test_ramp_is_straight_between_its_ends() -> None:
    assert [ramp(p, 0.2, 0.6) for p in (0, 0.2, 0.3, 0.4, 0.6, 1)] == pytest.approx([0, 0, 0.25, 0.5, 1, 1])


def test_ramp_without_length_is_on_from_the_start() -> None:
    assert ramp(0.0, 0.0, 0.0) == 1.0


def test_one_cycle_rises_to_its_peak_and_falls_to_nearly_nothing() -> None:
    rates = [one_cycle(p) for p in STEPS]
    assert rates[0] == pytest.approx(1 / 25)
    assert rates[300] == pytest.approx(1)
    assert rates[-1] == pytest.approx(1e-5)
    assert rates[:301] == sorted(rates[:301])
    assert rates[300:] == sorted(rates[300:], reverse=True)


def test_late_decay_stays_at_the_peak_until_keep() -> None:
    rates = [late_decay(p, keep=0.9) for p in STEPS]
    assert 0 < rates[0] < 0.02
    assert set(rates[10:901]) == {1.0}
    assert rates[-1] == pytest.approx(0.01)
    assert rates[900:] == sorted(rates[900:], reverse=True)


@pytest.mark.parametrize("schedule", [one_cycle, late_decay])
def test_the_rate_never_jumps(schedule: object) -> None:
    rates = [schedule(p) for p in STEPS]  # type: ignore[operator]
    assert max(abs(a - b) for a, b in pairwise(rates)) < 0.12
