"""The table in its three forms, and the comparison of two."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustkit.cli import main
from robustkit.errors import BadInput, Missing
from robustkit.leaderboard import Leaderboard, compare
from robustkit.leaderboard.comparing import mcnemar
from robustkit.leaderboard.manifest import Entry
from robustkit.leaderboard.standings import Standing, as_csv


def test_every_figure_is_read_off_the_columns(board: Leaderboard) -> None:
    for row in board.standings():
        own = board.entry(row.id).columns
        assert row.clean == np.mean(own["upper"] > 0)
        assert row.suite == row.best_known == np.mean(own["upper"] > 0.06)
        assert row.certified_submitted == np.mean(own["lower"] >= 0.06)
        assert (row.claimed, row.state) == (0.9, "evidence")
        assert (row.certified, row.robust_at_least, row.surface, row.diagnostics, row.guarantee) == (None, None, "", "", "")


def test_the_three_forms_tell_the_same(board: Leaderboard, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["leaderboard", "show", "--board", str(board.path)]
    assert main([*where, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert main([*where, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert main(where) == 0
    table = capsys.readouterr().out
    assert document["head"] == board.ledger().head
    for told, row in zip(document["entries"], rows):
        assert (told["id"], told["name"], str(told["best_known"])) == (row["id"], row["name"], row["best_known"])
        assert told["name"] in table and f"{100 * told['best_known']:.1f} %" in table
    assert "2 unranked" in table


def test_names_that_a_spreadsheet_would_run() -> None:
    rows = [Standing("a", name, "t", "files") for name in ("=HYPERLINK(1)", "+1", "-1", "@x", "plain")]
    assert [row["name"] for row in csv.DictReader(io.StringIO(as_csv(rows)))] == ["'=HYPERLINK(1)", "'+1", "'-1", "'@x", "plain"]


def test_entries_are_found_by_name_and_id(board: Leaderboard) -> None:
    entry = board.entries()[0]
    assert board.entry("the STANDARD one").id == board.entry(entry.id[:6]).id == board.entry(entry.id).id == entry.id
    for text in (entry.id[:3], "nobody", ""):
        with pytest.raises(BadInput, match="unknown entry"):
            board.entry(text)


def test_a_comparison_pairs_the_samples(board: Leaderboard, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (board.entry(name).columns for name in ("The standard one", "The certified one"))
    a, b = first["upper"] > 0.06, second["upper"] > 0.06
    told = compare(board.path / "The standard one", runs / "certified")
    assert (told.only_first, told.only_second, told.paired) == (int((a & ~b).sum()), int((b & ~a).sum()), 48)
    n, k = told.only_first + told.only_second, min(told.only_first, told.only_second)
    assert told.p_value == pytest.approx(min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n))
    assert told.robust == (a.mean(), b.mean())
    proven = (second["lower"] >= 0.06).mean()
    assert told.overlap == (None if proven > a.mean() else (proven, a.mean()))
    assert main(["compare", str(runs / "standard"), f"{board.path}/{board.entries()[1].id}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["p_value"] == pytest.approx(told.p_value)
    assert main(["compare", str(runs / "standard"), str(runs / "standard")]) == 0
    assert "p = 1" in capsys.readouterr().out


@pytest.mark.parametrize(("b", "c", "p"), [(0, 0, 1.0), (5, 5, 1.0), (10, 0, 2 / 1024), (1, 5, 14 / 64), (3, 12, 2 * 576 / 32768)])
def test_mcnemar_exactly(b: int, c: int, p: float) -> None:
    assert mcnemar(b, c) == pytest.approx(p)


def test_what_cannot_be_compared(board: Leaderboard, runs: Path, tmp_path: Path, make_run: Callable[..., Path], digits_models: Any) -> None:
    smaller = make_run(digits_models["standard"], tmp_path / "smaller", threat="linf:0.03", data="digits:n=10")
    with pytest.raises(BadInput, match="no common budget"):
        compare(smaller, runs / "standard")
    l2 = make_run(digits_models["standard"], tmp_path / "l2", threat="l2:0.06", data="digits:n=10")
    with pytest.raises(BadInput, match="threat differs"):
        compare(l2, runs / "standard")
    with pytest.raises(BadInput, match="a whole board"):
        compare(board.path, runs / "standard")
    with pytest.raises(BadInput, match="not reported by both"):
        compare(runs / "standard", runs / "certified", eps="0.05")
    with pytest.raises(Missing):
        compare(tmp_path / "nothing", runs / "standard")


def test_a_damaged_entry_is_shown_as_such(board: Leaderboard, plant: Callable[..., Entry]) -> None:
    entry = board.entries()[0]
    (entry.folder / "samples.npz").write_bytes(b"")
    row = next(row for row in board.standings() if row.id == entry.id)
    assert (row.state, row.best_known, row.rank) == ("damaged", None, None) and "0 bytes" in row.problem
    assert main(["leaderboard", "show", "--board", str(board.path)]) == 0
