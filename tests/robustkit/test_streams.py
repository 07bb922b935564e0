"""Random streams: a row draws the same numbers whatever stands beside it, and nothing global moves."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import Tensor

from robustkit import streams

MASK = (1 << 64) - 1


def splitmix(state: int) -> int:
    """The finaliser of splitmix64 on Python integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def keys(count: int, seed: int = 0, purpose: str = "test", attempt: int = 0) -> Tensor:
    return streams.row_keys(seed, purpose, torch.arange(count), attempt)


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(1, 9))
def test_bits_are_splitmix64(key: int, count: int) -> None:
    drawn = streams.bits(torch.tensor([key]), count)[0].tolist()
    assert [value & MASK for value in drawn] == [splitmix((key + i * 0x9E3779B97F4A7C15) & MASK) for i in range(1, count + 1)]


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (1, 8, 8), (3, 7, 5)])
@pytest.mark.parametrize("draw", [streams.uniform, streams.normal], ids=["uniform", "normal"])
def test_a_row_draws_the_same_in_any_batch(draw: object, shape: tuple[int, ...]) -> None:
    assert callable(draw)
    all_keys = keys(37)
    whole = draw(all_keys, shape)
    assert whole.shape == (37, *shape)
    assert torch.equal(whole, torch.cat([draw(all_keys[i : i + 1], shape) for i in range(37)]))
    assert torch.equal(whole, torch.cat([draw(all_keys[i : i + 5], shape) for i in range(0, 37, 5)]))
    shuffled = torch.arange(37).flip(0)
    assert torch.equal(whole[shuffled], draw(all_keys[shuffled], shape))


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    assert torch.equal(streams.uniform(keys(4), (3,)), streams.uniform(keys(4), (8,))[:, :3])


def test_keys_depend_on_seed_purpose_index_and_attempt() -> None:
    index = torch.arange(2000)
    groups = [
        streams.row_keys(seed, purpose, index, attempt) for seed in (0, 1, -1, 10**12) for purpose in ("a", "b") for attempt in (0, 1, 2)
    ]
    assert len(set(torch.cat(groups).tolist())) == len(groups) * 2000
    attempts = torch.arange(2000) % 3
    mixed = streams.row_keys(0, "a", index, attempts)
    for attempt in range(3):
        assert torch.equal(mixed[attempts == attempt], groups[attempt][attempts == attempt])


def test_seed_and_purpose_cannot_be_confused() -> None:
    index = torch.arange(3)
    assert not torch.equal(streams.row_keys(1, "2/x", index), streams.row_keys(12, "x", index))


def test_children_differ_from_each_other_and_from_their_parent() -> None:
    parent = keys(500)
    families = [parent, *(streams.child(parent, number) for number in range(4))]
    assert len(set(torch.cat(families).tolist())) == 2500
    steps = torch.arange(500) % 4
    assert torch.equal(streams.child(parent, steps)[steps == 2], families[3][steps == 2])


def test_uniform_is_uniform_and_open() -> None:
    drawn = streams.uniform(keys(64), (500,))
    assert float(drawn.min()) > 0
    assert float(drawn.max()) < 1
    assert kstest(drawn.flatten().double().numpy(), "uniform").pvalue > 1e-4
    across = streams.uniform(keys(20000), (1,)).flatten()
    assert kstest(across.double().numpy(), "uniform").pvalue > 1e-4


def test_uniform_stays_open_at_the_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (0, -1):  # all bits zero, all bits one
        monkeypatch.setattr(streams, "bits", lambda keys, count, value=value: torch.full((len(keys), count), value))
        assert 0 < float(streams.uniform(keys(1), (1,))) < 1
        assert bool(torch.isfinite(streams.normal(keys(1), (2,))).all())


def test_normal_is_normal_and_finite() -> None:
    drawn = streams.normal(keys(64), (501,))
    assert bool(torch.isfinite(drawn).all())
    assert kstest(drawn.flatten().double().numpy(), "norm").pvalue > 1e-4
    assert abs(float((drawn[:, 0] * drawn[:, 251]).mean())) < 6 / math.sqrt(64)  # the two halves of a Box-Muller pair


def test_integers_cover_their_range_evenly() -> None:
    drawn = streams.integers(keys(9000), 9)
    counts = drawn.bincount(minlength=9)
    assert len(counts) == 9
    assert int((counts - 1000).abs().max()) < 6 * math.sqrt(1000)
    assert int(streams.integers(keys(100), 1).max()) == 0
    assert int(streams.integers(keys(1000), 2**31).min()) >= 0
    limits = torch.arange(1, 101)
    assert bool((streams.integers(keys(100), limits) < limits).all())


def test_no_global_generator_is_touched() -> None:
    before = torch.get_rng_state()
    streams.normal(streams.child(keys(8), 1), (4,))
    streams.integers(keys(8), 5)
    assert torch.equal(torch.get_rng_state(), before)
