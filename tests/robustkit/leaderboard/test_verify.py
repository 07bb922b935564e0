"""Tampering is caught at the right level: an edit by the digests, a consistent forgery by the evidence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from robustkit.cli import main
from robustkit.errors import BadInput
from robustkit.leaderboard import Leaderboard
from robustkit.leaderboard.documents import canonical, sha256
from robustkit.leaderboard.manifest import Entry
from robustkit.models.weights import pack, read_checkpoint


def problems(board: Leaderboard, level: str, entry: str | None = None) -> str:
    return " | ".join(problem for one in board.verify(entry, level=level, record=False) for problem in one.problems)


@pytest.mark.parametrize("level", ["files", "evidence"])
def test_an_honest_board(board: Leaderboard, level: str) -> None:
    before = {path: path.read_bytes() for path in board.path.rglob("*") if path.is_file() and path.name != ".lock"}
    found = board.verify(level=level)
    assert [one.ok for one in found] == [True] * 3
    assert {path: path.read_bytes() for path in board.path.rglob("*") if path.is_file() and path.name != ".lock"} == before


def test_evidence_takes_no_more_than_two_forward_passes(board: Leaderboard) -> None:
    """One over the samples, one over the witnesses; near ties in float64 are not counted."""
    for one in board.verify()[1:]:
        assert one.measured["witnesses"] > 3
        assert one.measured["forwards"] <= 2 * 48 + 2 * 16 + 1  # padding to 16, and the first look at the model


def flip(raw: bytes) -> bytes:
    at = len(raw) // 2
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


@pytest.mark.parametrize("name", ["summary.json", "samples.npz", "witnesses.safetensors", "model.safetensors", "run.json", "manifest.json"])
@pytest.mark.parametrize("edit", ["flip", "cut", "grow", "remove"])
def test_an_edited_file_is_caught_at_level_files(board: Leaderboard, name: str, edit: str) -> None:
    path = board.entries()[0].folder / name
    raw = path.read_bytes()
    if edit == "remove":
        path.unlink()
    else:
        path.write_bytes({"flip": flip(raw), "cut": raw[:-1], "grow": raw + b"\0"}[edit])
    whole, first, second = board.verify(level="files")
    assert whole.ok and second.ok
    assert name in first.problems[0]
    assert board.standings()[-1].state == (
        "damaged" if name in ("summary.json", "samples.npz", "manifest.json", "run.json") else "evidence"
    )


def rehash(lines: list[dict[str, Any]]) -> bytes:
    """A ledger with these bodies and good hashes: what a forger of the ledger writes."""
    raw, previous = b"", "0" * 64
    for number, line in enumerate(lines):
        body = {key: value for key, value in line.items() if key != "hash"} | {"n": number, "prev": previous}
        previous = sha256(canonical(body))
        raw += canonical(body | {"hash": previous})
    return raw


def test_an_edited_ledger(board: Leaderboard) -> None:
    path, raw = board.path / "ledger.jsonl", (board.path / "ledger.jsonl").read_bytes()
    lines = raw.splitlines(keepends=True)
    edits = {
        "line 2: the line was changed": raw.replace(b"The standard one", b"The Standard one"),
        "line 3: the chain is broken": b"".join([lines[0], lines[1], lines[1]]),
        "line 2: the chain is broken": b"".join([lines[0], lines[2]]),
        "line 1: the chain is broken": b"".join(lines[1:]),
        "cut off": raw[:-5],
        "does not begin": b"",
        "no JSON": lines[0] + b"{\n",
        "canonical": lines[0].replace(b":", b": ", 1) + b"".join(lines[1:]),
    }
    for reason, text in edits.items():
        path.write_bytes(text)
        assert reason in problems(board, "files"), reason
    path.unlink()
    assert "lost its ledger" in problems(board, "files")


def test_a_ledger_whose_end_was_cut_off(board: Leaderboard) -> None:
    path, head = board.path / "ledger.jsonl", board.ledger().head
    assert all(one.ok for one in board.verify(level="files", head=head))
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    (whole, *_) = board.verify(level="files", head=head)
    assert any("its end was cut off" in problem for problem in whole.problems)
    assert any("is not in the ledger" in problem for problem in whole.problems)


def test_a_forged_ledger_still_has_to_fit_the_files(board: Leaderboard) -> None:
    path = board.path / "ledger.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["about"]["name"] = "Somebody else's"
    path.write_bytes(rehash(lines))
    assert "the manifest calls the entry 'The standard one'" in problems(board, "files")
    path.write_bytes(rehash([*lines[:2], lines[1], lines[2]]))
    assert "is there twice" in problems(board, "files")


# consistent forgeries: digests, manifest and ledger agree, the figures too where a careful forger would see to it


def test_a_better_summary(board: Leaderboard, plant: Callable[..., Entry]) -> None:
    plant(board, board.entries()[0], summary={"robust_accuracy": 0.95}, name="F")
    assert problems(board, "files") == ""
    assert "robust_accuracy is 0.95, the columns give" in problems(board, "evidence", "F")


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ("upper", "witness size of row .* its size 0.06 is above|witness size of row 0 is 0.0599"),
        ("predicted", "predicted of row"),
        ("clean_margin", "clean_margin is"),
        ("confidence", "confidence is"),
        ("label", "label of row"),
        ("index", "index of row"),
        ("adversarial_class", "adversarial_class of row"),
        ("upper_stage", "witness stage of row|names"),
    ],
)
def test_an_edited_column(
    board: Leaderboard, plant: Callable[..., Entry], fitting: Callable[..., dict[str, Any]], column: str, reason: str
) -> None:
    entry = board.entries()[0]
    values = entry.columns[column].copy()
    at = int(np.flatnonzero(entry.columns["upper_stage"] >= 0)[0])
    values[at] = values[at] * 0.5 if column == "upper" else values[at] + 1
    plant(board, entry, columns={column: values}, summary=fitting(entry, {column: values}), name="F")
    assert problems(board, "files") == ""
    import re

    assert re.search(reason, problems(board, "evidence", "F"))


def test_a_broken_sample_called_robust(board: Leaderboard, plant: Callable[..., Entry], fitting: Callable[..., dict[str, Any]]) -> None:
    """With its witness still there, or taken out as well: the second only a re-run can see."""
    entry = board.entries()[0]
    at = int(np.flatnonzero(entry.columns["upper_stage"] >= 0)[0])
    own = {key: entry.columns[key].copy() for key in ("upper", "upper_stage", "adversarial_class")}
    own["upper"][at], own["upper_stage"][at], own["adversarial_class"][at] = np.inf, -1, -1
    plant(board, entry, columns=own, summary=fitting(entry, own), name="F")
    assert f"differing samples: [{at}]" in problems(board, "evidence", "F")
    held = entry.witnesses()
    rest = safetensors.numpy.save({name: np.ascontiguousarray(values[held["position"] != at]) for name, values in held.items()})
    plant(board, entry, columns=own, summary=fitting(entry, own), files={"witnesses.safetensors": rest}, name="G")
    assert problems(board, "evidence", "G") == ""


def test_a_clean_error_called_correct(board: Leaderboard, plant: Callable[..., Entry], fitting: Callable[..., dict[str, Any]]) -> None:
    entry = next(one for one in board.entries() if (one.columns["upper"] == 0).any())
    at = int(np.flatnonzero(entry.columns["upper"] == 0)[0])
    own = {key: entry.columns[key].copy() for key in ("upper", "lower")}
    own["upper"][at], own["lower"][at] = np.inf, 0.0
    plant(board, entry, columns=own, summary=fitting(entry, own), name="F")
    assert f"clean and correct of row {at}" in problems(board, "evidence", "F")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p * np.float32(np.nan), "it is not finite"),
        (lambda p: p * 0, "the model answers correctly"),
        (lambda p: p * np.float32(1.02), "its size .* is above"),
        (lambda p: p + np.float32(np.inf), "it is not finite"),
        (lambda p: p[:, :, :4], "expected float32 of shape"),
        (lambda p: p.astype(np.float64), "expected float32"),
        (lambda p: p[:-1], "expected float32 of shape"),
    ],
)
def test_other_witnesses(board: Leaderboard, plant: Callable[..., Entry], change: Callable[[Any], Any], reason: str) -> None:
    import re

    entry = board.entries()[0]
    held = entry.witnesses()
    raw = safetensors.numpy.save(held | {"parameters": np.ascontiguousarray(change(held["parameters"]))})
    plant(board, entry, files={"witnesses.safetensors": raw}, name="F")
    assert problems(board, "files") == ""
    assert re.search(reason, problems(board, "evidence", "F"))


def test_a_witness_outside_the_budget_by_a_thousandth(board: Leaderboard, plant: Callable[..., Entry], fitting: Callable[..., Any]) -> None:
    """Called within the budget, though 1e-3 beyond: the size is measured, not believed."""
    entry = board.entries()[0]
    held, eps = entry.witnesses(), 0.06
    at = held["position"]
    p = torch.from_numpy(held["parameters"]).sign().numpy() * np.float32(eps + 1e-3)
    own = {"upper": entry.columns["upper"].copy()}
    own["upper"][at] = eps
    raw = safetensors.numpy.save(held | {"parameters": p, "size": np.full(len(at), eps)})
    plant(board, entry, columns=own, summary=fitting(entry, own), files={"witnesses.safetensors": raw}, name="F")
    assert "is above 0.06" in problems(board, "evidence", "F")


def test_no_witness_at_all(board: Leaderboard, plant: Callable[..., Entry]) -> None:
    plant(board, board.entries()[0], files={"witnesses.safetensors": None}, name="F")
    assert "there is no witness" in problems(board, "evidence", "F")


def test_swapped_weights(board: Leaderboard, plant: Callable[..., Entry], files_of: Callable[[Entry], dict[str, bytes]]) -> None:
    first, second = board.entries()
    other = files_of(second)["model.safetensors"]
    plant(board, first, files={"model.safetensors": other}, name="F")
    assert "sha256 is not that of model.safetensors" in problems(board, "files", "F")
    plant(board, first, files={"model.safetensors": other}, model=second.manifest["model"], name="G")
    found = problems(board, "evidence", "G")
    assert "another model" in found and "the model answers correctly" in found


def test_nearly_the_same_weights(board: Leaderboard, plant: Callable[..., Entry], tmp_path: Path, files_of: Callable[..., Any]) -> None:
    """A forger who also writes the other model's digest everywhere."""
    from robustkit.leaderboard.subject import identity, model_of_bytes

    entry = board.entries()[0]
    path = tmp_path / "m.safetensors"
    path.write_bytes(files_of(entry)["model.safetensors"])
    checkpoint = read_checkpoint(path)
    weights = {key: value * 1.05 for key, value in checkpoint.tensors.items()}
    raw = pack(weights, checkpoint.metadata)
    model = entry.manifest["model"] | {"sha256": sha256(raw), "identity": identity(model_of_bytes(raw, "m", "cpu"))}
    record = json.loads(canonical(entry.record))
    record["specification"]["model"]["sha256"] = sha256(raw)
    from robustkit.spec import digest
    from robustkit.store import canonical_json

    record["digest"] = digest(canonical_json(record["specification"]), 32)
    summary = {"model": entry.summary["model"] | {"sha256": sha256(raw)}}
    plant(board, entry, files={"model.safetensors": raw, "run.json": canonical(record)}, summary=summary, model=model, name="F")
    assert "clean_margin" in problems(board, "evidence", "F")


def test_a_model_that_is_only_named_is_not_loaded(
    board: Leaderboard, plant: Callable[..., Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that a submission names is imported, called or read unless the verifier allows it."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef make():\n    raise SystemExit\n")
    (tmp_path / "evil.pt").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    monkeypatch.chdir(tmp_path)
    entry = board.entries()[0]
    for number, spec in enumerate(["evil:make", "evil.pt", "torchvision:resnet18", "zoo:../../x", "smooth:(evil:make),sigma=1", "evil"]):
        model = {"spec": spec, "sha256": "0" * 64, "identity": "", "file": None}
        plant(board, entry, files={"model.safetensors": None}, model=model, name=f"F{number}")
        (_, verdict) = board.verify(f"F{number}", record=False)
        assert not verdict.ok and ("--allow-code" in verdict.missing or "unknown zoo model" in verdict.problems[0])
    assert not (tmp_path / "ran").exists()
    assert main(["leaderboard", "verify", "F0", "--board", str(board.path)]) == 3
    assert not (tmp_path / "ran").exists()
    assert main(["leaderboard", "verify", "F0", "--board", str(board.path), "--allow-code"]) == 1


def test_the_command_says_what_disagrees(board: Leaderboard, plant: Callable[..., Entry], capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--board", str(board.path)]
    assert main(["leaderboard", "verify", *where]) == 0
    assert "forward passes over the data" in capsys.readouterr().out
    plant(board, board.entries()[0], summary={"open": 0.0}, name="F")
    assert main(["leaderboard", "verify", *where]) == 1
    assert "open is 0, the columns give" in capsys.readouterr().out
    assert main(["leaderboard", "verify", "F", *where, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[1]["ok"] is False
    assert main(["leaderboard", "verify", "nobody", *where]) == 2
    with pytest.raises(BadInput, match="unknown level"):
        board.verify(level="all")


def test_an_attack_of_an_older_version(board: Leaderboard, plant: Callable[..., Entry]) -> None:
    """What the board demands it demands in its version: an older one had a mistake that a later one does not have."""
    from robustkit.spec import digest
    from robustkit.store import canonical_json

    entry = board.entries()[0]
    record = json.loads(canonical(entry.record))
    for stage in record["specification"]["stages"]:
        stage["version"] = 0
    record["digest"] = digest(canonical_json(record["specification"]), 32)
    plant(board, entry, files={"run.json": canonical(record)}, name="F")
    assert "was run in version 0, the board demands" in problems(board, "evidence", "F")
