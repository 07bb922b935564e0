"""The boards that ship: sound at level evidence, and a tampered copy is caught, whatever was tampered with."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from robustkit.cli import main
from robustkit.leaderboard import Leaderboard

ROOT = Path(__file__).resolve().parents[3] / "leaderboards"
BOARDS = sorted(path.parent.name for path in ROOT.glob("*/board.json"))
MOST = 8_500_000
"""Bytes of all boards together."""


@pytest.fixture(params=BOARDS)
def shipped(request: pytest.FixtureRequest) -> Leaderboard:
    board = Leaderboard(ROOT / request.param)
    if board.definition.data["spec"].startswith("mnist"):
        request.getfixturevalue("shared_data")
    return board


@pytest.fixture
def root(shipped: Leaderboard, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path | None:
    """Where the data lies."""
    return request.getfixturevalue("shared_data") if shipped.definition.data["spec"].startswith("mnist") else None


def test_the_boards_are_there() -> None:
    assert {name.partition("@")[0] for name in BOARDS} >= {"digits-linf-0.1", "mnist-linf-0.3", "mnist-l2-1.5"}
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) < MOST


def test_every_entry_holds_at_level_evidence(shipped: Leaderboard, root: Path | None) -> None:
    before = shipped.ledger().raw
    found = shipped.verify(level="evidence", record=False, data_root=root)
    assert [one.problems for one in found if not one.ok] == []
    assert len(found) > 2
    for one in found[1:]:
        assert one.measured["passes"] <= 3
    assert shipped.ledger().raw == before
    for path in shipped.path.rglob("*.json*"):
        assert not re.search(rb'":"/(home|root|tmp|work|Users|var|mnt|opt|data)/', path.read_bytes()), (
            f"{path} tells a path of somebody's disk"
        )


@pytest.mark.parametrize(
    "name", ["summary.json", "samples.npz", "witnesses.safetensors", "model.safetensors", "ledger.jsonl", "board.json"]
)
def test_a_tampered_copy_is_caught(shipped: Leaderboard, tmp_path: Path, name: str) -> None:
    copy = Leaderboard(shutil.copytree(shipped.path, tmp_path / shipped.path.name))
    entry = next(one for one in copy.entries() if one.has("witnesses.safetensors"))
    path = copy.path / name if name in ("ledger.jsonl", "board.json") else entry.folder / name
    raw = path.read_bytes()
    at = raw.index(b'"clean_accuracy"') if name == "summary.json" else 2 * len(raw) // 3
    path.write_bytes(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
    assert main(["leaderboard", "verify", "--level", "files", "--board", str(copy.path)]) in (1, 2)
