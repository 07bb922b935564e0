"""The answer as one JSON document, read off the evidence. The keys are a documented contract."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch

import robustkit
from robustkit import binomial
from robustkit.core.comparisons import float_below
from robustkit.guarantees import CLASSES, guarantee_class
from robustkit.methods import Certifier
from robustkit.plan import Stage
from robustkit.spec import number_text
from robustkit.stages import Tally
from robustkit.verdict.evidence import Evidence

SCHEMA = 2
CURVE_POINTS = 41


def environment(device: torch.device) -> dict[str, Any]:
    """What a result may depend on beyond its specification."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "robustkit": robustkit.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
    }


def upper_end(share: float, not_established: str) -> dict[str, float | None]:
    """The share that no attack broke: a robust accuracy where that is established, at most that in any case."""
    return {"robust_accuracy": None if not_established else share, "robust_accuracy_at_most": share}


def accuracies(evidence: Evidence, eps: Fraction, not_established: str = "") -> dict[str, float | None]:
    """The bracket at one budget; `not_established` says why it has no upper end but an upper bound."""
    return {
        "clean_accuracy": evidence.clean_accuracy(),
        **upper_end(evidence.robust_accuracy(eps), not_established),
        "certified_accuracy": evidence.certified_accuracy(eps),
        "certified_statistical": evidence.certified_accuracy(eps, "statistical"),
        "certified_conditional": evidence.certified_accuracy(eps, "conditional"),
        "open": None if not_established else float(len(evidence.open_at(eps)) / len(evidence)),
    }


def interval(share: float, count: int) -> list[float]:
    """Exact (Clopper-Pearson) two-sided 95 % interval of an observed share."""
    return list(binomial.interval(round(share * count), count))


def intervals(top: Mapping[str, float | None], count: int) -> dict[str, Any]:
    """`interval95` of the three accuracies, null for one that is null, and `population95` of the bracket: at most is enough there."""
    shares = {name: top[name] for name in ("clean_accuracy", "robust_accuracy", "certified_accuracy")}
    low, high = top["certified_accuracy"], top["robust_accuracy_at_most"]
    assert low is not None and high is not None
    return {
        "interval95": {name: None if share is None else interval(share, count) for name, share in shares.items()},
        "population95": [interval(low, count)[0], interval(high, count)[1]],
    }


def curve(evidence: Evidence, budgets: Sequence[Fraction], not_established: str = "") -> list[dict[str, float | None]]:
    """Both accuracies from 0 to where the robust one ends; between the budgets asked for only
    where a radius stage has covered every correct sample."""
    asked = [Fraction(0), *sorted(budgets)]
    covered = bool(evidence.radius_covered[evidence.correct].all()) and bool(evidence.correct.any())
    points: dict[float, Fraction | float] = {float(eps): eps for eps in asked}
    finite = evidence.upper[np.isfinite(evidence.upper)]
    if covered and len(finite):
        for value in np.linspace(0, max(float(finite.max()), float(asked[-1])), CURVE_POINTS).tolist():
            points.setdefault(value, value)
    return [
        {"eps": at} | upper_end(evidence.robust_accuracy(eps), not_established) | {"certified_accuracy": evidence.certified_accuracy(eps)}
        for at, eps in sorted(points.items())
    ]


def stage_rows(
    stages: Sequence[Stage],
    tallies: dict[int, Tally],
    history: dict[int, tuple[float, float]],
    evidence: Evidence,
    not_established: str = "",
) -> list[dict[str, Any]]:
    """One row per stage that has begun; accuracies are cumulative, at the stage's own budget, `proven` counts
    what a certifier alone has proven there, with margins of at least `margin` in the arithmetic `dtype`."""
    rows = []
    for stage in stages:
        if stage.number not in tallies:
            continue
        tally = tallies[stage.number]
        robust, certified = history.get(stage.number, (None, None))
        rows.append(
            {
                "name": stage.name,
                "spec": str(stage.method.spec),
                "kind": stage.kind,
                "eps": number_text(stage.eps),
                "received": tally.received,
                "settled": tally.settled,
                "robust_accuracy": None if not_established else robust,
                "robust_accuracy_at_most": robust,
                "certified_accuracy": certified,
                "seconds": round(tally.seconds, 3),
                "forwards": tally.forwards,
                "backwards": tally.backwards,
                "queries": tally.queries,
                "complete": tally.complete,
                "note": tally.note,
            }
        )
        if isinstance(stage.method, Certifier):
            _, radii = evidence.proofs.get(stage.number, ("", np.full(len(evidence), -np.inf)))
            held = stage.number not in evidence.suspect
            proven = int((radii >= float_below(stage.eps)).sum()) if held else 0
            margin = tally.margin if np.isfinite(tally.margin) else None
            rows[-1] |= {"guarantee": stage.method.guarantee, "dtype": stage.method.dtype or "float32", "proven": proven, "margin": margin}
    return rows


def certified_radius(evidence: Evidence, stages: Sequence[Stage]) -> dict[str, dict[str, float]]:
    """Mean and median over all samples of the radii that were searched, by guarantee class; 0 where nothing is
    proven (the mean is the ACR of Zhai et al. 2020). Empty where no certifier searched."""
    searched = {guarantee_class(s.method.guarantee) for s in stages if s.mode == "radius" and isinstance(s.method, Certifier)}
    radii = {kind: np.maximum(evidence.lower_of(kind)[0], 0) for kind in CLASSES if kind in searched}
    return {kind: {"mean": float(found.mean()), "median": float(np.median(found))} for kind, found in radii.items()}


def summarise(
    evidence: Evidence,
    budgets: Sequence[Fraction],
    *,
    model: dict[str, Any],
    data: dict[str, Any],
    threat: str,
    goal: str,
    labels: str,
    seed: int,
    stages: list[dict[str, Any]],
    diagnostics: list[dict[str, Any]],
    eight_bit: float | None,
    environment: dict[str, Any],
    run: str,
    checked: bool,
    not_established: str,
    simultaneous: dict[str, Any] | None = None,
    radius: dict[str, dict[str, float]] | None = None,
) -> dict[str, Any]:
    """summary.json. Accuracies without a budget are at the largest one asked for.

    `checked` says whether the honesty checks were made to the end, `not_established` why there is no
    robust accuracy ("" where there is): it is null then, and `robust_accuracy_at_most` has what the attacks left.
    """
    top = accuracies(evidence, max(budgets), not_established)
    return {
        "schema_version": SCHEMA,
        "model": model,
        "data": data,
        "threat": threat,
        "eps": [number_text(eps) for eps in sorted(budgets)],
        "goal": goal,
        "labels": labels,
        "seed": seed,
        **top,
        "checked": checked,
        "not_established": not_established,
        **intervals(top, len(evidence)),
        **({"simultaneous": simultaneous} if simultaneous else {}),
        **({"certified_radius": radius} if radius else {}),
        "curve": curve(evidence, budgets, not_established),
        "eight_bit": eight_bit,
        "stages": stages,
        "diagnostics": diagnostics,
        "environment": environment,
        "run": run,
    }
