"""Folders from strangers: every command that reads one, on names made to run code or to open files elsewhere.

Canaries: a module that leaves a trace when it is imported or called, pickles that do when they are read, `os.abort`,
and an audit hook that hears every file that is opened.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import robustkit as rk
from robustkit.cli import main
from robustkit.errors import Missing, RobustkitError
from robustkit.leaderboard import Leaderboard
from robustkit.leaderboard.documents import canonical
from robustkit.leaderboard.ledger import FILE as LEDGER
from robustkit.leaderboard.ledger import Ledger
from robustkit.leaderboard.manifest import Entry
from robustkit.spec import digest
from robustkit.store import canonical_json

TRACES: list[str] = []
"""What ran, and what was opened that should not have been."""

_GUARDED: list[str] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if not _GUARDED:
        return
    if event == "open" and str(arguments[0]).startswith(tuple(_GUARDED)):
        TRACES.append(f"opened {arguments[0]}")
    if event in ("os.system", "subprocess.Popen", "os.exec", "pickle.find_class") and "canary" in str(arguments):
        TRACES.append(f"{event} {arguments}")


class _Canary:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (TRACES.append, ("unpickled",))


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder beside the stranger's: a module on the path, files that are none of his business."""
    place = tmp_path / "private"
    place.mkdir()
    code = "from tests_canary_traces import TRACES\nTRACES.append('imported')\ndef call(*_):\n    TRACES.append('called')\n"
    (tmp_path / "path").mkdir()
    for name in ("canary", "digits_canary"):
        (tmp_path / "path" / f"{name}.py").write_text(code)
    (tmp_path / "path" / "mnist").mkdir()
    (tmp_path / "path" / "mnist" / "__init__.py").write_text(code)
    (tmp_path / "path" / "mnist" / "canary.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    monkeypatch.setitem(sys.modules, "tests_canary_traces", sys.modules[__name__])
    monkeypatch.setattr(os, "abort", lambda: TRACES.append("aborted"))
    sys.addaudithook(_hear)
    TRACES.clear()
    _GUARDED[:] = [str(place)]
    yield place
    _GUARDED.clear()
    for name in [name for name in sys.modules if "canary" in name or name == "mnist"]:
        del sys.modules[name]


MODELS = [
    "os:abort",
    "builtins:exec",
    "canary:call",
    "mnist.canary:call",
    "smooth:(os:abort),sigma=0.1",
    "smooth:(knn:(canary:call)),sigma=0.1",
    "knn:(canary:call)",
    "knn:(zoo:digits-standard),data=(canary:call)",
    "binary:(PRIVATE/model.safetensors)",
    "smooth:(PRIVATE/model.safetensors),sigma=0.1",
    "PRIVATE/model.safetensors",
    "../private/model.safetensors",
    "link.safetensors",
    "linked/model.safetensors",
    "zoo:../../../private/model",
    "torchvision:resnet18,weights=PRIVATE/model.safetensors",
    "\\\\host\\share\\model.safetensors",
    "weights.pt",
    "<img src=x onerror=alert(1)>{{ 7 * 7 }}",
]
DATA = [
    "os:abort",
    "canary:call",
    "mnist.canary:call",
    "digits_canary:call",
    "npz:PRIVATE/data.npz",
    "npz:../private/data.npz",
    "npz:pickled.npz",
    "npz:link.npz",
    "PRIVATE/data.npz",
    "folder:PRIVATE",
    "folder:linked",
    "{{ 7 * 7 }}<script>",
]
THREATS = ["os:abort", "canary:call", "linf:(canary:call)", "linf:eps=canary", "linf:0.06,mask=PRIVATE/mask.npy"]
METHODS = ["transfer:[(canary:call)]", "foolbox:ddn,init_attack=(canary:call)", "canary:call", "pgd:steps=(os:abort)"]
NAMES = [(kind, name) for kind, names in (("model", MODELS), ("data", DATA), ("threat", THREATS), ("method", METHODS)) for name in names]


def hostile(run: Path, folder: Path, private: Path, kind: str, name: str) -> Path:
    """A copy of an honest run that names something else, its digest right; with links and pickles in it."""
    shutil.copytree(run, folder)
    shutil.copy(folder / "model.safetensors", private / "model.safetensors")
    np.savez(private / "data.npz", x=np.zeros((4, 8, 8), np.uint8), y=np.arange(4))
    (folder / "model.safetensors").unlink()
    (folder / "link.safetensors").symlink_to(private / "model.safetensors")
    (folder / "link.npz").symlink_to(private / "data.npz")
    (folder / "linked").symlink_to(private)
    (folder / "weights.pt").write_bytes(pickle.dumps(_Canary()))
    with (folder / "pickled.npz").open("wb") as file:
        np.savez(file, x=np.array([_Canary()], dtype=object), y=np.arange(1))
    for file_name in ("run.json", "summary.json"):
        told = json.loads((folder / file_name).read_text())
        said = told.get("specification", told)
        if kind in ("model", "data"):
            said[kind]["spec"] = name
        elif kind == "threat":
            said["threat"] = name
        else:
            for stage in said["stages"]:
                stage["method" if file_name == "run.json" else "spec"] = name
        if file_name == "run.json":
            told["digest"] = digest(canonical_json(said), 32)
        (folder / file_name).write_text(json.dumps(told))
    return folder


def hostile_board(board: Leaderboard, entry: Entry, plant: Callable[..., Entry], kind: str, name: str) -> Leaderboard:
    """A board whose definition or whose entry names something else, all its digests right."""
    told = board.definition
    if kind == "data":
        told = replace(told, data=told.data | {"spec": name})
    elif kind == "threat":
        told = replace(told, threat=name)
    elif kind == "method":
        told = replace(told, floor=[{"method": name, "version": 1}])
    shutil.rmtree(board.path / "entries")
    (board.path / "board.json").write_bytes(told.raw)
    (board.path / LEDGER).write_bytes(Ledger().extended("init", {"board": told.title, "definition": told.digest}).raw)
    forged = Leaderboard(board.path)
    if kind == "model":
        model = entry.manifest["model"] | {"spec": name, "file": None}
        plant(forged, entry, files={"model.safetensors": None}, model=model, name="F")
    else:
        plant(forged, entry, name="F")
    return forged


@pytest.mark.parametrize(("kind", "name"), NAMES, ids=[f"{kind}-{name}" for kind, name in NAMES])
def test_a_strangers_folder_runs_nothing(
    kind: str, name: str, board: Leaderboard, empty: Leaderboard, runs: Path, plant: Callable[..., Entry], canary: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    name = name.replace("PRIVATE", str(canary))
    _GUARDED.clear()
    source = board.entries()[0]
    kept = Path(shutil.copytree(source.folder, tmp_path / "source" / source.id))
    entry = Entry(kept, board.definition, source.digest, source.name)
    held = shutil.copytree(board.path, tmp_path / "kept@1")
    folder = hostile(runs / "standard", tmp_path / "run", canary, kind, name)
    forged = hostile_board(board, entry, plant, kind, name)
    _GUARDED[:] = [str(canary)]
    run, page, where = str(folder), str(tmp_path / "page.html"), str(forged.path)
    commands = [
        ["verify", run],
        ["verify", run, "--certificates", "--json"],
        ["show", run],
        ["report", run, "--html", page],
        ["compare", run, run],
        ["compare", f"{where}/F", run],
        ["leaderboard", "submit", run, "--board", str(empty.path), "--name", "x"],
        ["leaderboard", "challenge", "The standard one", "--witnesses", run, "--by", "x", "--board", str(held)],
        ["leaderboard", "show", "--board", where],
        ["leaderboard", "verify", "--board", where, "--no-record"],
        ["leaderboard", "verify", "--board", where, "--level", "rerun", "--sample", "4", "--no-record"],
        ["leaderboard", "challenge", "F", "--witnesses", run, "--by", "x", "--board", where],
        ["leaderboard", "challenge-all", "--attack", "fgsm", "--by", "x", "--board", where],
        ["leaderboard", "site", "--board", where, "--out", str(tmp_path / "site")],
    ]
    for command in commands:
        assert main(command) in (0, 1, 2, 3), command
        assert TRACES == [], command
        assert "Traceback" not in capsys.readouterr().err
    for load in (lambda: rk.verify(run), lambda: Leaderboard(where).verify(), lambda: Leaderboard(where).standings()):
        with contextlib.suppress(RobustkitError):
            load()
        assert TRACES == []
    assert main(["verify", run]) != 0 and empty.entries() == []
    for made in [Path(page), *(tmp_path / "site").rglob("*.html")]:
        if made.exists():
            text = made.read_text()
            assert "<img src=x" not in text and "<script>{{" not in text and ">49<" not in text


def test_what_is_allowed_runs(runs: Path, canary: Path, tmp_path: Path) -> None:
    """Code needs --allow-code, a file elsewhere --model or --data; then it is opened."""
    folder = hostile(runs / "standard", tmp_path / "run", canary, "model", "canary:call")
    with_code = rk.verify(folder, allow_code=True)
    assert "imported" in TRACES and "called" in TRACES and with_code.unchecked
    named = hostile(runs / "standard", tmp_path / "other", canary, "model", str(canary / "model.safetensors"))
    TRACES.clear()
    assert rk.verify(named, allow_code=True).exit_code == 3 and TRACES == []
    assert rk.verify(named, model=canary / "model.safetensors").ok and TRACES != []


def test_a_board_whose_data_the_user_names(
    tmp_path: Path, runs: Path, make_run: Callable[..., Path], digits_models: dict[str, str]
) -> None:
    """A file elsewhere is given with --data; one in the board's folder is opened."""
    x, y = rk.load_data("digits:n=16")
    np.savez(tmp_path / "mine.npz", x=x.numpy(), y=y.numpy())
    named = f"npz:{tmp_path / 'mine.npz'}"
    made = Leaderboard.create(tmp_path / "b", data=named, threat="linf:0.06", suite="quick")
    run = make_run(digits_models["standard"], tmp_path / "run", data=named)
    with pytest.raises(Missing, match="--data"):
        made.submit(run, name="x")
    given = Leaderboard(made.path, data=named)
    given.submit(run, name="x")
    assert all(one.ok for one in given.verify())
    with pytest.raises(Missing, match="--data"):
        Leaderboard(made.path).verify()
    assert canonical(json.loads((made.path / "board.json").read_bytes())) == given.definition.raw
