"""Level `rerun`: the board's suite again, on a subset that the verifier draws and the submitter could not know."""

from __future__ import annotations

import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from robustkit import binomial, registry, witnesses
from robustkit.core.comparisons import float_below
from robustkit.engine import evaluate
from robustkit.errors import BadInput, RobustkitError
from robustkit.leaderboard.challenge import apply
from robustkit.leaderboard.challenges import best_known
from robustkit.leaderboard.manifest import Entry
from robustkit.leaderboard.subject import Subject, load_subject
from robustkit.methods import Attack, Certifier
from robustkit.spec import number
from robustkit.store import Store
from robustkit.verdict.evidence import Evidence, Ints
from robustkit.verdict.proof import prove

if TYPE_CHECKING:
    from robustkit.leaderboard.board import Leaderboard

SAMPLE = 300
BY = "verifier's re-run"


@dataclass
class Rerun:
    """What a re-run found."""

    entry: str
    sample: int
    """Samples drawn."""
    seed: int
    robust: int
    """Of them, those with no known witness within the budget."""
    hits: int
    """Of these, those that the re-run broke; they are now a challenge."""
    bound: float
    """With 95 % confidence at most this share of all unbroken samples would break in the same way."""
    certificates: int
    """Certificates computed again."""
    warnings: int = 0
    """Honesty checks of the re-run that did not pass."""
    problems: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """As the ledger has it."""
        return {key: value for key, value in vars(self).items() if key not in ("entry",)}


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
    time_limit: str | None = None,
    progress: bool | None = None,
) -> Rerun:
    """Attack and certify a random subset of an entry's samples again; a hit becomes a challenge.

    Args:
        sample: how many samples to draw, all where the board has fewer.
        seed: of the drawing and of the attacks; by default one that nobody could know before.
        record: write hits and outcome into the ledger.

    Raises:
        BadInput, Missing: the entry cannot be run here. OutOfTime: the limit was reached before the suite had ended.
    """
    if sample < 1:
        raise BadInput(f"sample = {sample}: at least one sample has to be drawn")
    seed = secrets.randbits(31) if seed is None else seed
    data = board.definition.load_data(data_root, allow_code)
    subject = load_subject(entry, data, device=device, allow_code=allow_code)
    budget = float_below(number(board.definition.eps))
    at = np.sort(np.random.default_rng(seed).permutation(len(data))[:sample])
    upper = best_known(entry, board.challenges().get(entry.id, []))
    robust = at[upper[at] > budget]
    attacks: list[str | Attack] = [attack for attack, _ in board.definition.attacks(subject.classifier.classes or 0)]
    problems, proven = _certificates(entry, subject, at)
    with tempfile.TemporaryDirectory() as place:
        run = evaluate(
            subject.classifier, data.subset(torch.from_numpy(at)), board.definition.threat, eps=board.definition.eps, attacks=attacks,
            certifiers=_certifiers(entry, subject) or ["none"], goal=board.definition.goal, labels=board.definition.labels, seed=seed,
            out=Path(place) / "run", time_limit=time_limit, data_root=data_root, report=False, progress=progress,
        )  # fmt: skip
        if run.status != "complete":
            raise BadInput(f"the re-run of {entry.name} is {run.status}: give it more time, or a smaller --sample")
        problems += _clean(entry, run.evidence.correct, at)
        problems += _statistical(entry, run.evidence, at, budget)
        problems += [f"a certificate of {name} is contradicted by a witness" for name in run.contradicted]
        hit = np.flatnonzero((run.evidence.upper <= budget) & (upper[at] > budget) & run.evidence.correct)
        p = witnesses.parameters(Store(run.folder), run._stages, run.evidence, hit)
    certified = entry.columns["lower"][at] >= budget
    for place in hit[certified[hit]][:5].tolist():
        problems.append(f"sample {int(at[place])} is called certified, and the re-run broke it")
    bound = binomial.interval(len(hit), len(robust), 0.9)[1] if len(robust) else 0.0
    warnings = sum(one["status"] in ("warn", "error") and one["check"] != "enough samples" for one in run.summary()["diagnostics"])
    told = Rerun(entry.id, len(at), seed, len(robust), len(hit), bound, proven, warnings, problems)
    if record:
        if len(hit):
            apply(board, entry, subject, at[hit], p, by=BY, source=f"suite {board.definition.suite}", tried=len(robust))
        with board.changing():
            board.step("verify", {"entry": entry.id, "level": "rerun", "ok": not problems, **told.document(), "problems": problems[:5]})
    return told


def _clean(entry: Entry, correct: np.ndarray, at: Ints) -> list[str]:
    off = correct != (entry.columns["upper"][at] > 0)
    near = np.abs(entry.columns["clean_margin"][at]) < 1e-4
    off &= ~near
    return [f"sample {int(at[off][0])}: the clean answer differs ({int(off.sum())} such)"] if bool(off.any()) else []


def _statistical(entry: Entry, found: Evidence, at: Ints, budget: float) -> list[str]:
    """Statistical certificates drawn anew: a few at the border may fall, one in ten of them is too many."""
    held = entry.columns["lower_statistical"][at] >= budget
    again = (found.lower_of("statistical")[0] >= budget) | (found.lower >= budget)
    lost, total = int((held & ~again).sum()), int(held.sum())
    if total and binomial.at_least(lost, total, 0.1) < 0.01:
        return [f"{lost} of {total} statistical certificates did not come again"]
    return []


def _certifiers(entry: Entry, subject: Subject) -> list[str | Certifier]:
    """The certifiers that the entry names, those that work on its model."""
    found: list[str | Certifier] = []
    for spec in dict.fromkeys(stage["spec"] for stage in entry.summary["stages"] if stage["kind"] == "certifier"):
        try:
            method = registry.make("certifier", spec)
            assert isinstance(method, Certifier)
            method.fits(subject.classifier, subject.judge.threat, subject.images(np.zeros(1, dtype=np.int64)))
        except RobustkitError:
            continue
        found.append(method)
    return found


def _certificates(entry: Entry, subject: Subject, at: Ints) -> tuple[list[str], int]:
    """Prove every certificate at positions `at` again, at the very radius that is claimed."""
    own, stages = entry.columns, entry.summary["stages"]
    claimed = at[(own["lower"][at] > 0) & (own["upper"][at] > 0)]
    problems: list[str] = []
    for number_ in np.unique(own["lower_stage"][claimed]).tolist():
        mine = claimed[own["lower_stage"][claimed] == number_]
        spec = str(stages[number_]["spec"]) if 0 <= number_ < len(stages) else ""
        try:
            method = registry.make("certifier", spec)
            assert isinstance(method, Certifier)
            bound = method.bind(subject.classifier, subject.judge.threat)
        except RobustkitError as problem:
            problems.append(f"{len(mine)} certificates of {spec[:60]!a} cannot be computed here: {str(problem)[:120]}")
            continue
        for rows in subject.batches(len(mine)):
            some = mine[rows]
            x = subject.images(some).to(subject.classifier.device)
            y, radius = (torch.from_numpy(own[key][some]).to(x.device) for key in ("label", "lower"))
            proven, _ = prove(bound, x, y, radius, scale=subject.judge.logits(x).abs().amax(1))
            for place in torch.nonzero(~proven)[:, 0].tolist():
                problems.append(
                    f"sample {int(some[place])}: {spec.partition(':')[0]} does not prove the claimed radius {own['lower'][some[place]]:.6g}"
                )
    return problems, len(claimed)
