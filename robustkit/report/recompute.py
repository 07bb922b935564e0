"""The figures of a summary, read off the sample columns once more: what is printed is what the columns give.

A run that was judged by an older rule keeps its columns, but what it left unbroken says less than it seemed
to: its robust accuracy becomes `robust_accuracy_at_most`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustkit.checks.established import not_established
from robustkit.core.comparisons import RULE, float_below
from robustkit.errors import BadInput
from robustkit.guarantees import CLASSES
from robustkit.report.columns import LARGEST, as_evidence
from robustkit.report.older import OLD_RULE, upgraded
from robustkit.spec import number
from robustkit.summary import accuracies, intervals
from robustkit.verdict.evidence import Evidence

Columns = Mapping[str, NDArray[Any]]

_ENDS = ("clean_accuracy", "robust_accuracy", "certified_accuracy")


def old_rule(specification: Mapping[str, Any]) -> bool:
    """Whether a run with this specification was judged by an older rule than today's."""
    return int(specification.get("judge", 1)) < RULE


def budgets(summary: Mapping[str, Any], where: str) -> list[tuple[str, Fraction]]:
    """(text, exact value) of every reported budget, smallest first; raises BadInput."""
    found = sorted(((text, number(text)) for text in summary["eps"]), key=lambda one: one[1])
    if not 0 <= found[0][1] <= found[-1][1] <= LARGEST:
        raise BadInput(f"{where}: its budgets reach from {found[0][0][:20]} to {found[-1][0][:20]}: expected 0 to {LARGEST}")
    return found


def recomputed(summary: Mapping[str, Any], columns: Columns, *, old: bool, where: str) -> tuple[dict[str, Any], list[str]]:
    """The summary in the form of version 2 with the columns' figures, and each figure in which the stored one differs."""
    stored = upgraded(summary) if summary["schema_version"] == 1 else dict(summary)
    evidence, asked = as_evidence(columns), [value for _, value in budgets(stored, where)]
    objection = not_established(stored["diagnostics"])
    known = not old and not objection and stored["robust_accuracy"] is not None
    why = "" if known else OLD_RULE if old else objection or stored["not_established"] or "the summary says so"
    figures: dict[str, Any] = accuracies(evidence, asked[-1], why)
    figures |= intervals(figures, len(evidence))
    figures["curve"] = _curve(stored["curve"], evidence, asked, known)
    figures |= _beside(stored, columns, asked[-1])
    differences = list(_differences(stored, figures))
    stages, odd = _stages(stored["stages"], evidence, known)
    differences += odd
    if stored["data"]["n"] != len(evidence):
        differences.append(f"summary.json: n is {stored['data']['n']}, there are {len(evidence)} samples")
    told = {"not_established": why, "data": {**stored["data"], "n": len(evidence)}, "stages": stages}
    return stored | figures | told, differences


def _curve(points: list[dict[str, Any]], evidence: Evidence, asked: list[Fraction], known: bool) -> list[dict[str, Any]]:
    """At the budgets asked for; between them only where a search for radii has been through every correct sample."""
    exact: dict[float, Fraction | float] = {float(eps): eps for eps in (Fraction(0), *asked)}
    if bool(evidence.radius_covered[evidence.correct].all()) and bool(evidence.correct.any()):
        for point in points:
            exact.setdefault(float(point["eps"]), float(point["eps"]))
    found = []
    for at, eps in sorted(exact.items()):
        left = evidence.robust_accuracy(eps)
        point = {"eps": at, "robust_accuracy": left if known else None, "robust_accuracy_at_most": left}
        found.append(point | {"certified_accuracy": evidence.certified_accuracy(eps)})
    return found


def _beside(summary: Mapping[str, Any], columns: Columns, eps: Fraction) -> dict[str, Any]:
    """What stands beside the bracket and can be read off the columns."""
    found: dict[str, Any] = {}
    at_once = summary.get("simultaneous")
    if at_once and "lower_simultaneous" in columns:
        found["simultaneous"] = {**at_once, "certified": float(np.mean(columns["lower_simultaneous"] >= float_below(eps)))}
    if summary.get("certified_radius"):
        names = dict(zip(CLASSES, ("lower", "lower_statistical", "lower_conditional")))
        radii = {kind: np.maximum(columns[names[kind]], 0) for kind in summary["certified_radius"] if kind in names}
        found["certified_radius"] = {kind: {"mean": float(r.mean()), "median": float(np.median(r))} for kind, r in radii.items()}
    return found


def _differences(summary: Mapping[str, Any], figures: Mapping[str, Any]) -> Iterator[str]:
    """What is null on either side is not established there, which is no difference."""
    for key, value in figures.items():
        if key == "curve":
            yield from _points(summary["curve"], value)
        elif key == "interval95":
            for one in _ENDS:
                yield from _differs(f"interval95.{one}", summary[key][one], value[one])
        else:
            yield from _differs(key, summary[key], value)


def _points(told: list[dict[str, Any]], found: list[dict[str, Any]]) -> Iterator[str]:
    by_budget = {float(point["eps"]): point for point in found}
    extra = [point["eps"] for point in told if float(point["eps"]) not in by_budget]
    if extra:
        yield f"summary.json: curve at {extra[0]:.6g}, between the budgets, which the columns do not bear out"
    if not set(by_budget) <= {float(point["eps"]) for point in told}:
        yield "summary.json: curve lacks budgets"
    for point in told:
        mine = by_budget.get(float(point["eps"]))
        for key in ("robust_accuracy", "robust_accuracy_at_most", "certified_accuracy"):
            if mine is not None:
                yield from _differs(f"{key} at {point['eps']:.6g}", point[key], mine[key])


def _stages(rows: list[dict[str, Any]], evidence: Evidence, known: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows with figures that can be; those of a stage's end are kept where they lie between the clean and the final one."""
    found, differences, before = [], [], dict[str, float]()
    for place, row in enumerate(rows):
        left = row["robust_accuracy_at_most"]
        if row["robust_accuracy"] is not None and row["robust_accuracy"] != left:
            differences.append(f"summary.json: two robust accuracies of stage {row['name'][:40]}")
        if left is not None:
            value = number(row["eps"])
            end = evidence.robust_accuracy(value) if 0 <= value <= LARGEST else 0.0
            last = place == len(rows) - 1
            most = before.get(row["eps"], evidence.clean_accuracy())
            if not end - 1e-9 <= left <= most + 1e-9 or (last and abs(left - end) > 1e-9):
                differences.append(f"summary.json: stage {row['name'][:40]} leaves {left:.6g} of {most:.6g}, the columns give {end:.6g}")
                left = end
            before[row["eps"]] = left
        kept = left if known and row["robust_accuracy"] is not None else None
        found.append({**row, "robust_accuracy": kept, "robust_accuracy_at_most": left})
    return found, differences


def _differs(key: str, told: Any, found: Any) -> Iterator[str]:
    if not _near(told, found):
        yield f"summary.json: {key} is {_shown(told)}, the columns give {_shown(found)}"


def _near(told: Any, found: Any) -> bool:
    if isinstance(found, dict):
        return isinstance(told, dict) and all(key in told and _near(told[key], value) for key, value in found.items())
    if isinstance(found, list):
        return told is None or (len(told) == len(found) and all(_near(a, b) for a, b in zip(told, found)))
    return told is None or found is None or bool(math.isclose(told, found, rel_tol=1e-9, abs_tol=1e-9))


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, (int, float)) else str(value)[:120]
