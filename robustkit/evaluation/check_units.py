"""The columns of a run against its units, the results that its stages stored one by one. No model is asked."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from robustkit.errors import BadInput
from robustkit.evaluation.check_columns import first
from robustkit.evaluation.judge_witnesses import Arrays, judge_rows, typed
from robustkit.evaluation.run_files import RunFiles
from robustkit.evaluation.subject import Subject
from robustkit.guarantees import CLASSES, guarantee_class
from robustkit.verdict.evidence import Ints


def check_units(run: RunFiles) -> Iterator[str]:
    """No column says more than the stages found: no smaller error, no larger certificate, no other clean answer.

    An upper end above a stored hit means that an adversarial example was left out, a lower end above every
    stored proof that it was invented. Folders whose units were deleted have nothing to compare.
    """
    own, count = run.columns, len(run.columns["index"])
    least, found_by = np.full(count, np.inf), np.full(count, -1)
    proven = {kind: np.full(count, -np.inf) for kind in CLASSES}
    seen = False
    for number, name, unit in run.units():
        if number == 0:
            yield from _clean(own, unit, name)
            continue
        seen, at = True, positions(unit, count, name)
        if "success" in unit:
            hit = typed(unit, "success", "uint8", (len(at),), name) > 0
            size = typed(unit, "size", "float64", (len(at),), name)
            mine, size = at[hit], size[hit]
            smaller = size < least[mine]
            least[mine[smaller]], found_by[mine[smaller]] = size[smaller], number - 1
        else:
            stages = run.summary["stages"]
            guarantee = str(stages[number - 1].get("guarantee", "")) if number <= len(stages) else ""
            held = proven[guarantee_class(guarantee)]
            np.maximum.at(held, at, typed(unit, "radius", "float64", (len(at),), name))
    if not seen:
        return
    left_out = (own["upper"] > least) & (own["upper"] > 0)
    if bool(left_out.any()):
        place = first(left_out)
        yield (
            f"sample {place}: upper is {own['upper'][place]:.9g}, but stage {found_by[place]} stored an adversarial example of size "
            f"{least[place]:.9g} ({int(left_out.sum())} such)"
        )
    for kind, held in proven.items():
        name = "lower" if kind == "deterministic" else f"lower_{kind}"
        invented = (own[name] > held) & (own[name] > 0)
        if bool(invented.any()):
            place = first(invented)
            yield f"sample {place}: {name} is {own[name][place]:.9g}, no stage stored such a proof ({int(invented.sum())} such)"


def judge_units(run: RunFiles, subject: Subject) -> Iterator[str]:
    """Every stored hit judged again: what can be said of a run that was stopped before its answer."""
    data = subject.data
    label = data.y
    if subject.question.labels == "predicted":
        rows = subject.batches(len(data))
        judge = subject.judge
        label = torch.cat([judge.logits(data.images(one)).nan_to_num(-torch.inf).argmax(1).cpu() for one in rows])
    shape = tuple(subject.judge.threat.zero(data.images(slice(0, 1))).shape[1:])
    for number, name, unit in run.units():
        if number == 0 or "success" not in unit:
            continue
        at = positions(unit, len(data), name)
        hit = typed(unit, "success", "uint8", (len(at),), name) > 0
        size = typed(unit, "size", "float64", (len(at),), name)[hit]
        p = torch.from_numpy(typed(unit, "parameters", "float32", (int(hit.sum()), *shape), name))
        verified, _, _, why = judge_rows(subject, at[hit], p, torch.from_numpy(size), label, stored=True)
        for place in np.flatnonzero(~verified)[:3].tolist():
            yield f"units/{name}: hit of sample {int(at[hit][place])}: {why[place]}"


def positions(unit: Arrays, count: int, name: str) -> Ints:
    """(M,) ascending positions of a unit; raises BadInput."""
    at = typed(unit, "position", "int64", (None,), name)
    if len(at) and (at[0] < 0 or at[-1] >= count or bool((np.diff(at) <= 0).any())):
        raise BadInput(f"units/{name}: its positions are not ascending positions of the run's {count} samples")
    return at


def _clean(own: Arrays, unit: Arrays, name: str) -> Iterator[str]:
    begin = name.rpartition("/")[2].partition("-")[0]
    logits = unit.get("logits")
    if logits is None or logits.ndim != 2 or logits.dtype != np.float32 or not begin.isdecimal():
        raise BadInput(f"units/{name} holds no logits")
    rows = slice(int(begin), int(begin) + len(logits))
    if rows.stop > len(own["index"]):
        raise BadInput(f"units/{name} has {len(logits)} rows from {begin} on, the run {len(own['index'])} samples")
    answer = np.nan_to_num(logits, nan=-np.inf, posinf=np.inf, neginf=-np.inf).argmax(1)
    off = answer != own["predicted"][rows]
    if bool(off.any()):
        place = first(off)
        yield f"predicted of row {rows.start + place} is {own['predicted'][rows][place]}, the clean pass stored {answer[place]}"
