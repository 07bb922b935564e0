"""Accepted challenges as they are stored: who, with what, and the witnesses; and what is best known of an entry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from robustkit.core.comparisons import float_below
from robustkit.errors import BadInput
from robustkit.leaderboard.documents import check, parse_canonical, sha256
from robustkit.leaderboard.files import Arrays, is_hex, read_checked, read_file, real_folder, tensors, typed
from robustkit.leaderboard.manifest import FILE, ID, Entry
from robustkit.spec import number

if TYPE_CHECKING:
    from robustkit.leaderboard.board import Leaderboard
    from robustkit.leaderboard.ledger import Ledger

WITNESSES = "witnesses.safetensors"


@dataclass(frozen=True)
class Challenge:
    """An accepted challenge, as stored."""

    folder: Path
    digest: str
    by: str
    source: str
    time: str
    accepted: int
    budget: float
    """The board's, rounded down."""
    most: int

    @property
    def id(self) -> str:
        return self.folder.name

    def witnesses(self) -> Arrays:
        """position, index, size, parameters; digests checked. Raises BadInput or Missing."""
        path = real_folder(self.folder) / FILE
        raw = read_file(path, 1 << 20)
        if sha256(raw) != self.digest or sha256(raw)[:ID] != self.id:
            raise BadInput(f"{path} was changed: its sha256 is not the one in the ledger")
        found = parse_canonical(raw, str(path))
        check(found, "challenge", str(path))
        extra = sorted(p.name for p in self.folder.iterdir() if p.name not in (FILE, WITNESSES))
        if [one["path"] for one in found["files"]] != [WITNESSES] or extra:
            raise BadInput(f"{path}: expected {WITNESSES} and nothing else {extra[:3]!a}")
        one = found["files"][0]
        return tensors(read_checked(self.folder / WITNESSES, one["size"], one["sha256"], self.most), str(self.folder / WITNESSES))


def challenges_of(board: Leaderboard, ledger: Ledger) -> dict[str, list[Challenge]]:
    """Entry id -> its accepted challenges, as the ledger has them; raises BadInput."""
    budget = float_below(number(board.definition.eps))
    most = board.definition.most_witnesses
    found: dict[str, list[Challenge]] = {}
    for number_, line in enumerate(ledger.lines):
        if line.event != "challenge":
            continue
        told = line.about
        texts = [told.get(key) for key in ("entry", "challenge", "manifest", "by", "source")]
        whole = all(isinstance(text, str) for text in texts) and isinstance(told.get("accepted"), int)
        if not whole or not is_hex(told["entry"], ID) or not is_hex(told["manifest"], 64) or told["challenge"] != told["manifest"][:ID]:
            raise BadInput(f"{board.path} ledger line {number_ + 1}: a challenge without its names and digests")
        folder = board.path / "challenges" / told["entry"] / told["challenge"]
        one = Challenge(folder, told["manifest"], told["by"], told["source"], line.time, told["accepted"], budget, most)
        found.setdefault(told["entry"], []).append(one)
    return found


def best_known(entry: Entry, challenges: list[Challenge]) -> NDArray[np.float64]:
    """(N,) size of the smallest known witness, challenges included."""
    return known_sizes(entry, challenges)[0]


def known_sizes(entry: Entry, challenges: list[Challenge]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N,) size of the smallest known witness, and of the smallest that is one in real arithmetic too, challenges included."""
    upper = entry.columns["upper"].copy()
    real = upper.copy()
    for one in challenges:
        held = one.witnesses()
        at = typed(held, "position", "int64", (None,), one.id)
        size = typed(held, "size", "float64", (len(at),), one.id)
        if len(at) and (at.min() < 0 or at.max() >= len(upper)):
            raise BadInput(f"challenge {one.id}: positions beyond the board's samples")
        size = np.where(size > 0, size, np.inf)
        np.minimum.at(upper, at, size)
        if "by_rounding" in held:
            size = np.where(typed(held, "by_rounding", "uint8", (len(at),), one.id) > 0, np.inf, size)
        np.minimum.at(real, at, size)
    return upper, real
