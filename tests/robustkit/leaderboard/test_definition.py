"""A board's definition is written once; whatever changes is the next version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustkit.errors import BadInput, Missing
from robustkit.leaderboard import Leaderboard
from robustkit.leaderboard.definition import Definition, parse_title, read_definition


def test_what_is_written_is_what_is_read(empty: Leaderboard) -> None:
    held = read_definition(empty.path)
    assert held == empty.definition
    assert held.raw == (empty.path / "board.json").read_bytes()
    told = json.loads(held.raw)
    assert told["threat"] == "linf:0.06" and told["eps"] == "0.06" and told["data"]["n"] == 48
    assert [one["method"].partition(":")[0] for one in told["floor"]] == ["fgsm", "pgd"]
    assert held.load_data(None).digest == told["data"]["digest"]


def test_a_changed_question_is_a_new_version(tmp_path: Path) -> None:
    first = Leaderboard.create(tmp_path / "b", data="digits:n=20", threat="linf:0.1", suite="quick")
    assert first.path.name == "b@1"
    for options in ({"data": "digits:n=21"}, {"threat": "linf:1/10", "seed": 3}, {"threat": "l2:0.5"}, {"suite": "black-box"}):
        given = {"data": "digits:n=20", "threat": "linf:0.1", "suite": "quick"} | options
        made = Leaderboard.create(tmp_path / "b", **given)  # type: ignore[arg-type]
        assert made.definition.version == len(list(tmp_path.glob("b@*")))
        assert made.definition.digest != first.definition.digest
    with pytest.raises(BadInput, match="asks the very same"):
        Leaderboard.create(tmp_path / "b", data="digits:n=20", threat="linf:0.1", suite="quick")
    with pytest.raises(BadInput, match="never changes"):
        Leaderboard.create(tmp_path / "b@1", data="digits:n=25", threat="linf:0.1", suite="quick")
    assert read_definition(first.path) == first.definition


@pytest.mark.parametrize("name", ["a b", "x@0", "x@one", "x@1@2", ".hidden", "x" * 200, "na\u00efve", "a;b", "<b>"])
def test_a_name_has_to_be_plain(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        Leaderboard.create(tmp_path / name, data="digits:n=20", threat="linf:0.1")
    assert list(tmp_path.iterdir()) == []


def test_a_changed_definition_is_noticed(board: Leaderboard) -> None:
    changed = Definition(**(vars(board.definition) | {"threat": "linf:0.05"}))
    (board.path / "board.json").write_bytes(changed.raw)
    (whole, *rest) = Leaderboard(board.path).verify(level="files")
    assert "another definition" in whole.problems[0] and not rest


@pytest.mark.parametrize("text", [b"{}", b"[]", b"{", b"\xff\xfe", b'{"schema_version":1}', b"[" * 100000])
def test_a_damaged_definition_ends_in_words(board: Leaderboard, text: bytes) -> None:
    (board.path / "board.json").write_bytes(text)
    with pytest.raises(BadInput):
        Leaderboard(board.path)


def test_no_board(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="init"):
        Leaderboard(tmp_path)


def test_titles() -> None:
    assert parse_title("mnist@3") == ("mnist", 3)
    assert parse_title("mnist") == ("mnist", None)
