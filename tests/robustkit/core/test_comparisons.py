"""The rule that decides what is wrong: second implementations in plain Python, and every odd number."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustkit.core.comparisons import close_call, margins, strictly_largest, units_in_last_place
from robustkit.search.loss_scale import loss_scale

ODD = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 1.0 + 2.0**-23, -1e9, 1e-40, 3e38)


def right(logits: tuple[float, ...], y: int) -> bool:
    """The rule in words: finite, and strictly larger than every other."""
    return math.isfinite(logits[y]) and all(logits[y] > z for i, z in enumerate(logits) if i != y)


def test_every_triple_of_odd_numbers_is_judged_by_the_words_of_the_rule() -> None:
    triples = [tuple(float(np.float32(v)) for v in triple) for triple in itertools.product(ODD, repeat=3)]
    logits = torch.tensor(triples, dtype=torch.float32)
    for y in range(3):
        label = torch.full((len(triples),), y)
        expected = [right(triple, y) for triple in triples]
        assert strictly_largest(logits, label).tolist() == expected
        assert (margins(logits, label) < 0).tolist() == expected
        assert not bool(torch.isnan(margins(logits, label)).any())


def test_margins_are_the_difference_where_it_is_a_number() -> None:
    logits = torch.tensor([[1.0, 3, 2], [3, 1, 3], [3, 3, 1], [-math.inf, 1, 9], [-5, -7, -6], [1, -math.inf, -math.inf]])
    assert margins(logits, torch.tensor([1, 0, 1, 2, 0, 0])).tolist() == [-1, 0, 0, -8, -1, -math.inf]


@given(st.floats(allow_nan=False, allow_infinity=False, width=32).filter(lambda v: 1e-30 < abs(v) < 1e38))
def test_units_in_the_last_place_are_numpys(value: float) -> None:
    for dtype, kind in ((torch.float32, np.float32), (torch.float64, np.float64)):
        assert float(units_in_last_place(torch.tensor([value]), dtype)) == pytest.approx(float(np.spacing(kind(abs(value)))))


@pytest.mark.parametrize("scale", [1e-20, 1.0, -1.0, 3e7, 1e30])
def test_64_units_are_a_close_call_whatever_the_scale(scale: float) -> None:
    best = np.float32(scale)
    unit = np.spacing(abs(best))
    second = [best - np.float32(k) * unit for k in (0, 1, 63, 66, 1000)]
    logits = torch.tensor([[float(best), float(z), float(best) - 1e3 * abs(float(best))] for z in second], dtype=torch.float32)
    assert close_call(logits).tolist() == [True, True, True, False, False]


def test_close_calls_of_half_precision_are_2_units_of_their_own() -> None:
    logits = torch.tensor([[1.0, 1 - 2.0**-11], [1.0, 1 - 3 * 2.0**-10], [1.0, 0.5]])
    assert close_call(logits, torch.float16).tolist() == [True, False, False]
    assert close_call(logits, torch.bfloat16).tolist() == [True, True, False]


def test_what_is_not_finite_is_no_close_call() -> None:
    logits = torch.tensor([[math.inf, 1.0], [math.nan, 1.0], [-math.inf, 1.0], [-math.inf, -math.inf]])
    assert close_call(logits).tolist() == [False] * 4


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=5), st.integers(-60, 60))
def test_the_scale_of_a_loss_is_a_power_of_two_and_brings_gaps_to_the_usual(values: list[float], power: int) -> None:
    logits = torch.tensor([values]) * 2.0**power
    scale = float(loss_scale(logits))
    assert math.frexp(scale)[0] == 0.5
    first, second = logits.double().topk(2).values[0].tolist()
    if 2.0**-6 <= first - second <= 2.0**6 or first == second:
        assert scale == 1
    elif 1e-30 < first - second < 1e30:
        assert 8 <= scale * (first - second) < 16


def test_masked_classes_do_not_decide_the_scale_of_a_loss() -> None:
    logits = torch.tensor([[4.0, 1.0], [4e-6, 1e-6]])
    masked = torch.cat([logits, torch.full((2, 2), -math.inf)], 1)
    assert torch.equal(loss_scale(masked), loss_scale(logits))
