"""Checking a board: `files` compares digests, `evidence` judges every witness again, `rerun` attacks a subset anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustkit.data import Data
from robustkit.errors import BadInput, Missing, RobustkitError, first_line, unknown
from robustkit.leaderboard.challenges import Challenge
from robustkit.leaderboard.definition import FILE as DEFINITION
from robustkit.leaderboard.files import real_folder
from robustkit.leaderboard.ledger import FILE as LEDGER
from robustkit.leaderboard.ledger import NEXT
from robustkit.leaderboard.limits import LIMITS, Limits, draws_of, pace
from robustkit.leaderboard.manifest import FILE, Entry
from robustkit.leaderboard.standings import levels
from robustkit.leaderboard.subject import load_subject

if TYPE_CHECKING:
    from robustkit.leaderboard.board import Leaderboard

LEVELS = ("files", "evidence", "rerun")
MOST = 20
"""Disagreements told of one entry."""


@dataclass
class Verdict:
    """What a check of one entry, or of the board itself, found."""

    entry: str
    """Id, empty for the board itself."""
    name: str
    level: str
    problems: list[str] = field(default_factory=list)
    """Each names exactly what disagrees; empty when all is well."""
    missing: str = ""
    """Why the level could not be reached, where it could not."""
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.problems and not self.missing

    def add(self, problem: str) -> None:
        if len(self.problems) < MOST:
            self.problems.append(problem)


def verify(
    board: Leaderboard,
    entry: str | None = None,
    *,
    level: str = "evidence",
    head: str | None = None,
    record: bool = True,
    device: str = "auto",
    data_root: str | Path | None = None,
    allow_code: bool = False,
    time_limit: str | float | None = None,
    most_memory: str | int | None = None,
    tick: Callable[[str], None] = lambda name: None,
    **options: Any,
) -> list[Verdict]:
    """Check one entry, or the board and all its entries.

    Args:
        level: files, evidence or rerun; each includes those before it.
        head: hash of a ledger line that must still be there.
        record: write a level that an entry has newly reached, and every re-run, into the ledger.
        time_limit, most_memory: what each entry may cost the verifier, for example "2h" and "4g" (the defaults).
        options: of the re-run: sample, seed.

    Returns:
        one Verdict for the board, then one for each entry; `ok` says whether all agreed.
    """
    if level not in LEVELS:
        raise unknown("level", level, LEVELS)
    whole, limits = Verdict("", board.definition.title, level), Limits.asked(time_limit, most_memory)
    try:
        ledger = board.ledger()
        known = board.submitted(ledger)
        whole.measured["head"] = ledger.head
        if head is not None and not any(line.hash.startswith(head) and len(head) >= 8 for line in ledger.lines):
            whole.add(f"the ledger has no line {head}: its end was cut off, or it is another board")
    except RobustkitError as problem:
        whole.add(str(problem))
        return [whole]
    challenges: dict[str, list[Challenge]] = {}
    try:
        challenges = board.challenges(ledger)
    except RobustkitError as problem:
        whole.add(str(problem))
    for stranger in _strangers(board, set(known), {c.id for many in challenges.values() for c in many}):
        whole.add(stranger)
    chosen = [board.entry(entry)] if entry is not None else board.entries()
    data: Data | None = None
    if level != "files":
        try:
            data = board.definition.load_data(data_root, allow_code)
        except Missing:
            raise
        except RobustkitError as problem:
            whole.add(str(problem))
    found = [whole]
    reached = levels(ledger)
    for one in chosen:
        verdict = Verdict(one.id, one.name, level)
        found.append(verdict)
        tick(verdict.name)
        files(one, challenges.get(one.id, []), verdict)
        if level == "files" or data is None or verdict.problems:
            continue
        evidence(one, data, challenges.get(one.id, []), verdict, device=device, allow_code=allow_code, limits=limits)
        if not verdict.ok:
            continue
        if level == "rerun":
            from robustkit.leaderboard.rerun import rerun

            options_: dict[str, Any] = {"record": record, "device": device, "data_root": data_root, "allow_code": allow_code}
            options_ |= {"time_limit": time_limit, "most_memory": most_memory, "judged": True}
            try:
                done = rerun(board, one, **options_, **options)
            except RobustkitError as problem:
                verdict.missing = f"the re-run could not be done: {problem}"
                continue
            verdict.problems += done.problems[:MOST]
            verdict.measured["rerun"] = done.document() | {"counts": done.counts}
        elif record and reached[one.id] == "files":
            with board.changing():
                board.step("verify", {"entry": one.id, "level": "evidence", "ok": True})
    return found


def _strangers(board: Leaderboard, known: set[str], challenges: set[str]) -> list[str]:
    """Files and folders that neither the definition nor the ledger knows."""
    usual = {DEFINITION, LEDGER, "entries", "challenges", ".lock", NEXT, "README.md", ".gitattributes"}
    found = [
        p.name
        for p in sorted(board.path.iterdir())
        if p.name not in usual and not p.name.startswith(".step-") and not p.name.endswith(".tmp")
    ]
    announced = _announced(board)
    for kind, ids in (("entries", known), ("challenges", known)):
        if (board.path / kind).exists():
            try:
                real_folder(board.path / kind)
            except RobustkitError as problem:
                return [str(problem)]
            found += [f"{kind}/{p.name}" for p in sorted((board.path / kind).iterdir()) if p.name not in ids and p.name not in announced]
    for place in sorted((board.path / "challenges").glob("*/*")) if (board.path / "challenges").is_dir() else []:
        if place.parent.name in known and place.name not in challenges | announced:
            found.append(f"challenges/{place.parent.name}/{place.name}")
    return [f"{one!a} is not in the ledger: it was put there by hand, or lines of the ledger were removed" for one in found]


def _announced(board: Leaderboard) -> set[str]:
    """Folder names of a step that was interrupted; the next change of the board completes or undoes it."""
    try:
        from robustkit.leaderboard.ledger import read_ledger

        line = read_ledger(board.path, NEXT).lines[-1]
        return {str(line.about.get("manifest", ""))[:32], str(line.about.get("challenge", ""))}
    except RobustkitError:
        return set()


def files(entry: Entry, challenges: list[Challenge], verdict: Verdict) -> None:
    """Digests of every file of an entry and of its challenges, and the form of what is in them."""
    try:
        manifest = entry.manifest
        if manifest["name"] != entry.name:
            verdict.add(f"the manifest calls the entry {manifest['name']!a}, the ledger {entry.name!a}")
        listed = {one["path"] for one in manifest["files"]} | {FILE}
        extra = sorted(path.name for path in entry.folder.iterdir() if path.name not in listed)
        if extra:
            verdict.add(f"{', '.join(map(ascii, extra))[:200]}: not in the manifest")
    except RobustkitError as problem:
        verdict.add(str(problem))
        return
    for one in manifest["files"]:
        try:
            entry.read(one["path"])
        except RobustkitError as problem:
            verdict.add(str(problem))
    for form in () if verdict.problems else ("summary", "record", "columns"):
        try:
            getattr(entry, form)
        except RobustkitError as problem:
            verdict.add(str(problem))
    for challenge in challenges:
        try:
            challenge.witnesses()
        except RobustkitError as problem:
            verdict.add(str(problem))


def evidence(
    entry: Entry,
    data: Data,
    challenges: list[Challenge],
    verdict: Verdict,
    *,
    device: str = "auto",
    allow_code: bool = False,
    limits: Limits = LIMITS,
) -> None:
    """Judge everything again that a forward pass can judge; what would cost more than the limits is said to be missing."""
    from robustkit.leaderboard.checking import Check

    try:
        subject = load_subject(entry, data, device=device, allow_code=allow_code, limits=limits)
        limits.time(2 * len(data) * draws_of(subject.classifier) * pace(subject.classifier, data.images), "judging its images again")
    except Missing as problem:
        verdict.missing = str(problem)
        return
    except BadInput as problem:
        verdict.add(str(problem))
        return
    before = subject.classifier.forwards
    check = Check(entry, subject)
    try:
        for found in [*check.all(), *(told for one in challenges for told in check.challenge(one))]:
            verdict.add(found)
    except (RobustkitError, RuntimeError) as problem:
        verdict.add(first_line(problem))
    verdict.measured |= {"forwards": subject.classifier.forwards - before, "witnesses": check.judged}
    verdict.measured["passes"] = round(verdict.measured["forwards"] / len(data), 3)
