"""Level `rerun`: the board's suite again, on a subset that the verifier draws and the submitter could not know."""

from __future__ import annotations

import secrets
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from robustkit import registry, witnesses
from robustkit.binomial import at_least
from robustkit.checks.probe import LEVEL
from robustkit.core.comparisons import close_call, float_below
from robustkit.engine import evaluate
from robustkit.errors import BadInput, OutOfTime
from robustkit.leaderboard.challenge import apply
from robustkit.leaderboard.challenges import best_known
from robustkit.leaderboard.definition import Definition
from robustkit.leaderboard.documents import parse
from robustkit.leaderboard.files import read_file
from robustkit.leaderboard.limits import Limits, in_words
from robustkit.leaderboard.manifest import Entry
from robustkit.leaderboard.ranking import hidden_share
from robustkit.leaderboard.recompute import Recompute, Recomputed
from robustkit.leaderboard.rerun_record import as_text, reruns_of
from robustkit.leaderboard.rounding import rounded
from robustkit.leaderboard.subject import Subject, load_subject
from robustkit.run import Evaluation
from robustkit.spec import number
from robustkit.store import Store
from robustkit.suites import suite as find_suite
from robustkit.verdict.evidence import Bools, Ints

if TYPE_CHECKING:
    from robustkit.leaderboard.board import Leaderboard

SAMPLE = 300
BY = "verifier's re-run"
OF_THE_WHOLE = ("enough samples", "clean accuracy")
"""Honesty checks that say nothing when only some samples are drawn; the second is made on all of them."""


@dataclass
class Rerun:
    """What a re-run found."""

    entry: str
    sample: int
    """Samples drawn."""
    seed: int
    robust: int
    """Of them, those with no known witness within the budget: attacked again."""
    hits: int
    """Of these, those that the re-run broke; the witnesses are now a challenge."""
    bound: float
    """With 95 % confidence at most this share of all unbroken samples would break in the same way."""
    certificates: int
    """Certificates computed again."""
    warnings: int = 0
    """Honesty checks of the re-run that did not pass."""
    problems: list[str] = field(default_factory=list)
    """Disagreements with the submission."""
    left_out: list[str] = field(default_factory=list)
    """Certificates that were not computed again, and why."""
    checks: list[dict[str, str]] = field(default_factory=list)
    """The honesty checks of the re-run that did not pass: check, status, message."""
    counts: bool = True
    """Whether it counts for the rank: its seed was drawn, not given."""

    def document(self) -> dict[str, Any]:
        """As the ledger has it."""
        return {key: value for key, value in vars(self).items() if key not in ("entry", "counts")}


def draw(count: int, sample: int, seed: int, before: Bools) -> Ints:
    """Positions of `sample` of `count` samples, at random; those first that no earlier re-run drew (`before` (N,) bool)."""
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[np.argsort(before[order], kind="stable")][:sample])


def rerun(
    board: Leaderboard,
    entry: Entry,
    *,
    sample: int = SAMPLE,
    seed: int | None = None,
    record: bool = True,
    device: str = "auto",
    data_root: str | Path | None = None,
    allow_code: bool = False,
    time_limit: str | float | None = None,
    most_memory: str | int | None = None,
    progress: bool | None = None,
    judged: bool = False,
) -> Rerun:
    """Attack and certify a random subset of an entry's samples again; a hit becomes a challenge.

    Args:
        sample: how many samples to draw, all where the board has fewer. Those come first that no re-run drew before.
        seed: of the drawing and of the attacks; by default one that nobody could know before. With one
            given by hand the re-run does not count for the rank: whoever chooses it could know what it finds.
        record: write hits and outcome into the ledger.
        time_limit, most_memory: what the entry may cost, for example "2h" and "4g" (the defaults).
        judged: the caller has just checked the entry at level `evidence`, and found nothing.

    Raises:
        BadInput, Missing: the entry cannot be run here, or does not hold at level `evidence`.
        OutOfTime: the limit was reached before the suite had ended.
    """
    if sample < 1:
        raise BadInput(f"sample = {sample}: at least one sample has to be drawn")
    started, limits, given = time.monotonic(), Limits.asked(time_limit, most_memory), seed is not None
    seed = secrets.randbits(31) if seed is None else seed
    data = board.definition.load_data(data_root, allow_code)
    if not judged:
        _sound(board, entry, device=device, data_root=data_root, allow_code=allow_code)
    subject = load_subject(entry, data, device=device, allow_code=allow_code, limits=limits)
    at = draw(len(data), sample, seed, reruns_of(board.ledger(), entry.id, len(data)).drawn)
    upper = best_known(entry, board.challenges().get(entry.id, []))
    again = at[upper[at] > float_below(number(board.definition.eps))]
    with tempfile.TemporaryDirectory() as place:
        # of random targets the seed decides which: the board's are asked, or no hit would be a witness there
        options: dict[str, Any] = {
            "seed": board.definition.seed if board.definition.goal == "targeted:random" else seed,
            "progress": progress,
        }
        options |= {"time_limit": max(1.0, limits.seconds - (time.monotonic() - started)), "data_root": data_root}
        run = _attacked(board.definition, subject, at, Path(place) / "run", **options)
        if run.status == "interrupted":
            raise KeyboardInterrupt
        if run.status != "complete":
            what = f"the re-run of {entry.name} did not end within {in_words(limits.seconds)}"
            raise OutOfTime(f"{what}: give it more with --time-limit, or a smaller --sample")
        rule = int(parse(read_file(run.folder / "run.json", 1 << 24), "run.json")["specification"].get("judge", 1))
        hit = np.flatnonzero((run.evidence.upper <= float_below(number(board.definition.eps))) & np.isin(at, again) & run.evidence.correct)
        p = witnesses.parameters(Store(run.folder), run._stages, run.evidence, hit)
    rest = Limits(limits.seconds - (time.monotonic() - started), limits.memory)
    proofs = Recompute(entry, subject, at, seed, rest).run()
    problems = [*proofs.problems, *_clean(entry, subject, run.evidence.correct, at), *_refuted(entry, subject, at[hit], p)]
    fell = np.concatenate([at[hit], again[np.isin(again, at[~run.evidence.correct])]])
    checks = _checks(entry, run, subject)
    told = Rerun(entry.id, len(at), seed, len(again), len(fell), hidden_share(len(again), len(fell)), proofs.count, len(checks), problems)
    told.left_out, told.checks, told.counts = proofs.left_out, checks, not given
    if record:
        _record(board, entry, subject, told, rule, at, again, fell, at[hit], p, proofs, run.summary())
    return told


def _sound(board: Leaderboard, entry: Entry, **where: Any) -> None:
    """Raises BadInput or Missing unless an entry holds at level `evidence`: a rank needs both levels."""
    from robustkit.leaderboard.verify import verify

    for one in verify(board, entry.id, level="evidence", record=False, **where)[1:]:
        if one.problems:
            raise BadInput(f"{one.name} does not hold at level evidence: {one.problems[0]}")
        if one.missing:
            raise BadInput(f"{one.name} could not be checked at level evidence: {one.missing}")


def _attacked(definition: Definition, subject: Subject, at: Ints, out: Path, **options: Any) -> Evaluation:
    """The board's suite on the samples `at`, none spared by a certificate.

    Where the suite still is the one the board was made with, it is asked for by its name: a model whose
    gradients say nothing is then searched further, as in the submission.
    """
    floor = [str(attack.spec) for attack, _ in definition.attacks(subject.classifier.classes or 0)]
    named = [str(registry.make("attack", one).spec) for one in find_suite(definition.suite, definition.load_threat()).attacks]
    same = set(floor) <= set(named) and len(named) == len(definition.floor)
    asked: dict[str, Any] = {"suite": definition.suite} if same else {"attacks": floor}
    asked |= {"eps": definition.eps, "goal": definition.goal, "labels": definition.labels}
    images = subject.data.subset(torch.from_numpy(at))
    return evaluate(subject.classifier, images, definition.threat, certifiers=["none"], out=out, report=False, **asked, **options)


def _clean(entry: Entry, subject: Subject, correct: Bools, at: Ints) -> list[str]:
    """Clean answers that are others than the submission says, but for those that rounding may have decided."""
    off = correct != (entry.columns["upper"][at] > 0)
    if bool(off.any()):
        logits = subject.judge.logits(subject.images(at[off]).to(subject.classifier.device))
        off[off] = ~close_call(logits).cpu().numpy()
    return [f"sample {int(at[off][0])}: the clean answer differs ({int(off.sum())} such)"] if bool(off.any()) else []


def _refuted(entry: Entry, subject: Subject, at: Ints, p: Tensor) -> list[str]:
    """Broken samples that the submission calls certified; where float64 calls the witness right, real arithmetic is not refuted."""
    certified = entry.columns["lower"][at] >= float_below(number(entry.definition.eps))
    certified &= ~rounded(entry, subject, at, p)
    return [f"sample {place} is called certified, and the re-run broke it" for place in at[certified][:5].tolist()]


def _checks(entry: Entry, run: Evaluation, subject: Subject) -> list[dict[str, str]]:
    """The honesty checks of the re-run that did not pass."""
    summary, right = run.summary(), entry.columns["upper"] > 0
    kept = [one for one in summary["diagnostics"] if one["status"] in ("warn", "error") and one["check"] not in OF_THE_WHOLE]
    found = [{key: str(one[key])[:500] for key in ("check", "status", "message")} for one in kept]
    classes = subject.classifier.classes or 2
    if entry.definition.labels == "given" and float(at_least(int(right.sum()), len(right), 1 / classes)) > LEVEL:
        message = f"clean accuracy {right.mean():.3f} is no better than chance ({1 / classes:.3f})"
        found.append({"check": "clean accuracy", "status": "error", "message": message})
    if summary.get("not_established"):
        found.append({"check": "robust accuracy", "status": "error", "message": f"not established: {summary['not_established']}"[:500]})
    return found


def _record(
    board: Leaderboard,
    entry: Entry,
    subject: Subject,
    told: Rerun,
    rule: int,
    at: Ints,
    again: Ints,
    fell: Ints,
    broken: Ints,
    p: Tensor,
    proofs: Recomputed,
    summary: dict[str, Any],
) -> None:
    """Store the witnesses as a challenge, then what was attacked and what fell; only what a judge accepts has fallen."""
    count = len(entry.columns["index"])

    def bits(where: Ints) -> str:
        mask = np.zeros(count, dtype=bool)
        mask[where] = True
        return as_text(mask)

    if len(broken):
        apply(board, entry, subject, broken, p, by=BY, source=f"suite {board.definition.suite}", tried=told.robust)
        known = best_known(entry, board.challenges().get(entry.id, []))
        refused = broken[known[broken] > float_below(number(board.definition.eps))]
        fell = fell[~np.isin(fell, refused)]
        told.hits, told.bound = len(fell), hidden_share(len(again), len(fell))
    about = {"entry": entry.id, "level": "rerun", "ok": not told.problems, **told.document(), "problems": told.problems[:5]}
    about |= {"judge": rule, "seed_given": not told.counts, "drawn": bits(at), "again": bits(again), "fell": bits(fell)}
    about |= {"held": {kind: as_text(held) for kind, held in proofs.held.items() if bool(held.any())}}
    about |= {"surface": "none" if subject.classifier.surface.plain else "declared", "checked": bool(summary.get("checked", True))}
    with board.changing():
        board.step("verify", about)
