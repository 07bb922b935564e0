"""How clean outputs are spread, split by what became of each sample."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from robustkit.report.canvas import HALF, SHORT, Size, axes, svg
from robustkit.report.palette import LIGHT, STATES
from robustkit.report.runs import Run

Values = NDArray[np.float64]


def histogram(run: Run, column: str, label: str, name: str) -> list[Markup]:
    """How a per-sample value is spread, split by what became of the sample."""
    values = np.asarray(run.columns[column], dtype=np.float64)
    finite = np.isfinite(values)
    members = {state: finite & (run.states == place) for place, state in enumerate(STATES)}
    kept = values[finite] if finite.any() else np.zeros(1)
    low, high = (0.0, 1.0) if column == "confidence" else (float(v) for v in np.percentile(kept, [0.5, 99.5]))
    if not high > low:
        low, high = low - 0.5, high + 0.5
    counts: dict[int, tuple[Values, dict[str, Values]]] = {}
    for bins in (40, 24):
        edges = _edges(low, high, bins)
        inside = np.clip(values, edges[0], edges[-1])
        counts[bins] = (edges, {s: np.histogram(inside[mine], edges)[0].astype(np.float64) for s, mine in members.items()})
    medians = ", ".join(f"{s} {np.median(values[mine]):.3g}" for s, mine in members.items() if mine.any())
    alt = f"Histogram of {label}, stacked by state. Medians: {medians}."
    return [
        _histogram(*counts[bins], label, size, f"{name}-{width}", alt) for width, size, bins in (("wide", HALF, 40), ("narrow", SHORT, 24))
    ]


def _edges(low: float, high: float, bins: int) -> Values:
    """Equal bins that cover low..high, with an edge at 0 where 0 lies inside."""
    if not low < 0 < high:
        return np.linspace(low, high, bins + 1)
    step = (high - low) / bins
    return np.arange(math.floor(low / step), math.ceil(high / step) + 1) * np.float64(step)


def _histogram(edges: Values, counts: dict[str, Values], label: str, size: Size, name: str, alt: str) -> Markup:
    drawn = axes(size)
    left, step, base = edges[:-1], edges[1] - edges[0], np.zeros(len(edges) - 1)
    for state in STATES:
        hatched: dict[str, Any] = {"facecolor": "none", "hatch": "//////"} if state == "open" else {"facecolor": LIGHT[state]}
        shown = counts[state] > 0
        drawn.bar(
            left[shown], counts[state][shown], step * 0.86, base[shown], align="edge", edgecolor=LIGHT[state], linewidth=0.8, **hatched
        )
        base += counts[state]
    if edges[0] < 0 < edges[-1]:
        drawn.axvline(0, color=LIGHT["ink"], linewidth=1)
    drawn.set_xlim(edges[0], edges[-1])
    drawn.set_ylim(0, max(1.0, base.max() * 1.05))
    drawn.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    drawn.xaxis.set_major_locator(MaxNLocator(6 if size.width > 400 else 4))
    drawn.set_xlabel(label, labelpad=8)
    drawn.set_ylabel("images", labelpad=6)
    return svg(drawn, name, alt)
