"""Challenges: stronger witnesses for somebody's entry. Each is judged; only those that improve on what is known count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustkit import registry
from robustkit.core.comparisons import float_below
from robustkit.errors import RobustkitError
from robustkit.leaderboard.challenges import WITNESSES, best_known
from robustkit.leaderboard.documents import canonical, sha256, short_text
from robustkit.leaderboard.judging import judge_rows
from robustkit.leaderboard.manifest import FILE, ID, Entry
from robustkit.leaderboard.rerun_record import reruns_of
from robustkit.leaderboard.rounding import rounded
from robustkit.leaderboard.subject import Subject, load_subject
from robustkit.leaderboard.witness_files import read_witnesses
from robustkit.methods import Attack
from robustkit.spec import number
from robustkit.verdict.evidence import Ints

if TYPE_CHECKING:
    from robustkit.leaderboard.board import Leaderboard


@dataclass
class Judged:
    """What became of a challenge."""

    entry: str
    name: str
    tried: int
    accepted: int
    before: float
    """Best known robust accuracy before and after."""
    after: float
    refused: dict[str, int] = field(default_factory=dict)
    """Reason -> how many."""
    note: str = ""


def challenge(
    board: Leaderboard,
    entry: Entry,
    witnesses: Path,
    *,
    by: str,
    device: str = "auto",
    data_root: str | Path | None = None,
    allow_code: bool = False,
) -> Judged:
    """Judge the witnesses in a run folder or a safetensors file, and keep those that improve on what is known.

    Args:
        witnesses: a run folder about the same data and threat family, or a file with `position` or
            `index` (M,) int64 and `parameters` (M,...) or `image` (M,C,H,W) float32.
        by: who found them.

    Raises:
        BadInput: no such witnesses, or of another form. Missing: data or model are not here.
    """
    by = short_text(by, "--by")
    data = board.definition.load_data(data_root, allow_code)
    subject = load_subject(entry, data, device=device, allow_code=allow_code)
    at, p, refused = read_witnesses(board.definition, subject, witnesses)
    return apply(board, entry, subject, at, p, by=by, source=short_text(witnesses.name[:100], "source"), refused=refused)


def challenge_all(
    board: Leaderboard,
    attack: str,
    *,
    by: str,
    seed: int = 0,
    device: str = "auto",
    data_root: str | Path | None = None,
    allow_code: bool = False,
    tick: Callable[[str], None] = lambda name: None,
) -> list[Judged]:
    """Run one attack on the samples of every entry that are not broken; its hits become challenges.

    Spared are only samples whose certificates a verifier has computed again, not those that a submission calls certified.
    """
    from robustkit.pool import pool_of

    by = short_text(by, "--by")
    method = registry.make("attack", attack)
    assert isinstance(method, Attack)
    threat, budget = board.definition.load_threat(), float_below(number(board.definition.eps))
    method.accepts(threat)
    data = board.definition.load_data(data_root, allow_code)
    found, challenges = [], board.challenges()
    for entry in board.entries():
        tick(entry.name)
        try:
            subject = load_subject(entry, data, device=device, allow_code=allow_code)
            upper = best_known(entry, challenges.get(entry.id, []))
        except RobustkitError as problem:
            found.append(Judged(entry.id, entry.name, 0, 0, float("nan"), float("nan"), note=str(problem)))
            continue
        proven = reruns_of(board.ledger(), entry.id, len(upper)).held["deterministic"]
        where = np.flatnonzero((upper > budget) & ~proven)
        y = torch.from_numpy(entry.columns["label"][where])
        before = float(np.mean(upper > budget))
        if not len(where):
            found.append(Judged(entry.id, entry.name, 0, 0, before, before, note="nothing is open"))
            continue
        result = method(
            subject.classifier, subject.images(where), y, threat=threat, seed=seed, index=data.index[torch.from_numpy(where)],
            pool=pool_of(data, data_root),
        )  # fmt: skip
        hit = result.success.cpu().numpy()
        p = result.parameters.cpu()[torch.from_numpy(hit)]
        found.append(apply(board, entry, subject, where[hit], p, by=by, source=str(method.spec)[:200], tried=len(where)))
    return found


def apply(
    board: Leaderboard,
    entry: Entry,
    subject: Subject,
    at: Ints,
    p: Tensor,
    *,
    by: str,
    source: str,
    refused: Counter[str] | None = None,
    tried: int | None = None,
) -> Judged:
    """Judge witnesses (M,...) at positions (M,), store those that lower what is known within the budget."""
    budget = float_below(number(board.definition.eps))
    why_not = Counter(refused or {})
    count = len(at) + why_not.total() if tried is None else tried
    label = torch.from_numpy(entry.columns["label"])
    verified, size, _, why = judge_rows(subject, at, p, torch.full((len(at),), budget, dtype=torch.float64), label, subject.fresh_judge())
    why_not.update(_kind(text) for text in why if text)
    with board.changing():
        upper = best_known(entry, board.challenges().get(entry.id, []))
        before = float(np.mean(upper > budget))
        better = verified & (size < upper[at]) if len(at) else verified
        why_not.update({"no smaller than the witness that is known": int((verified & ~better).sum())})
        order = np.lexsort((size, at))
        order = order[better[order]]
        kept = order[np.unique(at[order], return_index=True)[1]] if len(order) else order
        why_not.update({"another witness of the same sample is smaller": len(order) - len(kept)})
        after = upper.copy()
        after[at[kept]] = size[kept]
        told = Judged(
            entry.id, entry.name, count, len(kept), before, float(np.mean(after > budget)), {k: v for k, v in why_not.items() if v}
        )
        if not len(kept) and subject.classifier.random:  # every try on a random model is on record
            board.step("attempt", {"entry": entry.id, "by": by, "source": source, "tried": count})
        if len(kept):
            _store(board, entry, subject, at[kept], size[kept], p[torch.from_numpy(kept)], by, source, told)
    return told


def _store(
    board: Leaderboard, entry: Entry, subject: Subject, at: Ints, size: NDArray[np.float64], p: Tensor, by: str, source: str, told: Judged
) -> None:
    held = {"position": at, "index": subject.data.index.numpy()[at], "size": size, "parameters": p.numpy()}
    rounding = rounded(entry, subject, at, p)
    held |= {"by_rounding": rounding.astype(np.uint8)} if bool(rounding.any()) else {}
    raw = safetensors.numpy.save({key: np.ascontiguousarray(value) for key, value in held.items()})
    files = [{"path": WITNESSES, "size": len(raw), "sha256": sha256(raw)}]
    manifest = canonical({"schema_version": 1, "entry": entry.id, "by": by, "source": source, "files": files})
    about: dict[str, Any] = {"entry": entry.id, "challenge": sha256(manifest)[:ID], "manifest": sha256(manifest)}
    about |= {"by": by, "source": source}
    about |= {"tried": told.tried, "accepted": told.accepted, "robust": told.after}
    board.step("challenge", about, {WITNESSES: raw, FILE: manifest})


def _kind(why: str) -> str:
    """A reason without its figures, to be counted."""
    return "it is outside the budget" if why.startswith("its size") else why
