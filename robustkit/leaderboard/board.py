"""A board is a folder: definition, ledger, entries, challenges. Every change is one atomic step.

    board.json                      the definition, never changed
    ledger.jsonl                    what happened, hash-chained
    entries/ID/                     a submission: manifest.json and the files it names
    challenges/ID/CHALLENGE/        stronger witnesses for an entry

A step is prepared in a temporary folder, announced in ledger.next, moved to its place and then made
part of the ledger. Whatever kills the process, the next command undoes or completes it.
"""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from robustkit.core.plain_text import folded, harmless
from robustkit.errors import BadInput, unknown
from robustkit.leaderboard.definition import FILE, Definition, define, parse_title, read_definition
from robustkit.leaderboard.files import is_hex
from robustkit.leaderboard.ledger import FILE as LEDGER
from robustkit.leaderboard.ledger import NEXT, Ledger, read_ledger
from robustkit.leaderboard.manifest import ID, Entry
from robustkit.store import write_atomic

if TYPE_CHECKING:
    from robustkit.leaderboard.challenge import Judged
    from robustkit.leaderboard.challenges import Challenge
    from robustkit.leaderboard.rerun import Rerun
    from robustkit.leaderboard.standings import Standing
    from robustkit.leaderboard.verify import Verdict

PATIENCE = 600
"""Seconds to wait for another process that is changing the board."""


@dataclass(frozen=True)
class Submitted:
    """An entry as the ledger knows it."""

    id: str
    digest: str
    name: str
    time: str


class Leaderboard:
    """A board on disk.

        board = Leaderboard.create("boards/mine", data="digits", threat="linf:0.1")
        entry = board.submit("runs/my-run", name="My model")
        board.verify(entry.id, level="rerun")
        board.standings()

    Args:
        path: the board's folder.
        data: the board's samples, where they neither come with robustkit nor lie in that folder: DATA as the user names it.

    Raises Missing where there is no board, BadInput where its definition is damaged.
    """

    def __init__(self, path: str | Path, *, data: str | None = None) -> None:
        self.path = Path(path)
        self.definition: Definition = replace(read_definition(self.path), given=data)

    def __repr__(self) -> str:
        return f"Leaderboard({self.definition.title}: {self.definition.data['spec']}, {self.definition.threat}, {self.path})"

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        data: str,
        threat: str,
        suite: str = "standard",
        seed: int = 0,
        goal: str = "untargeted",
        labels: str = "given",
        data_root: str | Path | None = None,
    ) -> Leaderboard:
        """Write a new board `path@N`, N the next free version unless the path ends in @N.

        Raises BadInput where that version exists, or the newest one already asks the same.
        """
        path = Path(path)
        name, version = parse_title(path.name)
        beside = path.parent.glob(f"{glob.escape(name)}@*") if path.parent.is_dir() else ()
        held = {v: p for p in beside if (p / FILE).exists() and (v := parse_title(p.name)[1]) is not None}
        options: dict[str, Any] = {"suite": suite, "seed": seed, "goal": goal, "labels": labels, "root": data_root}
        made = define(name, version or max(held, default=0) + 1, data, threat, **options)
        folder = path.parent / made.title
        if folder.exists() and any(folder.iterdir()):
            raise BadInput(f"{folder} exists: a definition never changes; leave @{made.version} out to make the next version")
        same = [p for p in held.values() if made.same_question(read_definition(p))]
        if same:
            raise BadInput(f"{same[0]} asks the very same: submit to it, or change something for a new version")
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        write_atomic(temporary / FILE, made.raw)
        write_atomic(temporary / LEDGER, Ledger().extended("init", {"board": made.title, "definition": made.digest}).raw)
        os.replace(temporary, folder)
        return cls(folder)

    # what there is

    def ledger(self) -> Ledger:
        """All events, the chain checked; raises BadInput."""
        found = read_ledger(self.path)
        if found.lines[0].about.get("definition") != self.definition.digest:
            raise BadInput(f"{self.path / FILE} was changed: the ledger was begun with another definition")
        return found

    def submitted(self, ledger: Ledger | None = None) -> dict[str, Submitted]:
        """Id -> what the ledger says of each entry; raises BadInput where it cannot be."""
        found: dict[str, Submitted] = {}
        for number, line in enumerate((ledger or self.ledger()).lines):
            if line.event == "submit":
                digest, name = line.about.get("manifest"), line.about.get("name")
                if not isinstance(digest, str) or not is_hex(digest, 64) or not isinstance(name, str):
                    raise BadInput(f"{self.path / LEDGER} line {number + 1}: a submission without a manifest or a name")
                if digest[:ID] in found:
                    raise BadInput(f"{self.path / LEDGER} line {number + 1}: entry {digest[:ID]} is there twice")
                found[digest[:ID]] = Submitted(digest[:ID], digest, name, line.time)
        return found

    def entries(self) -> list[Entry]:
        """All entries, in the order they were submitted."""
        return [Entry(self.path / "entries" / one.id, self.definition, one.digest, one.name) for one in self.submitted().values()]

    def entry(self, text: str) -> Entry:
        """The entry with that name, or whose id begins with that text (four signs or more); raises BadInput."""
        known = self.submitted()
        hits = [one for one in known.values() if folded(one.name) == folded(text)]
        hits = hits or [one for one in known.values() if len(text) >= 4 and one.id.startswith(text)]
        if len(hits) > 1:
            raise BadInput(f"{text!r} fits {len(hits)} entries: write more of the id: {', '.join(one.id[:12] for one in hits[:5])}")
        if not hits:
            raise unknown("entry", text, [harmless(one.name) for one in known.values()])
        return Entry(self.path / "entries" / hits[0].id, self.definition, hits[0].digest, hits[0].name)

    # what changes it

    @contextmanager
    def changing(self) -> Iterator[None]:
        """One process at a time; an interrupted step of another is undone or completed first."""
        try:
            with filelock.FileLock(self.path / ".lock", timeout=PATIENCE):
                self.recover()
                yield
        except filelock.Timeout as problem:
            raise BadInput(f"another process has been changing {self.path} for {PATIENCE} s: try again later") from problem
        except OSError as problem:
            raise BadInput(f"{self.path} cannot be changed ({problem.strerror or problem})") from problem

    def recover(self) -> None:
        """Undo or complete what a killed process left; only for the holder of the lock."""
        for left in [*self.path.glob(".step-*"), *self.path.glob(".*.tmp")]:
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        announced = self.path / NEXT
        if not announced.exists():
            return
        try:
            now, then = read_ledger(self.path), read_ledger(self.path, NEXT)
            line = then.lines[-1]
            whole = then.lines[:-1] == now.lines and (self._place(line.event, line.about) or self.path).is_dir()
        except BadInput:
            whole = False
        if whole:
            os.replace(announced, self.path / LEDGER)
        else:
            announced.unlink()

    def _place(self, event: str, about: Mapping[str, Any]) -> Path | None:
        """The folder that an event brings."""
        if event == "submit":
            return self.path / "entries" / str(about["manifest"])[:ID]
        return self.path / "challenges" / str(about["entry"]) / str(about["challenge"]) if event == "challenge" else None

    def step(self, event: str, about: dict[str, Any], files: Mapping[str, bytes] | None = None) -> None:
        """Add one line to the ledger, and the folder it speaks of; for the holder of the lock."""
        place, then = self._place(event, about), self.ledger().extended(event, about)
        if place is not None:
            if place.exists() or place.is_symlink():
                raise BadInput(f"{place} exists and is not in the ledger: look what it is and remove it")
            temporary = self.path / f".step-{os.getpid()}-{secrets.token_hex(4)}"
            for name, raw in (files or {}).items():
                write_atomic(temporary / name, raw)
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path / NEXT, then.raw)
            os.replace(temporary, place)
            _sync(place.parent)
        else:
            write_atomic(self.path / NEXT, then.raw)
        os.replace(self.path / NEXT, self.path / LEDGER)
        _sync(self.path)

    def submit(self, run: str | Path, *, name: str, **about: Any) -> Entry:
        """Check a finished run folder and add it; see `robustkit.leaderboard.submit.submit`. Raises BadInput with the reason."""
        from robustkit.leaderboard.submit import submit

        return submit(self, Path(run), name=name, **about)

    def verify(self, entry: str | None = None, *, level: str = "evidence", **options: Any) -> list[Verdict]:
        """Check one entry or all of them; see `robustkit.leaderboard.verify.verify`."""
        from robustkit.leaderboard.verify import verify

        return verify(self, entry, level=level, **options)

    def rerun(self, entry: str, **options: Any) -> Rerun:
        """The board's suite again on a random subset; see `robustkit.leaderboard.rerun.rerun`."""
        from robustkit.leaderboard.rerun import rerun

        return rerun(self, self.entry(entry), **options)

    def challenge(self, entry: str, witnesses: str | Path, *, by: str, **options: Any) -> Judged:
        """Add stronger adversarial examples for an entry; see `robustkit.leaderboard.challenge.challenge`."""
        from robustkit.leaderboard.challenge import challenge

        return challenge(self, self.entry(entry), Path(witnesses), by=by, **options)

    def challenge_all(self, attack: str, *, by: str, **options: Any) -> list[Judged]:
        """Run an attack on what is still unbroken of every entry; see `robustkit.leaderboard.challenge.challenge_all`."""
        from robustkit.leaderboard.challenge import challenge_all

        return challenge_all(self, attack, by=by, **options)

    def challenges(self, ledger: Ledger | None = None) -> dict[str, list[Challenge]]:
        """Entry id -> challenges, in order."""
        from robustkit.leaderboard.challenges import challenges_of

        return challenges_of(self, ledger or self.ledger())

    def standings(self) -> list[Standing]:
        """The table: ranked entries first."""
        from robustkit.leaderboard.standings import standings

        return standings(self)

    def site(self, out: str | Path, **options: Any) -> Path:
        """Write the static site; returns its index.html."""
        from robustkit.leaderboard.site import write_site

        return write_site(self, Path(out), **options)


def _sync(folder: Path) -> None:
    """Make renames in a folder last, where the system can."""
    try:
        opened = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    with contextlib.suppress(OSError):
        os.fsync(opened)
    os.close(opened)
