"""The columns of a run against each other and against the figures of its summary. No model is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustkit.evaluation.judge_witnesses import Arrays
from robustkit.spec import number
from robustkit.summary import curve, interval
from robustkit.verdict.evidence import Evidence, Ints

_SHARES = ("clean_accuracy", "robust_accuracy", "certified_accuracy")
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
    """The summary, read off the columns once more."""
    evidence = as_evidence(own)
    budgets = sorted(number(text) for text in summary["eps"])
    top, count = budgets[-1], len(evidence)
    found: dict[str, Any] = {"clean_accuracy": evidence.clean_accuracy(), "robust_accuracy": evidence.robust_accuracy(top)}
    found["certified_accuracy"] = evidence.certified_accuracy(top)
    for kind in ("statistical", "conditional"):
        found[f"certified_{kind}"] = evidence.certified_accuracy(top, kind)
    found["open"] = float(len(evidence.open_at(top)) / count)
    for key, value in found.items():
        yield from _share(summary, key, value, f"summary.json: {key}")
    established = summary["robust_accuracy"] is not None
    ends = {key: interval(found[key], count) for key in _SHARES if established or key != "robust_accuracy"}
    yield from _differs("interval95", summary["interval95"], ends)
    low, high = summary["population95"]
    yield from _differs("population95", [low], [interval(found["certified_accuracy"], count)[0]])
    if established or high is not None:
        yield from _differs("population95", [low, high], [low, interval(found["robust_accuracy"], count)[1]])
    yield from _curve(summary["curve"], evidence, budgets)
    if summary["data"]["n"] != count:
        yield f"summary.json: n is {summary['data']['n']}, there are {count} samples"
    for kind, told in (summary.get("certified_radius") or {}).items():
        name = "lower" if kind == "deterministic" else f"lower_{kind}"
        if name not in own or not isinstance(told, Mapping):
            yield f"summary.json: certified_radius names the class {str(kind)[:20]}, which no column has"
            continue
        radii = np.maximum(own[name], 0)
        yield from _differs(f"certified_radius.{kind}", told, {"mean": float(radii.mean()), "median": float(np.median(radii))})
    reason = str(summary.get("not_established") or "")
    if established and reason:
        yield f"summary.json: robust_accuracy is {_shown(summary['robust_accuracy'])} although it is not established: {ascii(reason)[:100]}"
    yield from _stages(summary, evidence)


def _share(told: Mapping[str, Any], key: str, value: float, where: str) -> Iterator[str]:
    """A share that may be null where robust accuracy is not established: then its upper bound has to fit."""
    most = f"{key}_at_most"
    for name in (key, most) if key == "robust_accuracy" else (key,):
        if told.get(name) is None and key in ("robust_accuracy", "open") and told.get("robust_accuracy_at_most") is not None:
            continue  # not established: the bound is compared
        if name == most and name not in told:
            continue
        if not near(told.get(name), value):
            yield f"{where.removesuffix(key)}{name} is {_shown(told.get(name))}, the columns give {_shown(value)}"


def _curve(told: Sequence[Mapping[str, Any]], evidence: Evidence, budgets: Sequence[Any]) -> Iterator[str]:
    wanted = curve(evidence, budgets)
    if [point["eps"] for point in told] != [point["eps"] for point in wanted]:
        yield f"summary.json: curve has {len(told)} points that are not the {len(wanted)} that the columns give"
        return
    exact = {float(budget): budget for budget in budgets}
    for point in told:
        at = exact.get(float(point["eps"]), float(point["eps"]))
        where = f"summary.json: curve at {point['eps']:.6g}: "
        yield from _share(point, "robust_accuracy", evidence.robust_accuracy(at), f"{where}robust_accuracy")
        yield from _share(point, "certified_accuracy", evidence.certified_accuracy(at), f"{where}certified_accuracy")


def _stages(summary: Mapping[str, Any], evidence: Evidence) -> Iterator[str]:
    """Stage by stage robust accuracy only falls, to what the columns leave."""
    left: dict[str, float] = {}
    for place, stage in enumerate(summary["stages"]):
        share = stage["robust_accuracy"] if stage["robust_accuracy"] is not None else stage.get("robust_accuracy_at_most")
        if share is None:
            continue
        if share > left.get(stage["eps"], 1.0) + 1e-9:
            yield f"summary.json: stage {place} ({stage['name']}) leaves {_shown(share)}, more than there was before it"
        left[stage["eps"]] = share
    for eps, share in left.items():
        value = evidence.robust_accuracy(number(eps))
        last = eps == summary["eps"][-1] and all(stage["complete"] for stage in summary["stages"])
        if share + 1e-9 < value or (last and not near(share, value)):
            yield f"summary.json: the last stage at {eps} leaves {_shown(share)}, the columns give {_shown(value)}"


def as_evidence(columns: Arrays) -> Evidence:
    """Columns as the evidence they were written from."""
    own = [columns[key] for key in ("index", "label", "predicted", "confidence", "clean_margin")]
    found = Evidence(own[0], own[1], own[2], own[3], own[4], columns["upper"] > 0)
    found.upper, found.upper_stage = columns["upper"], columns["upper_stage"]
    found.adversarial_class, found.radius_covered = columns["adversarial_class"], columns["radius_covered"]
    found.proofs = {0: ("deterministic", np.where(columns["lower"] > 0, columns["lower"], -np.inf))}
    found.proofs |= {n + 1: (kind, columns[f"lower_{kind}"]) for n, kind in enumerate(("statistical", "conditional"))}
    return found


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


def _differs(key: str, told_: Any, found: Any) -> Iterator[str]:
    if not near(told_, found):
        yield f"summary.json: {key} is {_shown(told_)}, the columns give {_shown(found)}"


def near(told_: Any, found: Any) -> bool:
    """Whether what a summary says is what was found, within what a decimal text may lose."""
    if isinstance(found, Mapping):
        return isinstance(told_, Mapping) and all(key in told_ and near(told_[key], value) for key, value in found.items())
    if isinstance(found, list):
        return isinstance(told_, list) and len(told_) == len(found) and all(near(a, b) for a, b in zip(told_, found))
    if found is None or told_ is None:
        return found is told_
    return isinstance(told_, (int, float)) and bool(abs(told_ - found) <= 1e-9)


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, (int, float)) else str(value)[:120]
