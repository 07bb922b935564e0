"""What the template is given: every figure of the page, ready to print."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from robustkit.core.plain_text import harmless
from robustkit.report import figures, wording
from robustkit.report.canvas import house_style
from robustkit.report.gallery import GAIN, pictures
from robustkit.report.histogram import histogram
from robustkit.report.palette import MARKER_SIGNS, RUNS_LIGHT, STATES, css
from robustkit.report.runs import Run, half_width
from robustkit.summary import interval

FEW = 200
"""With fewer samples than this the page says so first."""
_SHOWN_CLASSES = 20
_MOST_CLASSES = 5000
"""Of labels beyond this the page does not tell."""
_MEANING = {
    "certified": "proven to stay correct",
    "open": "neither proven nor broken",
    "broken": "an attack changed the answer",
    "error": "wrong without any attack",
}
_TITLE = {"certified": "certified", "open": "open", "broken": "broken", "error": "clean errors"}


def render(runs: Sequence[Run]) -> str:
    """The whole page."""
    with house_style():
        sections = [_section(run, place) for place, run in enumerate(runs, 1)]
        overlays = _overlays(runs)
    folder = resources.files("robustkit.report")
    loader = jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8"))
    options: dict[str, Any] = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True, "finalize": finalize}
    environment = jinja2.Environment(loader=loader, autoescape=True, **options)
    environment.filters.update(count=wording.count, duration=wording.duration, short=wording.short, milliseconds=wording.milliseconds)
    title = sections[0]["title"] if len(runs) == 1 else f"{len(runs)} runs compared"
    page = environment.get_template("template.html.j2").render(
        title=title,
        sections=sections,
        overlays=overlays,
        differing=_differing(runs),
        light=Markup(css(dark=False)),
        dark=Markup(css(dark=True)),
        titles=_TITLE,
        gain=GAIN,
    )
    return page


def finalize(value: Any) -> Any:
    """What a template prints: texts of strangers without what a reader could not see or would misread; markup as it is."""
    return harmless(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _section(run: Run, place: int) -> dict[str, Any]:
    """Everything the page says about one run."""
    summary, n = run.summary, run.n
    prefix = f"run{place}"
    gallery = pictures(run)
    return {
        "id": prefix,
        "place": place,
        "name": run.name,
        "title": wording.model_title(str(summary["model"]["spec"])),
        "summary": summary,
        "n": n,
        "status": run.status,
        "budget": run.budget[0],
        "allowed": wording.allowed(str(summary["threat"]), run.budget[0]),
        "goal": wording.goal_words(str(summary["goal"])),
        "figures": {key: wording.percent(summary[f"{key}_accuracy"], n) for key in ("clean", "robust", "certified")}
        | {"open": wording.percent(summary["open"], n)},
        "interval": {key: wording.span(summary["interval95"].get(f"{key}_accuracy"), n) for key in ("clean", "robust", "certified")},
        "bar": _bar(run),
        "shares": _placed([(part["state"], part["share"]) for part in _bar(run)]),
        "verdict": wording.verdict(summary, run.budget[0]),
        "guarantee": wording.guarantee(summary),
        "extra": wording.extra_guarantees(summary, n),
        "population": wording.span(summary["population95"], n),
        "caution": wording.caution(summary, n),
        "left": wording.percent(summary["robust_accuracy_at_most"], n),
        "banners": _banners(run),
        "errors": any(entry["status"] == "error" for entry in summary["diagnostics"]) or bool(run.disagreements()),
        "budgets": _budgets(run),
        "curve": figures.curve(run, f"{prefix}-curve"),
        "exact": run.exact_curve,
        "beyond": run.budget[1] > figures.reach(run),
        "margins": histogram(run, "clean_margin", "clean margin", f"{prefix}-margin"),
        "confidences": histogram(run, "confidence", "clean confidence", f"{prefix}-confidence"),
        "unplotted": int((~np.isfinite(run.columns["clean_margin"])).sum()),
        "stages": _stages(run),
        "proofs": wording.proofs(summary),
        "radii": wording.radii(summary),
        "simultaneous": "lower_simultaneous" in figures.beside(run),
        "several": len({stage.get("eps") for stage in summary["stages"]}) > 1,
        "total": {
            key: sum(float(stage[key] or 0) for stage in summary["stages"]) for key in ("seconds", "forwards", "backwards", "queries")
        },
        "classes": _classes(run),
        "shown_classes": _SHOWN_CLASSES,
        "gallery": gallery,
        "gallery_size": len(run.gallery["label"]) if run.gallery else 0,
        "eight_bit": None if summary.get("eight_bit") is None else wording.percent(summary["eight_bit"], n),
        "diagnostics": wording.sorted_diagnostics(summary),
        "facts": _facts(run),
        "specification": json.dumps(run.record.get("specification", {}), indent=2, ensure_ascii=False),
        "environment": {
            str(key): value if isinstance(value, str) else json.dumps(value)
            for key, value in {**summary["environment"], **run.record.get("environment", {})}.items()
        },
        "command": str(run.record.get("command", "")),
        "half": f"{half_width(n):.1f}",
        "colour": f"var(--run{(place - 1) % len(RUNS_LIGHT)})",
        "sign": MARKER_SIGNS[(place - 1) % len(MARKER_SIGNS)],
    }


def _bar(run: Run) -> list[dict[str, Any]]:
    """The four segments at the largest budget, in the summary's own numbers."""
    told = run.summary
    clean, robust, certified = (float(told[key]) for key in ("clean_accuracy", "robust_accuracy_at_most", "certified_accuracy"))
    left = robust - certified if told["open"] is None else float(told["open"])
    shares = {"certified": certified, "open": left, "broken": clean - robust, "error": 1 - clean}
    return [
        {
            "state": s,
            "title": _TITLE[s],
            "share": max(0.0, shares[s]),
            "text": wording.percent(None if s == "open" and told["open"] is None else max(0.0, shares[s]), run.n),
            "count": round(max(0.0, shares[s]) * run.n),
            "meaning": _MEANING[s],
        }
        for s in STATES
    ]


def _placed(shares: Sequence[tuple[str, float]]) -> list[tuple[str, float, float]]:
    """(state, share, where it starts) of each segment of a bar."""
    starts = itertools.accumulate((share for _, share in shares), initial=0.0)
    return [(state, share, start) for (state, share), start in zip(shares, starts)]


def _banners(run: Run) -> list[dict[str, str]]:
    """What a reader must know before the number: kind, title, text."""
    found = []
    if run.status != "complete":
        text = (
            "The bracket below is valid for the stages that have run, but further stages may narrow it. The same command resumes the run."
        )
        found.append({"kind": "error", "title": f"This run is not complete (status: {run.status}).", "text": text})
    if run.summary["not_established"]:
        left = wording.percent(run.summary["robust_accuracy_at_most"], run.n)
        untold = f"The attacks left {left}, which is an upper bound and no robust accuracy. What is proven stands."
        text = f"{run.summary['not_established']}. {untold}"
        found.append({"kind": "error", "title": "Robust accuracy is not established.", "text": text})
    elif not run.summary["checked"]:
        text = "The honesty checks were not made to the end: nobody has looked whether something misled the attacks."
        found.append({"kind": "warn", "title": "The robust accuracy was not checked.", "text": text})
    for entry in wording.sorted_diagnostics(run.summary):
        if entry["status"] in ("error", "warn"):
            found.append({"kind": str(entry["status"]), "title": f"{entry['check']}: {entry['message']}", "text": str(entry["cure"] or "")})
    for text in run.disagreements():
        found.append(
            {
                "kind": "error",
                "title": f"The run folder contradicts itself: {text}.",
                "text": "A file was changed or is from another run: run the same command again.",
            }
        )
    if run.n < FEW and not any(entry["check"] == "enough samples" for entry in run.summary["diagnostics"]):
        text = f"With {run.n} images a 95 % interval reaches up to ±{half_width(run.n):.1f} percentage points; use at least {FEW}."
        found.append({"kind": "warn", "title": f"Only {wording.plural(run.n, 'image')}.", "text": text})
    return sorted(found, key=lambda entry: entry["kind"] != "error")


def _budgets(run: Run) -> list[dict[str, str]]:
    """One row for each reported budget, with its intervals."""
    rows = []
    for text, value in run.budgets:
        entry = next((e for e in run.summary["curve"] if math.isclose(float(e["eps"]), value, rel_tol=1e-9, abs_tol=1e-15)), None)
        told: Mapping[str, Any] | None = run.summary if text == run.budget[0] else entry
        if told is None:
            continue
        shares = {key: told[f"{key}_accuracy"] for key in ("robust", "certified")}
        left = None if None in shares.values() else shares["robust"] - shares["certified"]
        cells = {key: wording.percent(share, run.n) for key, share in {**shares, "open": left}.items()}
        given = run.summary["interval95"] if told is run.summary else {}
        measured = {key: share for key, share in shares.items() if share is not None}
        spans: dict[str, Any] = {key: given.get(f"{key}_accuracy") or interval(share, run.n) for key, share in measured.items()}
        spans["clean"] = run.summary["interval95"].get("clean_accuracy")
        rows.append({"eps": text} | cells | {f"{key}_interval": wording.bounds(spans.get(key), run.n) for key in ("clean", *shares)})
    return rows


def _stages(run: Run) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for stage, label in zip(run.summary["stages"], run.stage_labels):
        shares = {key: wording.percent(stage[f"{key}_accuracy"], run.n) for key in ("robust", "certified")}
        again = bool(rows) and rows[-1]["full"] == stage["spec"]
        extra = {"label": label, "full": stage["spec"], "shown": "" if again or stage["spec"] == label else stage["spec"]}
        rate = float(stage["settled"]) / max(1, int(stage["received"]))
        rows.append({"eps": "", "note": "", **stage, **shares, **extra, "rate": rate})
    return rows


def _classes(run: Run) -> list[dict[str, Any]]:
    """One row for each label, by number; the lowest robust accuracy first where there are many."""
    rows = []
    labels, which = np.unique(run.columns["label"], return_inverse=True)
    counts = np.bincount(which * len(STATES) + run.states, minlength=len(labels) * len(STATES)).reshape(len(labels), len(STATES))
    if len(labels) > _MOST_CLASSES:
        counts, labels = counts[:_MOST_CLASSES], labels[:_MOST_CLASSES]
    for label, in_state in zip(labels, counts):
        n = int(in_state.sum())
        shares = [float(count) / n for count in in_state]
        certified, left, _, error = shares
        undecided = bool(run.summary["not_established"])
        found = {"robust": None if undecided else certified + left, "open": None if undecided else left}
        cells = {"clean": 1 - error, "certified": certified, **found}
        rows.append(
            {
                "name": run.class_name(int(label)),
                "label": int(label),
                "n": n,
                "shares": _placed(list(zip(STATES, shares))),
                **{k: wording.percent(v) for k, v in cells.items()},
                "order": certified + left,
            }
        )
    return rows if len(rows) <= _SHOWN_CLASSES else sorted(rows, key=lambda row: (row["order"], row["label"]))


def _facts(run: Run) -> list[tuple[str, str]]:
    """Name and value of everything needed to do it again."""
    summary = run.summary
    digest = str(run.record.get("digest", ""))
    facts = [
        ("run", str(summary.get("run", run.name))),
        ("run digest", digest),
        ("model", str(summary["model"]["spec"])),
        ("model sha256", str(summary["model"].get("sha256") or "none (not loaded from a file)")),
        ("model parameters", wording.count(summary["model"].get("parameters") or 0)),
        ("data", str(summary["data"]["spec"])),
        ("data sha256", str(summary["data"].get("sha256") or "")),
        ("images", wording.count(run.n)),
        ("threat", str(summary["threat"])),
        ("budgets", ", ".join(text for text, _ in run.budgets)),
        ("goal", str(summary["goal"])),
        ("labels", str(summary["labels"])),
        ("seed", str(summary["seed"])),
    ]
    return [(name, value) for name, value in facts if value]


def _overlays(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One overlaid figure for each threat family that several runs share."""
    names = [run.family for run in runs]
    families = [family for family in dict.fromkeys(names) if names.count(family) > 1]
    found: list[dict[str, Any]] = []
    for family in families:
        places = [place for place, run in enumerate(runs) if run.family == family]
        found.append(
            {
                "family": family,
                "places": [p + 1 for p in places],
                "figure": figures.overlay([runs[p] for p in places], places, f"overlay-{len(found)}"),
            }
        )
    return found


def _differing(runs: Sequence[Run]) -> list[str]:
    """What keeps several runs from being compared number by number."""
    seen = {
        "data": [run.summary["data"]["sha256"] or run.summary["data"]["spec"] for run in runs],
        **{key: [run.summary[key] for run in runs] for key in ("threat", "goal", "labels")},
    }
    return [name for name, values in seen.items() if len(set(map(str, values))) > 1]
