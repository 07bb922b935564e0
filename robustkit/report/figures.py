"""Accuracy against the budget, for one run and for several. Each picture returns one SVG for a wide and one for a narrow screen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from robustkit.report.canvas import NARROW, WIDE, Size, axes, svg
from robustkit.report.palette import LIGHT, MARKERS, RUNS_LIGHT
from robustkit.report.runs import Run, accuracy_at, finite_max
from robustkit.report.wording import caution, model_title, percent, plural

Values = NDArray[np.float64]
_GRID = 600
"""Most vertices of a curve; more would lie on the same pixels."""

_DASHES = (0, (5, 3))


@dataclass(frozen=True)
class Curve:
    """Accuracy against budget, vertices of polylines: robust and certified at the same x."""

    x: Values
    robust: Values
    certified: Values
    points: tuple[Values, Values, Values]
    """Reported budgets (with 0), robust and certified accuracy there."""
    established: bool
    """Whether there is a robust line to draw; else it is at most that."""
    exact: bool
    """The robust line is exact everywhere; otherwise only at the points."""
    clean: float


_LINES = {
    "lower_statistical": ("certified statistically, each image", (0, (6, 2, 1, 2))),
    "lower_simultaneous": ("certified statistically, all at once", (0, (1, 1.2))),
    "lower_conditional": ("certified conditionally", (0, (2, 2))),
}
"""Certified lines beside the bracket: column -> what it is called, its dashes."""


def beside(run: Run) -> list[str]:
    """The columns of certified radii that are drawn beside the bracket."""
    return [column for column in _LINES if column in run.columns and bool((run.columns[column] > 0).any())]


def deterministic(run: Run) -> bool:
    """Whether the deterministic line is drawn: not where nothing is below it but other classes of guarantee."""
    return bool((run.columns["lower"] > 0).any()) or not beside(run)


def reach(run: Run) -> float:
    """Where the x axis ends: where the robust curve is at 0, or the largest budget, witness or proven radius known."""
    budget, upper = run.budget[1], run.columns["upper"]
    if not run.exact_curve:
        return max(budget, *(finite_max(run.columns[column]) for column in ("lower", *beside(run)))) or 1.0
    zero = finite_max(upper)
    if np.isinf(upper).any():
        return max(budget, zero) or 1.0
    return (budget if zero < budget <= 2 * zero else zero) or 1.0


def _snap(run: Run, eps: float) -> float:
    """The reported budget (rounded down) that a number of the summary stands for, else the number itself."""
    near = min((value for _, value in run.budgets), key=lambda value: abs(value - eps))
    return near if math.isclose(near, eps, rel_tol=1e-9) else eps


def trace(run: Run, end: float) -> Curve:
    """The curve of a run from 0 to `end`. What is certified is a proof, so it is exact everywhere."""
    upper, lower = run.columns["upper"], run.columns["lower"]
    clean = float((upper > 0).mean())
    told = {_snap(run, float(entry["eps"])): entry for entry in run.summary["curve"] if entry["robust_accuracy_at_most"] is not None}
    known = sorted(eps for eps in told if eps > 0)
    points = (
        np.array([0.0, *known]),
        np.array([clean, *(float(told[eps]["robust_accuracy_at_most"]) for eps in known)]),
        np.array([clean, *(float(told[eps]["certified_accuracy"]) for eps in known)]),
    )
    jumps = np.unique(np.concatenate([upper, lower, points[0], *(run.columns[column] for column in beside(run))]))
    jumps = jumps[(jumps > 0) & (jumps < end)]
    if len(jumps) > _GRID:
        jumps = np.unique(np.concatenate([np.linspace(0, end, _GRID)[1:-1], points[0][points[0] > 0]]))
    at = np.concatenate([[0.0], jumps, [end]])
    x = np.repeat(at, 2)
    certified = np.stack([accuracy_at(lower, at, closed=True), accuracy_at(lower, at, closed=False)], 1).ravel()
    if run.exact_curve:
        robust = np.stack([accuracy_at(upper, at, closed=True), accuracy_at(upper, at, closed=False)], 1).ravel()
        robust[0] = clean
    else:
        robust = np.maximum(np.interp(x, points[0], points[1]), certified)
    return Curve(x, robust, certified, points, not run.summary["not_established"], run.exact_curve, clean)


def curve(run: Run, name: str) -> list[Markup]:
    """Robust accuracy over the budget, its certified twin under it, the gap between them hatched."""
    end = reach(run)
    found = trace(run, end)
    alt = _curve_alt(run, found)
    return [_curve(run, found, end, size, f"{name}-{width}", alt) for width, size in (("wide", WIDE), ("narrow", NARROW))]


def _curve_alt(run: Run, found: Curve) -> str:
    told = "; ".join(
        f"budget {eps:.4g}: robust {'' if found.established else 'at most '}{percent(r, run.n)}, certified {percent(c, run.n)}"
        for eps, r, c in list(zip(*found.points))[:12]
    )
    careful = caution(run.summary, run.n)
    careful = f" Robust accuracy: {careful}." if careful else ""
    return f"Line chart of accuracy against perturbation budget. Clean accuracy {percent(found.clean, run.n)}. {told}.{careful}"


def _curve(run: Run, found: Curve, end: float, size: Size, name: str, alt: str) -> Markup:
    return svg(_drawn(run, found, end, size), name, alt)


def curve_file(run: Run, kind: Literal["png", "svg"]) -> bytes:
    """The same picture as a file of its own, with a title and a legend inside."""
    end = reach(run)
    found = trace(run, end)
    attacked = any(stage["kind"] == "attack" for stage in run.summary["stages"])
    empirical = "empirical: no attack succeeded" if attacked else "empirical: no attack was run"
    empirical += "" if run.summary["checked"] else ", not checked"
    names: list[tuple[str, float, Any, str, str]] = [("broken", 2.4, "-" if found.exact else _DASHES, "o", empirical)]
    names = names if found.established else [("paper", 0.0, "", "", "empirical: not established")]
    names += [("certified", 2.4, "-", "^", "certified: proven")] if deterministic(run) else []
    names += [("certified", 1.5, _LINES[column][1], "", _LINES[column][0]) for column in beside(run)]
    lines = [Line2D([], [], color=LIGHT[c], linewidth=w, linestyle=d, marker=m, label=t) for c, w, d, m, t in names]
    size = Size(900, 540, top=86, bottom=60 + 22 * -(-len(lines) // 2))
    drawn = _drawn(run, found, end, size)
    figure = drawn.figure.get_figure(root=True)
    assert figure is not None
    figure.patch.set_visible(True)
    figure.set_facecolor(LIGHT["paper"])
    summary, left = run.summary, size.left / size.width
    clean = percent(found.clean, run.n)
    title = f"{shortened(model_title(str(summary['model']['spec'])))} on {summary['data']['spec'].partition(':')[0]}"
    told = f"{plural(run.n, 'image')}, threat {summary['threat']}, clean accuracy {clean}"
    told += "" if found.established else f"; robust accuracy not established ({summary['not_established'].partition(':')[0]})"
    figure.text(left, 1 - 26 / size.height, title, fontsize=15, fontweight="bold", va="center", parse_math=False)
    figure.text(left, 1 - 48 / size.height, told, fontsize=11.5, color=LIGHT["soft"], va="center", parse_math=False)
    place: dict[str, Any] = {"bbox_to_anchor": (left, 8 / size.height), "ncols": 2, "frameon": False, "fontsize": 11.5}
    figure.legend(handles=lines, loc="lower left", borderaxespad=0, borderpad=0, **place)
    metadata = {"Software": "robustkit"} if kind == "png" else {"Date": None, "Creator": "robustkit"}
    out = BytesIO()
    figure.savefig(out, format=kind, dpi=144, metadata=metadata)
    return out.getvalue()


def shortened(text: str, most: int = 56) -> str:
    """At most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _drawn(run: Run, found: Curve, end: float, size: Size) -> Axes:
    drawn = _accuracy_axes(size, end)
    x, robust, certified = found.x, found.robust, found.certified
    drawn.fill_between(x, 0, certified, color=LIGHT["certified"], alpha=0.16, linewidth=0)
    lines = {column: np.minimum(_sides(run.columns[column], x), robust) for column in beside(run)}
    floor = np.maximum(certified, lines["lower_statistical"]) if "lower_statistical" in lines else certified
    drawn.fill_between(x, certified, floor, color=LIGHT["certified"], alpha=0.08, linewidth=0)
    if found.established:
        drawn.fill_between(x, floor, robust, facecolor="none", edgecolor=LIGHT["open"], hatch="////", linewidth=0, alpha=0.75)
    drawn.fill_between(x, robust, found.clean, color=LIGHT["broken"], alpha=0.13, linewidth=0)
    drawn.plot([0, end], [found.clean] * 2, color=LIGHT["error"], linewidth=1.5, linestyle=(0, (1, 2)))
    for column, values in lines.items():
        drawn.plot(x, values, color=LIGHT["certified"], linewidth=1.5, linestyle=_LINES[column][1])
    proven = deterministic(run)
    if proven:
        drawn.plot(x, certified, color=LIGHT["certified"], linewidth=2.4, solid_joinstyle="miter")
    if found.established:
        drawn.plot(x, robust, color=LIGHT["broken"], solid_joinstyle="miter", linewidth=2.4, linestyle="-" if found.exact else _DASHES)
    inside = (found.points[0] <= end) & (np.isin(found.points[0], [value for _, value in run.budgets]) | (found.points[0] == 0))
    marked = [(1, "broken", "o")] if found.established else []
    marked += [(2, "certified", "^")] if proven else []
    for row, colour, mark in marked:
        drawn.plot(
            found.points[0][inside],
            found.points[row][inside],
            linestyle="none",
            marker=mark,
            markersize=7.5,
            color=LIGHT[colour],
            markeredgecolor=LIGHT["paper"],
            markeredgewidth=1.2,
            clip_on=False,
            zorder=5,
        )
    budget = run.budget[1]
    if 0 < budget <= end:
        drawn.axvline(budget, color=LIGHT["soft"], linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        side = "right" if budget > 0.9 * end else "left" if budget < 0.1 * end else "center"
        drawn.annotate(
            f"ε = {run.budget_label}", (budget, 1.02), (0, 4), textcoords="offset points", ha=side, va="bottom", color=LIGHT["soft"]
        )
    zero = np.zeros_like(x)
    between = "open" if found.established else "not established"
    regions = [("certified", zero, certified), (between, floor, robust), ("broken", robust, zero + found.clean)]
    for text, low, high in [*regions, ("certified statistically", certified, floor)]:
        _name_region(drawn, size, text, x, low, high, end)
    return drawn


def _sides(values: Values, x: Values) -> Values:
    """The certified step line at vertices that come in pairs (before and after each jump)."""
    sides = accuracy_at(values, x, closed=True)
    sides[1::2] = accuracy_at(values, x[1::2], closed=False)
    return sides


def _accuracy_axes(size: Size, end: float) -> Axes:
    drawn = axes(size)
    drawn.set_xlim(0, end)
    drawn.set_ylim(0, 1.02)
    drawn.set_yticks([0, 0.25, 0.5, 0.75, 1])
    drawn.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    drawn.xaxis.set_major_locator(MaxNLocator(8 if size.width > 600 else 5, steps=[1, 2, 5, 10]))
    drawn.set_xlabel("perturbation budget ε", labelpad=8)
    return drawn


def _name_region(drawn: Axes, size: Size, text: str, x: Values, low: Values, high: Values, end: float) -> None:
    """Write the region's name where it is tallest, if it fits there."""
    across = size.width - size.left - size.right
    half = (8 * len(text) / 2 + 6) / across * end
    needed = 24 / (size.height - size.top - size.bottom) * 1.02
    places, heights = np.linspace(half, end - half, 60), []
    middles = []
    for centre in places:
        first, last = np.searchsorted(x, centre - half, side="right") - 1, np.searchsorted(x, centre + half, side="left") + 1
        bottom, top = float(low[max(0, first) : last].max()), float(high[max(0, first) : last].min())
        heights.append(top - bottom)
        middles.append((bottom + top) / 2)
    tall = np.flatnonzero(np.array(heights) >= max(needed, 0.85 * max(heights)))
    if len(tall):
        chosen = tall[len(tall) // 2]
        patch = {"facecolor": LIGHT["paper"], "edgecolor": "none", "alpha": 0.85, "boxstyle": "round,pad=0.25"}
        drawn.text(
            places[chosen], middles[chosen], text, color=LIGHT["ink"], ha="center", va="center", fontweight="bold", bbox=patch, zorder=6
        )


def overlay(runs: Sequence[Run], places: Sequence[int], name: str) -> list[Markup]:
    """Several runs of one threat family in one picture; `places` are their positions in the report."""
    end = max(reach(run) for run in runs)
    traces = [trace(run, reach(run)) for run in runs]
    told = "; ".join(
        f"run {place + 1}: clean {percent(t.clean)}, robust {'' if t.established else 'not established, at most '}"
        f"{percent(t.points[1][-1])}, certified {percent(t.points[2][-1])}"
        for place, t in zip(places, traces)
    )
    what = f"Line chart of robust and certified accuracy against perturbation budget for {len(runs)} runs."
    alt = f"{what} At each one's largest budget: {told}."
    return [_overlay(runs, traces, places, end, size, f"{name}-{width}", alt) for width, size in (("wide", WIDE), ("narrow", NARROW))]


def _overlay(runs: Sequence[Run], traces: Sequence[Curve], places: Sequence[int], end: float, size: Size, name: str, alt: str) -> Markup:
    drawn = _accuracy_axes(size, end)
    for run, found, place in zip(runs, traces, places):
        colour, mark = RUNS_LIGHT[place % len(RUNS_LIGHT)], MARKERS[place % len(MARKERS)]
        drawn.plot(found.x, found.certified, color=colour, linewidth=1.3, solid_joinstyle="miter")
        if found.established:
            drawn.fill_between(found.x, found.certified, found.robust, color=colour, alpha=0.1, linewidth=0)
            drawn.plot(found.x, found.robust, color=colour, linewidth=2.6, linestyle="-" if found.exact else _DASHES)
        inside = np.isin(found.points[0], [value for _, value in run.budgets]) & (found.points[0] <= end)
        for row, face in [*([(1, colour)] if found.established else []), (2, LIGHT["paper"])]:
            drawn.plot(
                found.points[0][inside],
                found.points[row][inside],
                linestyle="none",
                marker=mark,
                markersize=8,
                markerfacecolor=face,
                markeredgecolor=colour,
                markeredgewidth=1.6,
                clip_on=False,
                zorder=5,
            )
    return svg(drawn, name, alt)
