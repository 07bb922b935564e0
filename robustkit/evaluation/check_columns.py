"""The columns of a run against each other and against the figures of its summary. No model is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustkit.checks.established import not_established
from robustkit.evaluation.judge_witnesses import Arrays
from robustkit.report.recompute import recomputed
from robustkit.verdict.evidence import Ints

_NUMBERS = ("lower", "lower_statistical", "lower_conditional", "upper")


def check_intervals(own: Arrays, stages: Sequence[Mapping[str, Any]], classes: int) -> Iterator[str]:
    """lower < upper everywhere, and every end names the stage it comes from."""
    for name in _NUMBERS:
        bad = np.isnan(own[name])
        if bool(bad.any()):
            yield f"sample {first(bad)}: {name} is NaN"
    upper, lower = own["upper"], own["lower"]
    correct, broken = upper > 0, np.isfinite(upper) & (upper > 0)
    kinds = np.array([str(stage["kind"]) for stage in stages] + [""])
    rules = [
        ("upper is negative", upper < 0),
        ("lower reaches upper: a certificate is contradicted", correct & (lower >= upper)),
        ("lower is not -inf although the clean answer is wrong", ~correct & (lower != -np.inf) & ~np.isnan(lower)),
        ("lower is below 0 or infinite although the clean answer is right", correct & ((lower < 0) | (lower == np.inf))),
        ("a broken sample names no attack", broken & (_kind(kinds, own["upper_stage"]) != "attack")),
        ("an unbroken sample names an attack", ~broken & (own["upper_stage"] != -1)),
        ("a certificate names no certifier", correct & (lower > 0) & (_kind(kinds, own["lower_stage"]) != "certifier")),
        ("a sample without a certificate names a certifier", ~(lower > 0) & (own["lower_stage"] != -1)),
        ("the label has no class", (own["label"] < 0) | (own["label"] >= classes)),
    ]
    for kind in ("statistical", "conditional"):
        weak = own[f"lower_{kind}"]
        rules.append((f"lower_{kind} is no radius", (weak != -np.inf) & ((weak < 0) | (weak == np.inf))))
    for what, where in rules:
        if bool(where.any()):
            yield f"sample {first(where)}: {what}"


def check_figures(summary: Mapping[str, Any], own: Arrays) -> Iterator[str]:
    """The summary, read off the columns once more; and it has no robust accuracy where its own checks object."""
    yield from recomputed(summary, own, old=False, where="summary.json")[1]
    reason = not_established(summary["diagnostics"]) or str(summary.get("not_established") or "")
    if summary["robust_accuracy"] is not None and reason:
        yield f"summary.json: robust_accuracy is {summary['robust_accuracy']:.6g} although it is not established: {ascii(reason)[:100]}"


def told(name: str, own: NDArray[Any], wanted: NDArray[Any], who: str, only: NDArray[np.bool_] | None = None) -> Iterator[str]:
    """The first place where a column differs from what it should be, and how many there are."""
    off = own != wanted
    off = off if only is None else off & only
    if bool(off.any()):
        place = first(off)
        yield f"{name} of row {place} is {own[place]}, {who} says {wanted[place]} ({int(off.sum())} such)"


def _kind(kinds: NDArray[Any], stage: Ints) -> NDArray[Any]:
    legal = (stage >= 0) & (stage < len(kinds) - 1)
    return kinds[np.where(legal, stage, len(kinds) - 1)]


def first(where: NDArray[np.bool_]) -> int:
    """The first position that is true."""
    return int(np.flatnonzero(where)[0])
