"""Run folders made of random numbers, whose summary is computed from their columns."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from robustkit import binomial
from robustkit.core.comparisons import float_below
from robustkit.report import write_report
from robustkit.spec import number


def wilson(share: float, n: int) -> list[float]:
    """A 95 % interval for the synthetic summary."""
    return list(binomial.interval(round(share * n), n))


def synthetic_run(
    folder: Path,
    *,
    n: int = 1000,
    seed: int = 0,
    curve: bool = False,
    strength: float = 1.0,
    eps: tuple[str, ...] = ("0.1", "0.2", "0.3"),
    model: str = "zoo:mnist-pgd",
    status: str = "complete",
    class_names: list[str] | None = None,
    diagnostics: list[dict[str, Any]] | None = None,
    family: str = "linf",
    gallery: int = 6,
    classes: int = 10,
    judge: int = 2,
    checked: bool = True,
    not_established: str = "",
) -> Path:
    """A SYNTHETIC run folder: numbers drawn at random, consistent with each other, not measured on any model."""
    draw = np.random.default_rng(seed)
    margin = draw.normal(4.2 * strength, 2.0, n)
    confidence = 1 / (1 + np.exp(-margin))
    radius = np.maximum(0.0, margin) * 0.075 * np.exp(draw.normal(0, 0.15, n))
    label = draw.integers(0, classes, n)
    correct = margin > 0
    budgets = sorted(number(text) for text in eps)
    lower, upper = np.where(correct, 0.0, -np.inf), np.where(correct, np.inf, 0.0)
    stage_of = np.full(n, -1)
    for budget in map(float_below, budgets):
        lower = np.where(correct & (0.45 * radius >= budget), budget, lower)
        hit = correct & (radius <= budget) & np.isinf(upper)
        upper = np.where(hit, np.maximum(radius, 1e-6), upper)
        stage_of = np.where(hit, np.where(draw.random(n) < 0.8, 1, 2), stage_of)
    if curve:
        upper = np.where(correct, np.maximum(radius, 1e-6), 0.0)
        lower = np.where(correct, 0.45 * radius, -np.inf)
    columns: dict[str, Any] = {
        "index": np.arange(n),
        "label": label,
        "predicted": np.where(correct, label, (label + 1) % classes),
        "confidence": confidence,
        "clean_margin": margin,
        "lower": lower,
        "lower_statistical": np.where(correct, 0.0, -np.inf),
        "lower_conditional": np.where(correct, 0.0, -np.inf),
        "upper": upper,
        "lower_stage": np.where(lower > 0, 0, -1),
        "upper_stage": stage_of,
        "radius_covered": np.full(n, curve),
        "adversarial_class": np.where(np.isfinite(upper) & (upper > 0), (label + 3) % classes, -1),
    }
    folder.mkdir(parents=True)
    np.savez(folder / "samples.npz", **columns)

    def at(value: float) -> dict[str, float]:
        return {"robust_accuracy": float((upper > value).mean()), "certified_accuracy": float((lower >= value).mean())}

    def point(value: float) -> dict[str, float | None]:
        told, share = at(value), float((upper > value).mean())
        return {**told, "robust_accuracy": None if not_established else share, "robust_accuracy_at_most": share}

    main, clean = at(float_below(budgets[-1])), float(correct.mean())
    names = ("ibp", "apgd", "pgd")
    specs = ("ibp:", "apgd:loss=ce,restarts=1,steps=100", "pgd:steps=40,restarts=10,step_size=1/40,loss=margin")
    after = [
        (clean, main["certified_accuracy"]),
        (float(((upper > float_below(budgets[-1])) | (stage_of == 2)).mean()), main["certified_accuracy"]),
        tuple(main.values()),
    ]
    stages: list[dict[str, Any]] = []
    received = int(correct.sum())
    for place, (name, spec, (robust, certified)) in enumerate(zip(names, specs, after)):
        settled = round(n * certified) if place == 0 else round(n * ((after[place - 1][0]) - robust))
        stages.append(
            {
                "name": name,
                "spec": spec.rstrip(":"),
                "kind": "certifier" if place == 0 else "attack",
                "received": received,
                "settled": settled,
                "robust_accuracy": None if not_established else robust,
                "robust_accuracy_at_most": robust,
                "certified_accuracy": certified,
                "seconds": 0.31 * 6**place,
                "forwards": received * 100 * place + received * 2,
                "backwards": received * 100 * place,
                "queries": received * 101 * place,
                "eps": eps[-1],
                "complete": True,
                "note": "",
            }
        )
        received -= settled
    data: dict[str, Any] = {"spec": f"mnist:n={n}", "sha256": "5f" * 32, "n": n, "digest": "6a" * 32, "class_names": class_names or []}
    summary = {
        "schema_version": 2,
        "model": {"spec": model, "sha256": "ab" * 32, "parameters": 166406},
        "data": data,
        "threat": f"{family}:{eps[-1]}",
        "eps": list(eps),
        "goal": "untargeted",
        "labels": "given",
        "seed": seed,
        "clean_accuracy": clean,
        **point(float_below(budgets[-1])),
        "checked": checked,
        "not_established": not_established,
        "certified_statistical": 0.0,
        "certified_conditional": 0.0,
        "open": None if not_established else main["robust_accuracy"] - main["certified_accuracy"],
        "interval95": {
            "clean_accuracy": wilson(clean, n),
            "robust_accuracy": None if not_established else wilson(main["robust_accuracy"], n),
            "certified_accuracy": wilson(main["certified_accuracy"], n),
        },
        "population95": [wilson(main["certified_accuracy"], n)[0], wilson(main["robust_accuracy"], n)[1]],
        "curve": [{"eps": float(budget), **point(float_below(budget))} for budget in (Fraction(0), *budgets)],
        "eight_bit": 0.918,
        "stages": stages,
        "diagnostics": [{"check": "zero gradients", "status": "pass", "message": "all 64 probe gradients are non-zero", "cure": ""}]
        if diagnostics is None
        else diagnostics,
        "environment": {"python": "3.11.7", "torch": "2.13.0", "device": "cpu"},
        "run": f"runs/{folder.name}",
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    record = {
        "schema_version": 1,
        "digest": "0123456789abcdef",
        "status": status,
        "specification": {
            "model": {"spec": model, "sha256": "ab" * 32},
            "data": {"spec": data["spec"], "digest": data["digest"]},
            **{key: summary[key] for key in ("threat", "eps", "goal", "labels", "seed")},
            "stages": [{"method": spec, "version": 1, "mode": "settle", "eps": eps[-1]} for spec in specs],
            "judge": judge,
        },
        "environment": {"robustkit": "0.1.0", "platform": "Linux x86_64", "threads": 2},
        "command": f"robustkit evaluate {model} --data {data['spec']} --threat {summary['threat']} --eps {','.join(eps)}",
    }
    (folder / "run.json").write_text(json.dumps(record))
    hits = np.flatnonzero(np.isfinite(upper) & (upper > 0))[:gallery]
    if len(hits):
        save_file(synthetic_gallery(draw, columns, hits, float(budgets[-1])), folder / "gallery.safetensors")
    return folder


def synthetic_gallery(draw: np.random.Generator, columns: dict[str, Any], hits: Any, eps: float) -> dict[str, Any]:
    """Blobs as images, signs within the budget as perturbations."""
    grid = np.linspace(-1, 1, 28)
    across, down = np.meshgrid(grid, grid)
    centre = draw.uniform(-0.4, 0.4, (len(hits), 2))
    clean = np.stack([np.exp(-20 * (np.hypot(across - a, down - b) - 0.4) ** 2) for a, b in centre])[:, None].astype(np.float32)
    adversarial = np.clip(clean + eps * draw.choice([-1, 0, 1], clean.shape), 0, 1).astype(np.float32)
    columns = {"stage": columns["upper_stage"], **columns}
    return {"clean": clean, "adversarial": adversarial} | {
        key: columns[key][hits].astype(np.int64) for key in ("label", "predicted", "adversarial_class", "index", "stage")
    }


def edit_summary(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        summary = json.loads((folder / "summary.json").read_text())
        change(summary)
        (folder / "summary.json").write_text(json.dumps(summary))

    return edit


def report(tmp_path: Path, *runs: Path) -> str:
    """The page about runs."""
    return write_report(runs, tmp_path / "report.html").read_text(encoding="utf-8")
