"""Budgets compared exactly, rounding inward, padding, and the flags of exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustkit.core.comparisons import float32_below, float_below, within
from robustkit.numerics import PAD, exact_mode, pad_rows, padded

FRACTIONS = st.one_of(
    st.fractions(min_value=0, max_value=100),
    st.builds(Fraction, st.integers(0, 510), st.just(255)),
    st.floats(0, 1e6).map(Fraction),
    st.builds(lambda k: Fraction(1, 10**k), st.integers(0, 400)),
)


@given(st.integers(0, 10**6))
def test_padded_is_the_next_multiple(rows: int) -> None:
    assert padded(rows) % PAD == 0
    assert padded(rows) >= max(rows, PAD)
    assert padded(rows) - rows < PAD or rows == 0


def test_pad_rows_repeats_the_last() -> None:
    rows = torch.arange(6).view(3, 2)
    assert torch.equal(pad_rows(rows, 5), torch.tensor([[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]]))
    assert pad_rows(rows, 3) is rows


@given(FRACTIONS)
def test_float_below_is_the_largest_float_not_above(value: Fraction) -> None:
    found = float_below(value)
    assert Fraction(found) <= value < Fraction(math.nextafter(found, math.inf))


@given(st.floats(-1e6, 1e6) | st.floats(-1e-38, 1e-38) | st.sampled_from([0.1, 1 / 3, 8 / 255, 1.0, 2.0**-149, 2.0**-150]))
def test_float32_below_is_the_largest_float32_not_above(value: float) -> None:
    found = float32_below(torch.tensor([value], dtype=torch.float64))
    assert found.dtype == torch.float32
    up = torch.nextafter(found, torch.tensor(math.inf))
    assert Fraction(found.item()) <= Fraction(value) < Fraction(up.item())


@given(FRACTIONS, st.integers(-3, 3))
def test_within_decides_as_the_exact_fraction_does(eps: Fraction, steps: int) -> None:
    size = float_below(eps)
    for _ in range(abs(steps)):
        size = math.nextafter(size, math.inf if steps > 0 else -math.inf)
    told = within(torch.tensor([size], dtype=torch.float64), eps)
    assert bool(told) == (Fraction(size) <= eps)
    assert bool(within(torch.tensor([size], dtype=torch.float64), torch.tensor([float_below(eps)], dtype=torch.float64))) == bool(told)


def test_within_refuses_what_is_no_number() -> None:
    sizes = torch.tensor([math.nan, math.inf, 0.0], dtype=torch.float64)
    assert within(sizes, Fraction(1)).tolist() == [False, False, True]
    assert within(torch.tensor([0.1], dtype=torch.float32), Fraction(1, 10)).tolist() == [False]  # 0.1 in float32 is above 1/10


def _flags() -> tuple[object, ...]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return (
        torch.get_float32_matmul_precision(),
        cudnn.allow_tf32,
        cudnn.benchmark,
        cudnn.deterministic,
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
    )


def test_exact_mode_sets_and_restores_every_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _flags()
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        loose = _flags()
        with exact_mode():
            assert _flags() == ("highest", False, False, True, False, False)
            with exact_mode():
                pass
            assert _flags() == ("highest", False, False, True, False, False)
        assert _flags() == loose
        with pytest.raises(ZeroDivisionError), exact_mode():
            raise ZeroDivisionError
        assert _flags() == loose
    finally:
        torch.set_float32_matmul_precision(str(before[0]))
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = (bool(f) for f in before[1:4])
    assert _flags() == before


def test_exact_mode_switches_autocast_off() -> None:
    a = torch.rand(16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with exact_mode():
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16
