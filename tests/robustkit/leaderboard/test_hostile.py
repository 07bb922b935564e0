"""Submissions made to crash, to fill the memory, to write elsewhere or to run code. Each ends in words."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from robustkit.leaderboard import Leaderboard
from robustkit.leaderboard.documents import canonical, sha256
from robustkit.leaderboard.files import COLUMNS, columns_bytes
from robustkit.leaderboard.manifest import Entry
from robustkit.leaderboard.subject import model_of_bytes
from robustkit.models.weights import pack


def refused(board: Leaderboard, name: str = "F") -> str:
    """What verify says of an entry; the table and the site still work, and nothing is written outside the board."""
    before = {path for path in board.path.parent.rglob("*") if board.path not in path.parents}
    found = [one for one in board.verify(level="evidence", record=False) if one.name == name]
    board.standings()
    assert {path for path in board.path.parent.rglob("*") if board.path not in path.parents} == before
    assert found and found[0].problems
    return " | ".join(found[0].problems)


def manifest(entry: Entry, change: Callable[[dict[str, Any]], Any]) -> bytes:
    told = json.loads(canonical(entry.manifest)) | {"name": "F"}
    return canonical(change(told) or told)


def listed(path: str) -> Callable[[dict[str, Any]], Any]:
    return lambda told: told["files"].append({"path": path, "size": 1, "sha256": "0" * 64})


@pytest.mark.parametrize(
    "path", ["../evil", "/tmp/evil", "a/../../evil", "report.html", ".", "", "manifest.json", "samples.npz", "C:\\x", "a\x00b"]
)
def test_a_path_that_is_none_of_ours(board: Leaderboard, plant: Callable[..., Entry], path: str) -> None:
    plant(board, board.entries()[0], manifest=manifest(board.entries()[0], listed(path)), name="F")
    assert "lists the files" in refused(board)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda told: told | {"more": 1}, "unknown keys"),
        (lambda told: told | {"files": {}}, "expected a list"),
        (lambda told: told | {"files": [3]}, "expected"),
        (lambda told: told | {"name": ["F"]}, "expected a text"),
        (lambda told: told | {"claimed": 7}, "claim"),
        (lambda told: told | {"claimed": True}, "expected a number"),
        (lambda told: told | {"schema_version": 99}, "schema_version"),
        (lambda told: told | {"board": told["board"] | {"title": "other@1"}}, "another board"),
        (lambda told: told | {"paper": "x" * 10_000}, "too long"),
        (lambda told: told | {"model": told["model"] | {"file": "../../x"}}, "sha256 is not that of"),
        (lambda told: [one.update(size=10**30) for one in told["files"]] and None, "expected at most"),
        (lambda told: [one.update(size=-1) for one in told["files"]] and None, "expected at least 0"),
        (lambda told: [one.update(sha256="../../../etc") for one in told["files"]] and None, "expected the form"),
    ],
)
def test_a_manifest_that_is_none(board: Leaderboard, plant: Callable[..., Entry], change: Callable[..., Any], reason: str) -> None:
    plant(board, board.entries()[0], manifest=manifest(board.entries()[0], change), name="F")
    assert reason in refused(board)


@pytest.mark.parametrize("raw", [b"", b"[" * 200_000, b"{}\n", b'{"a":1e999}\n', b'{"a":NaN}\n', b"\x80\x04.", b"9" * 6000, b'{"a": 1}\n'])
def test_a_manifest_that_is_no_document(board: Leaderboard, plant: Callable[..., Entry], raw: bytes) -> None:
    plant(board, board.entries()[0], manifest=raw, name="F")
    assert refused(board)


@pytest.mark.parametrize("name", ["samples.npz", "model.safetensors", "manifest.json", "summary.json"])
@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_what_is_no_file(board: Leaderboard, tmp_path: Path, name: str, kind: str) -> None:
    """A link is not followed even to the very same content; a pipe does not block."""
    entry = board.entries()[0]
    path = entry.folder / name
    (tmp_path / "elsewhere").write_bytes(path.read_bytes())
    path.unlink()
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    assert "no regular file" in refused(board, "The standard one")


def test_an_entry_that_is_a_link(board: Leaderboard, tmp_path: Path) -> None:
    entry = board.entries()[0]
    entry.folder.rename(tmp_path / "away")
    entry.folder.symlink_to(tmp_path / "away")
    assert "is no folder but a link" in refused(board, "The standard one")


def test_an_entry_that_is_not_in_the_ledger(board: Leaderboard, tmp_path: Path) -> None:
    (board.path / "entries" / "ab").mkdir()
    (board.path / "setup.py").write_text("")
    (whole, *_) = board.verify(level="files")
    assert len(whole.problems) == 2 and all("not in the ledger" in problem for problem in whole.problems)
    (board.entries()[0].folder / "more").write_text("")
    assert "not in the manifest" in board.verify(level="files")[1].problems[0]


def zipped(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in members.items():
            archive.writestr(f"{name}.npy", raw)
    return stream.getvalue()


def array(header: str, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + body


def column(entry: Entry, name: str, raw: bytes) -> bytes:
    held = {}
    with zipfile.ZipFile(io.BytesIO(columns_bytes(entry.columns))) as archive:
        held = {one: archive.read(f"{one}.npy") for one in COLUMNS}
    return zipped(**(held | {name: raw}))


def float_header(shape: str) -> str:
    return f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (array(float_header("(1000000000000,)")), "expected float64 of shape"),
        (array(float_header("(48,)"), b"\0" * 8), "cut off"),
        (array(float_header("(48,)"), b"\0" * 2_000_000_00), "unpacks to more"),
        (array("{'descr': '|O', 'fortran_order': False, 'shape': (48,), }", b"\x80\x04." + b"\0" * 400), "Python objects"),
        (array("{'descr': __import__('os').system('true'), 'fortran_order': False, 'shape': (48,), }"), "cannot be read"),
        (array(float_header("(48,)"), b"\0" * 384, b"\x09\x00"), "unknown format|cannot be read"),
        (b"", "cannot be read"),
    ],
    ids=["declared", "cut", "bomb", "objects", "code", "version", "empty"],
)
def test_columns_that_are_none(board: Leaderboard, plant: Callable[..., Entry], raw: bytes, reason: str) -> None:
    import re

    entry = board.entries()[0]
    plant(board, entry, files={"samples.npz": column(entry, "upper", raw)}, name="F")
    assert re.search(reason, refused(board))


@pytest.mark.parametrize(
    "raw", [b"", b"PK\x03\x04", b"\x80\x04.", zipped(), zipped(a=b"")], ids=["empty", "zip", "pickle", "none", "other"]
)
def test_columns_in_something_else(board: Leaderboard, plant: Callable[..., Entry], raw: bytes) -> None:
    plant(board, board.entries()[0], files={"samples.npz": raw}, name="F")
    assert "samples.npz" in refused(board)


def tensor_file(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


BOMBS = {
    "declared": tensor_file({"parameters": {"dtype": "F32", "shape": [1 << 40, 1 << 20], "data_offsets": [0, 4]}}, b"\0" * 4),
    "overflow": tensor_file({"parameters": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 0]}}),
    "offsets": tensor_file({"parameters": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 60]}}, b"\0" * 4),
    "negative": tensor_file({"parameters": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"\0" * 4),
    "header": (1 << 62).to_bytes(8, "little") + b"{}",
    "nested": tensor_file(b"[" * 500_000),
    "empty": b"",
    "pickle": b"\x80\x04cos\nsystem\n(S'touch ran'\ntR.",
    "kind": tensor_file({"parameters": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, b"\0" * 4),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("file", ["witnesses.safetensors", "model.safetensors"])
def test_tensors_that_are_none(board: Leaderboard, plant: Callable[..., Entry], file: str, name: str, tmp_path: Path) -> None:
    entry, raw = board.entries()[0], BOMBS[name]
    model = entry.manifest["model"] | ({"sha256": sha256(raw)} if file == "model.safetensors" else {})
    plant(board, entry, files={file: raw}, model=model, name="F")
    assert refused(board)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [
        ("conv(1,1,1,s1,p30000)-globalavgpool-flatten-linear(1,10)", "1x8x8"),
        ("flatten-linear(64,999999999999)", "1x8x8"),
        ("conv(1,99999999,3)", "1x8x8"),
        ("res(" * 50 + "relu" + "|)" * 50, "1x8x8"),
        ("flatten-" + "relu-" * 5000 + "relu", "1x8x8"),
        ("flatten-linear(64,10)", "999999x999999x999999"),
        ("flatten-linear(64,10)", "1x8"),
        ("zoo-arch:mlp:hidden=[999999,999999]", "1x8x8"),
        ("__import__('os').system('touch ran')", "1x8x8"),
        ("", "1x8x8"),
    ],
)
def test_a_model_that_asks_for_too_much(board: Leaderboard, plant: Callable[..., Entry], architecture: str, shape: str) -> None:
    import torch

    tensors = {"0.weight": torch.ones(1, 1, 1, 1), "0.bias": torch.zeros(1)}
    raw = pack(tensors, {"architecture": architecture, "input": f"{shape} in [0,1]", "classes": "10"})
    entry = board.entries()[0]
    plant(board, entry, files={"model.safetensors": raw}, model=entry.manifest["model"] | {"sha256": sha256(raw)}, name="F")
    assert "model" in refused(board)
    assert not Path("ran").exists()


def test_a_model_that_answers_nothing_but_nan(
    board: Leaderboard, plant: Callable[..., Entry], tmp_path: Path, files_of: Callable[..., Any]
) -> None:
    from robustkit.leaderboard.subject import identity
    from robustkit.models.weights import read_checkpoint

    entry = board.entries()[0]
    (tmp_path / "m").write_bytes(files_of(entry)["model.safetensors"])
    held = read_checkpoint(tmp_path / "m")
    raw = pack({key: value * float("nan") for key, value in held.tensors.items()}, held.metadata)
    model = entry.manifest["model"] | {"sha256": sha256(raw), "identity": identity(model_of_bytes(raw, "m", "cpu"))}
    plant(board, entry, files={"model.safetensors": raw}, model=model, name="F")
    assert "the model says" in refused(board)


@pytest.mark.parametrize(
    "change",
    [
        {"stages": [{"name": 3}]},
        {"eps": ["nan"]},
        {"eps": []},
        {"eps": ["9" * 5000]},
        {"curve": "x"},
        {"curve": [{"eps": "a", "robust_accuracy": 1.0, "certified_accuracy": 0.0}]},
        {"threat": "linf:<script>"},
        {"clean_accuracy": 1e308},
        {"interval95": {}},
        {"population95": [0.0]},
        {"diagnostics": [{}]},
        {"data": {}},
        {"model": []},
        {"seed": "0"},
    ],
)
def test_a_summary_that_is_none(board: Leaderboard, plant: Callable[..., Entry], change: dict[str, Any], tmp_path: Path) -> None:
    plant(board, board.entries()[0], summary=change, name="F")
    assert refused(board)
    board.site(tmp_path / "site", reports="all")


def test_stages_that_lead_nowhere(board: Leaderboard, plant: Callable[..., Entry]) -> None:
    entry = board.entries()[0]
    for number, value in enumerate((10**9, -7, np.iinfo(np.int64).max)):
        own = {"upper_stage": np.full(48, value), "lower_stage": np.full(48, value), "adversarial_class": np.full(48, value)}
        plant(board, entry, columns=own, name=f"F{number}")
        assert "stage" in refused(board, f"F{number}") or "names" in refused(board, f"F{number}")


@pytest.mark.parametrize("position", [[-1], [48], [2**62], [3, 3], [5, 4]])
def test_witnesses_of_no_sample(board: Leaderboard, plant: Callable[..., Entry], position: list[int]) -> None:
    entry = board.entries()[0]
    held = {name: np.ascontiguousarray(values[: len(position)]) for name, values in entry.witnesses().items()}
    raw = safetensors.numpy.save(held | {"position": np.array(position)})
    plant(board, entry, files={"witnesses.safetensors": raw}, name="F")
    assert "the witnesses are not those" in refused(board)


def test_two_entries_with_one_id(board: Leaderboard, plant: Callable[..., Entry], files_of: Callable[..., Any]) -> None:
    from robustkit.errors import BadInput

    entry = board.entries()[0]
    with pytest.raises(BadInput, match="exists"):
        plant(board, entry)
    assert len(board.entries()) == 2 and all(one.ok for one in board.verify(level="files"))


def test_a_ledger_of_nonsense(board: Leaderboard, tmp_path: Path) -> None:
    """Every value of every line replaced by others, with good hashes: all commands end in words."""
    from robustkit.errors import RobustkitError

    path = board.path / "ledger.jsonl"
    board.step("verify", {"entry": board.entries()[0].id, "level": "rerun", "ok": True, "bound": 0.1})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    values: list[Any] = [None, 3, -1, "", "x", [], {}, True, 1.5, "../../x", "a" * 64, 10**400, "\u202e<b>"]
    seen = 0
    for number in range(len(lines)):
        for key in ("event", "time", *lines[number]["about"]):
            for value in values:
                changed = json.loads(json.dumps(lines))
                target = changed[number] if key in ("event", "time") else changed[number]["about"]
                target[key] = value
                raw, previous = b"", "0" * 64
                for place, line in enumerate(changed):
                    body = {name: one for name, one in line.items() if name != "hash"} | {"n": place, "prev": previous}
                    previous = sha256(canonical(body))
                    raw += canonical(body | {"hash": previous})
                path.write_bytes(raw)
                seen += 1
                try:
                    told = board.verify(level="files", record=False)
                    board.standings()
                    if seen % 40 == 0:
                        board.site(tmp_path / "site", reports="none")
                except RobustkitError:
                    continue
                if key in ("manifest", "definition"):
                    assert any(one.problems for one in told)
    assert seen > 150 and not (tmp_path / "x").exists()
