"""The verifier's re-run: hidden weakness comes out, certificates are computed again, and only re-run entries are ranked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from scipy.stats import beta

from robustkit.cli import main
from robustkit.errors import BadInput
from robustkit.leaderboard import Leaderboard
from robustkit.leaderboard.manifest import Entry
from robustkit.leaderboard.ranking import lower_end


def without(entry: Entry, positions: Any) -> tuple[dict[str, Any], bytes]:
    """Columns and witnesses from which the broken samples at `positions` are left out."""
    own = {key: entry.columns[key].copy() for key in ("upper", "upper_stage", "adversarial_class")}
    own["upper"][positions], own["upper_stage"][positions], own["adversarial_class"][positions] = np.inf, -1, -1
    held = entry.witnesses()
    keep = ~np.isin(held["position"], positions)
    return own, safetensors.numpy.save({name: np.ascontiguousarray(values[keep]) for name, values in held.items()})


def test_an_honest_entry_is_ranked(board: Leaderboard) -> None:
    assert [row.rank for row in board.standings()] == [None, None]
    board.verify(level="rerun", sample=20, seed=5, progress=False)
    assert [row.rank for row in board.standings()] == [None, None], "whoever chooses the seed could know what it finds"
    found = board.verify(level="rerun", sample=20, progress=False)
    assert all(one.ok for one in found)
    for one in found[1:]:
        told = one.measured["rerun"]
        assert told["sample"] == 20 and told["hits"] == 0
        assert told["bound"] == pytest.approx(beta.ppf(0.95, 1, told["robust"]))
    rows = board.standings()
    assert [row.rank for row in rows] == [1, 2]
    assert [row.name for row in rows] == ["The certified one", "The standard one"]
    assert rows[0].robust_at_least > rows[1].robust_at_least  # type: ignore[operator]
    assert rows[0].hidden_at_most == pytest.approx(found[2].measured["rerun"]["bound"])
    for row, one in zip(rows, (found[2], found[1])):
        told = one.measured["rerun"]
        assert row.attacked_again == told["robust"] and row.called_robust == round(48 * row.suite)  # type: ignore[operator]
        assert row.robust_at_least == lower_end(48, row.called_robust, told["robust"], 0)
    assert all(one.ok for one in board.verify())


def test_witnesses_left_out_come_back_as_a_challenge(board: Leaderboard, plant: Callable[..., Entry], fitting: Callable[..., Any]) -> None:
    entry = board.entries()[0]
    hidden = np.flatnonzero(entry.columns["upper_stage"] >= 0)[:6]
    own, rest = without(entry, hidden)
    plant(board, entry, columns=own, summary=fitting(entry, own), files={"witnesses.safetensors": rest}, name="F")
    assert all(one.ok for one in board.verify("F"))
    told = board.rerun("F", sample=48, progress=False)
    assert told.hits >= 5
    assert told.bound == pytest.approx(beta.ppf(0.95, told.hits + 1, told.robust - told.hits))
    row = next(row for row in board.standings() if row.name == "F")
    assert row.best_known == pytest.approx(row.suite - told.hits / 48)  # type: ignore[operator]
    assert row.robust_at_least == row.best_known, "a whole re-run is exact"
    assert row.challengers == ["verifier's re-run"]
    assert row.rank is not None
    assert all(one.ok for one in board.verify("F"))


def test_a_certificate_that_nobody_can_compute(board: Leaderboard, plant: Callable[..., Entry], fitting: Callable[..., Any]) -> None:
    entry = board.entries()[1]
    at = int(np.flatnonzero((entry.columns["upper"] == np.inf) & (entry.columns["lower"] == 0))[0])
    own = {key: entry.columns[key].copy() for key in ("lower", "lower_stage")}
    own["lower"][at], own["lower_stage"][at] = 0.06, 0
    plant(board, entry, columns=own, summary=fitting(entry, own), name="F")
    assert all(one.ok for one in board.verify("F"))
    assert main(["leaderboard", "verify", "F", "--level", "rerun", "--sample", "48", "--board", str(board.path)]) == 1
    row = next(row for row in board.standings() if row.name == "F")
    assert (row.state, row.rank) == ("failed", None)
    assert f"sample {at}: ibp does not prove the claimed radius 0.06" in board.ledger().lines[-1].about["problems"][0]


def test_the_radius_is_the_one_that_is_claimed(board: Leaderboard, plant: Callable[..., Entry], fitting: Callable[..., Any]) -> None:
    """Certified at the budget, but claimed a little further: figures at the budget are the same, the claim is false."""
    entry = board.entries()[1]
    good = np.flatnonzero(entry.columns["lower"] >= 0.06)
    own = {"lower": entry.columns["lower"].copy()}
    own["lower"][good] = 0.5
    plant(board, entry, columns=own, summary=fitting(entry, own), name="F")
    assert all(one.ok for one in board.verify("F"))
    assert any("does not prove the claimed radius 0.5" in problem for problem in board.rerun("F", sample=48, progress=False).problems)


def test_nothing_is_written_where_nothing_shall_be(board: Leaderboard) -> None:
    before = board.ledger().raw
    assert main(["leaderboard", "verify", "--level", "rerun", "--sample", "8", "--no-record", "--board", str(board.path)]) == 0
    assert board.ledger().raw == before
    with pytest.raises(BadInput, match="at least one sample"):
        board.rerun("The standard one", sample=0)


def test_the_subset_is_the_verifiers(board: Leaderboard) -> None:
    """Drawn anew each time; the same seed draws the same."""
    seeds = {board.rerun("The standard one", sample=4, record=False, progress=False).seed for _ in range(2)}
    assert len(seeds) == 2
    one, two = (board.rerun("The standard one", sample=8, seed=3, record=False, progress=False).document() for _ in range(2))
    assert one == two
