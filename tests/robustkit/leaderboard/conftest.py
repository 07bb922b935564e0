"""A small board with two entries, made once and copied for each test, and the means to forge one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustkit.checks.diagnostics import Examination
from robustkit.engine import evaluate
from robustkit.leaderboard import Leaderboard
from robustkit.leaderboard.documents import canonical, sha256
from robustkit.leaderboard.files import columns_bytes
from robustkit.leaderboard.manifest import MODEL, Entry, make_manifest

DATA, THREAT = "digits:n=48", "linf:0.06"


def run(model: str, folder: Path, **options: Any) -> Path:
    """A complete run about the board's question, without the honesty checks, which cost more than such a run.

    The model's file is copied into the folder: a submission opens no file elsewhere that a run folder names.
    """
    given: dict[str, Any] = {"suite": "quick", "report": False, "progress": False, "out": folder} | options
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Examination, "run", lambda self: [])
        evaluate(model, given.pop("data", DATA), given.pop("threat", THREAT), **given)
    if Path(model).is_file():
        shutil.copy(model, folder / MODEL)
    return folder


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, digits_models: dict[str, str]) -> Path:
    """Runs `standard` and `certified`, and the board `small@1` with both; never changed by tests."""
    folder = tmp_path_factory.mktemp("boards")
    board = Leaderboard.create(folder / "small", data=DATA, threat=THREAT, suite="quick")
    for name in ("standard", "certified"):
        run(digits_models[name], folder / name)
        board.submit(folder / name, name=f"The {name} one", paper="A & B 2026", training_data="digits", claimed=0.9)
    return folder


@pytest.fixture
def runs(made: Path) -> Path:
    """Folder of the runs."""
    return made


@pytest.fixture
def board(made: Path, tmp_path: Path) -> Leaderboard:
    """A copy of the board, to do with as one likes."""
    shutil.copytree(made / "small@1", tmp_path / "small@1")
    return Leaderboard(tmp_path / "small@1")


@pytest.fixture
def empty(tmp_path: Path, made: Path) -> Leaderboard:
    """The same question, no entry."""
    return Leaderboard.create(tmp_path / "boards" / "small", data=DATA, threat=THREAT, suite="quick")


@pytest.fixture(autouse=True)
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Re-runs without the honesty checks."""
    monkeypatch.setattr(Examination, "run", lambda self: [])


def content(entry: Entry) -> dict[str, bytes]:
    """The files of an entry."""
    return {one["path"]: (entry.folder / one["path"]).read_bytes() for one in entry.manifest["files"]}


Plant = Callable[..., Entry]


@pytest.fixture
def plant() -> Plant:
    """Put an entry on a board as a forger would: files, manifest and ledger agree with each other, nothing else is checked."""

    def put(
        board: Leaderboard,
        source: Entry,
        files: Mapping[str, bytes | None] | None = None,
        columns: Mapping[str, Any] | None = None,
        summary: Mapping[str, Any] | None = None,
        manifest: bytes | None = None,
        **about: Any,
    ) -> Entry:
        held: dict[str, Any] = content(source) | dict(files or {})
        if columns:
            held["samples.npz"] = columns_bytes(source.columns | dict(columns))
        if summary:
            held["summary.json"] = canonical(source.summary | dict(summary))
        kept = {name: raw for name, raw in held.items() if raw is not None}
        told = {key: source.manifest[key] for key in ("name", "paper", "training_data", "claimed", "model")} | about
        raw = manifest if manifest is not None else make_manifest(board.definition, told, kept)
        line = {
            "entry": sha256(raw)[:32],
            "manifest": sha256(raw),
            "name": told["name"],
            "model": "",
            "identity": "",
            "checked": "evidence",
        }
        board.step("submit", line, {**kept, "manifest.json": raw})
        return board.entries()[-1]

    return put


def honest(entry: Entry, changed: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """The figures of a summary that fit changed columns: what a careful forger writes."""
    from fractions import Fraction

    from robustkit.report.columns import as_evidence
    from robustkit.spec import number
    from robustkit.summary import accuracies, curve, intervals

    evidence = as_evidence(entry.columns | dict(changed))
    eps: Fraction = number(entry.definition.eps)
    found: dict[str, Any] = accuracies(evidence, eps)
    found |= intervals(found, len(evidence))
    stages = json.loads(json.dumps(entry.summary["stages"]))
    for stage in stages:
        stage |= {key: found[key] for key in ("robust_accuracy", "robust_accuracy_at_most")}
    return found | {"curve": curve(evidence, [eps]), "stages": stages}


@pytest.fixture
def fitting() -> Callable[..., dict[str, Any]]:
    """See `honest`."""
    return honest


@pytest.fixture
def files_of() -> Callable[[Entry], dict[str, bytes]]:
    """See `content`."""
    return content


@pytest.fixture
def make_run() -> Callable[..., Path]:
    """See `run`."""
    return run
