"""What is accepted, and the reasons why other runs are not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from robustkit.errors import BadInput, Missing
from robustkit.leaderboard import Leaderboard
from robustkit.leaderboard.documents import sha256
from robustkit.leaderboard.manifest import entry_id


def changed(run: Path, to: Path, name: str, change: Callable[[Any], Any]) -> Path:
    """A copy of a run folder with one file changed."""
    shutil.copytree(run, to)
    path = to / name
    if name.endswith(".json"):
        told = json.loads(path.read_text())
        path.write_text(json.dumps(change(told) or told))
    elif name.endswith(".npz"):
        with np.load(path) as held:
            columns = dict(held)
        np.savez_compressed(path, **(change(columns) or columns))
    else:
        tensors = safetensors.numpy.load_file(path)
        safetensors.numpy.save_file(change(tensors) or tensors, path)
    return to


def test_an_entry_is_its_manifest(board: Leaderboard) -> None:
    for entry in board.entries():
        raw = (entry.folder / "manifest.json").read_bytes()
        assert entry.id == entry_id(raw) and entry.digest == sha256(raw)
        for one in entry.manifest["files"]:
            held = (entry.folder / one["path"]).read_bytes()
            assert (len(held), sha256(held)) == (one["size"], one["sha256"])
        assert {path.name for path in entry.folder.iterdir()} == {one["path"] for one in entry.manifest["files"]} | {"manifest.json"}
        assert entry.manifest["model"]["sha256"] == sha256((entry.folder / "model.safetensors").read_bytes())


def test_nothing_of_the_submitters_disk_is_told(board: Leaderboard, runs: Path) -> None:
    for path in board.path.rglob("*"):
        if path.is_file():
            assert str(runs).encode() not in path.read_bytes(), path


def test_the_same_run_gives_the_same_entry(board: Leaderboard, empty: Leaderboard, runs: Path) -> None:
    entry = empty.submit(runs / "standard", name="The standard one", paper="A & B 2026", training_data="digits", claimed=0.9)
    assert entry.id == board.entries()[0].id


def test_duplicates(board: Leaderboard, runs: Path, tmp_path: Path, digits_models: dict[str, str], make_run: Callable[..., Path]) -> None:
    with pytest.raises(BadInput, match="is the same model"):
        board.submit(runs / "standard", name="Another name")
    from robustkit.models.weights import pack, read_checkpoint

    checkpoint = read_checkpoint(Path(digits_models["standard"]))
    renamed = tmp_path / "renamed.safetensors"
    renamed.write_bytes(pack(checkpoint.tensors, checkpoint.metadata | {"note": "mine"}))
    again = make_run(str(renamed), tmp_path / "again")
    with pytest.raises(BadInput, match="is the same model"):
        board.submit(again, name="Another name")
    weights = dict(checkpoint.tensors)
    weights["0.bias"] = weights["0.bias"] + 0.25
    renamed.write_bytes(pack(weights, checkpoint.metadata))
    other = make_run(str(renamed), tmp_path / "other")
    with pytest.raises(BadInput, match="has that name"):
        board.submit(other, name=" the STANDARD\u00a0one ")
    assert len(board.entries()) == 2
    board.submit(other, name="A third")
    assert [entry.name for entry in board.entries()][2] == "A third"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"data": "digits:n=47"}, "47 samples"),
        ({"data": "digits:n=48,pick=random"}, "it is about digits"),
        ({"threat": "linf:0.05"}, "evaluate with --threat linf:0.06"),
        ({"threat": "l2:0.06"}, "evaluate with --threat linf:0.06"),
        ({"seed": 1}, "seed is 1, the board's is 0"),
        ({"labels": "predicted"}, "labels is 'predicted'"),
        ({"attacks": ["fgsm"]}, "pgd:steps=20.* was not run"),
    ],
)
def test_an_answer_to_another_question(
    empty: Leaderboard, tmp_path: Path, digits_models: dict[str, str], make_run: Callable[..., Path], options: dict[str, Any], reason: str
) -> None:
    made = make_run(digits_models["standard"], tmp_path / "run", **options)
    with pytest.raises(BadInput, match=reason):
        empty.submit(made, name="x")
    assert empty.entries() == [] and not (empty.path / "entries").exists()


def drop_last(columns: dict[str, Any]) -> dict[str, Any]:
    return {name: values[:-1] for name, values in columns.items()}


def nan(columns: dict[str, Any]) -> None:
    columns["upper"][3] = np.nan


def robust(columns: dict[str, Any]) -> None:
    columns["upper"][np.isfinite(columns["upper"]) & (columns["upper"] > 0)] = np.inf


def doubled(columns: dict[str, Any]) -> None:
    columns["index"][1] = columns["index"][0]


CHANGES: list[tuple[str, Callable[[Any], Any], str]] = [
    ("run.json", lambda told: told | {"status": "incomplete"}, "completes it"),
    ("run.json", lambda told: told | {"digest": "0" * 32}, "digest does not fit"),
    ("summary.json", lambda told: told | {"robust_accuracy": 0.99}, "robust_accuracy is 0.99, the columns give"),
    (
        "summary.json",
        lambda told: told | {"diagnostics": [{"check": "contradiction", "status": "error", "message": "m", "cure": ""}]},
        "not sound",
    ),
    ("summary.json", lambda told: told | {"stages": "none"}, "stages: found .none., expected a list"),
    ("summary.json", lambda told: {"n": 1}, "no schema_version"),
    ("samples.npz", drop_last, "shape"),
    ("samples.npz", nan, "NaN at position 3"),
    ("samples.npz", robust, "names an attack|columns give"),
    ("samples.npz", doubled, "index of row 1"),
    ("samples.npz", lambda columns: columns | {"more": np.zeros(3)}, "missing or unknown: more"),
    ("witnesses.safetensors", lambda t: t | {"parameters": t["parameters"] * 0}, "the model answers correctly"),
    ("witnesses.safetensors", lambda t: {k: v[1:] for k, v in t.items()}, "not those of the"),
]


@pytest.mark.parametrize(("name", "change", "reason"), CHANGES, ids=[f"{i}-{name}" for i, (name, _, _) in enumerate(CHANGES)])
def test_an_edited_run(empty: Leaderboard, runs: Path, tmp_path: Path, name: str, change: Callable[[Any], Any], reason: str) -> None:
    made = changed(runs / "standard", tmp_path / "run", name, change)
    with pytest.raises(BadInput, match=reason):
        empty.submit(made, name="x")
    assert empty.entries() == []


def test_a_folder_that_is_no_run(empty: Leaderboard, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no run folder"):
        empty.submit(tmp_path, name="x")


def test_the_weights_have_to_be_those_that_were_evaluated(empty: Leaderboard, runs: Path, digits_models: dict[str, str]) -> None:
    with pytest.raises(BadInput, match="not the file that was evaluated"):
        empty.submit(runs / "standard", name="x", model=digits_models["certified"])
    with pytest.raises(Missing, match="no model file"):
        empty.submit(runs / "standard", name="x", model="nowhere.safetensors")
    assert empty.submit(runs / "standard", name="x", model=digits_models["standard"]).has("model.safetensors")


@pytest.mark.parametrize("name", ["", "  ", "a\u202eb", "x" * 201, "a\nb", "\ud800", "\x00"])
def test_names_that_would_mislead(empty: Leaderboard, runs: Path, name: str) -> None:
    with pytest.raises(BadInput, match="the name"):
        empty.submit(runs / "standard", name=name)


@pytest.mark.parametrize("claimed", [-0.1, 1.5, float("nan")])
def test_claims_are_shares(empty: Leaderboard, runs: Path, claimed: float) -> None:
    with pytest.raises(BadInput, match="claimed"):
        empty.submit(runs / "standard", name="x", claimed=claimed)
