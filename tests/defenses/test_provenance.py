"""Index runs."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from robustkit.defenses.provenance import ranges


def test_runs_of_indices() -> None:
    assert ranges(torch.tensor([4, 0, 1, 2, 3, 9, 11, 10, 7])) == "0-4,7,9-11"
    assert ranges(torch.arange(60000)) == "0-59999"
    assert ranges(torch.tensor([5])) == "5"


@given(st.sets(st.integers(0, 300), min_size=1))
def test_runs_name_exactly_the_indices(index: set[int]) -> None:
    named: list[int] = []
    for run in ranges(torch.tensor(sorted(index))).split(","):
        first, _, last = run.partition("-")
        named += range(int(first), int(last or first) + 1)
    assert named == sorted(index)
