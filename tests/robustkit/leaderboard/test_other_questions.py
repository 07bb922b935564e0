"""Boards about other threats, goals and labels, and runs that tell more than the board asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustkit.leaderboard import Leaderboard

QUESTIONS: list[dict[str, Any]] = [
    {"threat": "l2:0.4"},
    {"threat": "l1:1"},
    {"threat": "rotation:angle=30,shift=1"},
    {"threat": "flow:0.5"},
    {"threat": "linf:0.25", "goal": "targeted:next"},
    {"threat": "linf:0.25", "goal": "targeted:random", "seed": 3},
    {"threat": "linf:0.06", "labels": "predicted"},
]


@pytest.mark.parametrize("asked", QUESTIONS, ids=lambda asked: "-".join(map(str, asked.values())))
def test_another_question(asked: dict[str, Any], digits_models: dict[str, str], make_run: Callable[..., Path], tmp_path: Path) -> None:
    board = Leaderboard.create(tmp_path / "b", data="digits:n=16", suite="quick", **asked)
    made = make_run(digits_models["standard"], tmp_path / "run", data="digits:n=16", **asked)
    board.submit(made, name="x")
    (_, told) = board.verify(level="rerun", sample=6, progress=False)
    assert told.problems == [] and told.ok
    assert told.measured["witnesses"] > 0
    (row,) = board.standings()
    assert row.rank == 1 and row.robust_at_least is not None and row.best_known is not None
    assert (tmp_path / "site").exists() or board.site(tmp_path / "site").exists()


@pytest.mark.parametrize("more", [{"eps": ["0.02", "0.06"]}, {"curve": True}, {"certifiers": ["ibp"], "certify_radius": True}], ids=str)
def test_a_run_that_tells_more(
    empty: Leaderboard, digits_models: dict[str, str], make_run: Callable[..., Path], tmp_path: Path, more: dict[str, Any]
) -> None:
    """Smaller budgets, radii beyond the budget, certificates at every radius: all of it is checked."""
    empty.submit(make_run(digits_models["certified"], tmp_path / "run", **more), name="x")
    (_, told) = empty.verify(level="rerun", sample=16, seed=1, progress=False)
    assert told.problems == [] and told.ok
    if "certifiers" in more:
        assert told.measured["rerun"]["certificates"] > 8
