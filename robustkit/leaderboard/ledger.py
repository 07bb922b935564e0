"""The ledger: one line per event, each holding the hash of the line before it.

A changed, moved or removed line breaks the chain. What the chain cannot show is that its end was cut
off: compare its head with one that was published (`verify --head HASH`), for example in git history.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustkit.errors import BadInput, Missing
from robustkit.leaderboard.documents import canonical, check, parse_canonical, sha256
from robustkit.leaderboard.files import read_file

FILE, NEXT = "ledger.jsonl", "ledger.next"
MOST = 1 << 28
_START = "0" * 64


@dataclass(frozen=True)
class Line:
    """One event."""

    event: str
    """init, submit, challenge or verify."""
    about: dict[str, Any]
    time: str
    hash: str
    raw: bytes


@dataclass(frozen=True)
class Ledger:
    """All events so far."""

    lines: tuple[Line, ...] = ()

    @property
    def head(self) -> str:
        """Hash of the last line."""
        return self.lines[-1].hash if self.lines else _START

    @property
    def raw(self) -> bytes:
        return b"".join(line.raw for line in self.lines)

    def extended(self, event: str, about: dict[str, Any]) -> Ledger:
        """The ledger with one more line."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
        body = {"n": len(self.lines), "prev": self.head, "time": now, "event": event, "about": about}
        made = sha256(canonical(body))
        return Ledger((*self.lines, Line(event, about, now, made, canonical(body | {"hash": made}))))


def read_ledger(folder: Path, name: str = FILE) -> Ledger:
    """The ledger of a board, every hash checked; raises BadInput that names the first bad line."""
    path = folder / name
    try:
        raw = read_file(path, MOST)
    except Missing as problem:
        raise BadInput(f"{path} is missing: the board has lost its ledger") from problem
    lines: list[Line] = []
    previous = _START
    parts = raw.splitlines(keepends=True)
    if parts and not parts[-1].endswith(b"\n"):
        raise BadInput(f"{path} line {len(parts)}: the line is cut off")
    for number, text in enumerate(parts):
        where = f"{path} line {number + 1}"
        body = parse_canonical(text, where)
        check(body, "ledger", where)
        made = str(body.pop("hash"))
        if body["n"] != number or body["prev"] != previous:
            raise BadInput(f"{where}: the chain is broken (a line was changed, moved or removed)")
        if sha256(canonical(body)) != made:
            raise BadInput(f"{where}: the line was changed, its hash does not fit")
        lines.append(Line(body["event"], body["about"], body["time"], made, text))
        previous = made
    if not lines or lines[0].event != "init":
        raise BadInput(f"{path} does not begin with the board's definition")
    return Ledger(tuple(lines))
