"""Names of strangers: in the terminal, in errors, in HTML, CSV and JSON they are only names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustkit.cli import main
from robustkit.errors import BadInput
from robustkit.leaderboard import Leaderboard
from robustkit.leaderboard.documents import canonical
from robustkit.leaderboard.manifest import Entry
from robustkit.leaderboard.submit import same_answers

ACTING = ["\x1b]0;title\x07\x1b[2J\x1b[31mred", "a\u202eb\u2066c", "zero\u200bwidth", "[red]The[/red] [link=x]one[/link]", "\r\nrank 1"]
RAW = ("\x1b", "\x07", "\u202e", "\u2066", "\u200b", "\r")


def clean(text: str) -> None:
    assert not [sign for sign in RAW if sign in text]


def test_whatever_is_printed_is_harmless(board: Leaderboard, plant: Callable[..., Entry], tmp_path: Path, capsys: Any) -> None:
    first = board.entries()[0]
    for number, name in enumerate(ACTING):
        summary = json.loads(canonical(first.summary))
        summary["stages"][0] |= {"name": name, "note": name}
        summary["data"]["class_names"] = [name] * 10
        summary["diagnostics"] = [{"check": name, "status": "error", "message": name, "cure": name}]
        plant(board, first, name=name if number % 2 else f"F{number}", paper=name, training_data=name, summary=summary)
        board.step("verify", {"entry": board.entries()[-1].id, "level": "rerun", "ok": False, "problems": [name]})
        board.step("attempt", {"entry": board.entries()[-1].id, "by": name, "source": name, "tried": 1})
    where = ["--board", str(board.path)]
    for command in (["show"], ["show", "--json"], ["show", "--csv"], ["verify"], ["verify", "--level", "files"], ["verify", "--json"]):
        main(["leaderboard", *command, *where])
        told = capsys.readouterr()
        clean(told.out + told.err)
        assert "[red]The[/red]" in told.out
    main(["leaderboard", "verify", "no\x1b[31mbody", *where])
    clean(capsys.readouterr().err)
    board.site(tmp_path / "site", reports="all")
    for path in (tmp_path / "site").rglob("*"):
        if path.suffix in (".html", ".csv", ".json"):
            clean(path.read_text(encoding="utf-8"))


def test_the_terminal_shows_names_as_they_are_where_that_is_harmless(board: Leaderboard, plant: Callable[..., Entry], capsys: Any) -> None:
    first = board.entries()[0]
    plant(board, first, name="β-VAE [bold]מודל[/bold]")
    plant(board, first, name="The standаrd one")  # a Cyrillic letter
    main(["leaderboard", "show", "--board", str(board.path)])
    told = capsys.readouterr().out
    assert "β-VAE" in told and "[bold]" in told
    assert "stand\\u0430rd" in " ".join(told.split()) and "looks like that of entry" in told
    assert next(one.note for one in board.standings() if "\u0430" in one.name).endswith(first.id[:10])


@pytest.mark.parametrize(
    "name", ["Тhe standard one", "The standard 0ne", "the standard οne", "The  stаndard\u00a0one", "The standard one\u0323"]
)
def test_a_name_that_looks_like_anothers_is_refused(
    board: Leaderboard, tmp_path: Path, digits_models: dict[str, str], make_run: Callable[..., Path], name: str
) -> None:
    from robustkit.leaderboard.submit import _duplicates

    with pytest.raises(BadInput, match="looks like it"):
        _duplicates(board, {"name": name, "model": {"identity": "x", "sha256": "y"}})


@pytest.mark.parametrize("name", ["a\u200bb", "a\u00adb", "a\ufe0fb", "a\u3164b", "a\u2003b", "a\U000e0041b", "a" + "\u0301" * 9])
def test_unseen_signs_are_refused(empty: Leaderboard, runs: Path, name: str) -> None:
    with pytest.raises(BadInput, match="the name holds"):
        empty.submit(runs / "standard", name=name)


def test_another_file_of_the_same_function_is_a_duplicate(
    board: Leaderboard, tmp_path: Path, digits_models: dict[str, str], make_run: Callable[..., Path]
) -> None:
    """The last layer scaled: other weights, other digests, the same answers."""
    from robustkit.models.weights import pack, read_checkpoint

    checkpoint = read_checkpoint(Path(digits_models["standard"]))
    last = sorted(key for key in checkpoint.tensors if key.endswith("weight"))[-1].partition(".")[0]
    weights = {key: value * 3 if key.startswith(f"{last}.") else value for key, value in checkpoint.tensors.items()}
    (tmp_path / "scaled.safetensors").write_bytes(pack(weights, checkpoint.metadata))
    made = make_run(str(tmp_path / "scaled.safetensors"), tmp_path / "again")
    with pytest.raises(BadInput, match="gives the same answers"):
        board.submit(made, name="Mine")


def test_other_models_answer_otherwise(board: Leaderboard) -> None:
    one, other = (entry.columns for entry in board.entries())
    assert same_answers(one, one) and not same_answers(one, other)
    noisy = one | {"clean_margin": one["clean_margin"] + 0.01 * np.abs(one["clean_margin"]).max() * np.sin(np.arange(48))}
    assert not same_answers(one, noisy)
    votes = {"predicted": one["predicted"], "clean_margin": np.ones(48)}
    assert not same_answers(votes, votes)


def test_the_head_is_printed(board: Leaderboard, empty: Leaderboard, runs: Path, capsys: Any) -> None:
    """By submit, challenge and verify; verify says that without it nobody sees a cut-off end."""
    assert main(["leaderboard", "submit", str(runs / "standard"), "--name", "x", "--board", str(empty.path)]) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[0] == empty.entries()[0].id and empty.ledger().head in told
    main(["leaderboard", "challenge", "x", "--witnesses", str(runs / "standard"), "--by", "me", "--board", str(empty.path)])
    assert empty.ledger().head in capsys.readouterr().out
    where = ["leaderboard", "verify", "--level", "files", "--board", str(board.path)]
    assert main(where) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "--head" in line)
    assert "cut off" in line and board.ledger().head in line
    assert main([*where, "--head", board.ledger().head]) == 0
    assert "--head" not in capsys.readouterr().out
    assert main([*where, "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)[0]["measured"]["head"] == board.ledger().head and "cut off" in told.err
