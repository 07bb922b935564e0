"""The site's pictures as SVG text: two scatters and the curve of an entry. Small, and drawn in a moment."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from robustkit.core.plain_text import harmless
from robustkit.leaderboard.standings import Standing
from robustkit.report.wording import percent

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 540, 360, 52, 14, 12, 44


def _frame(
    low_x: float, high_x: float, low_y: float, label_x: str, label_y: str, percent_x: bool
) -> tuple[list[str], Callable[[float], float], Callable[[float], float]]:
    """Grid and labels, and the maps from values to places."""
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(value: float) -> float:
        return LEFT + wide * (value - low_x) / ((high_x - low_x) or 1)

    def y(value: float) -> float:
        return TOP + high * (1 - (value - low_y) / ((1 - low_y) or 1))

    parts = []
    for step in range(6):
        at, up = low_x + (high_x - low_x) * step / 5, low_y + (1 - low_y) * step / 5
        text = f"{100 * at:.0f}" if percent_x else f"{at:.3g}"
        parts.append(f'<line class="grid" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x(at):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{text}</text>')
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(up):.1f}" y2="{y(up):.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(up) + 4:.1f}" text-anchor="end">{100 * up:.0f}</text>')
    parts.append(f'<text x="{LEFT + wide / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(label_x)}</text>')
    parts.append(f'<text transform="translate(13 {TOP + high / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(label_y)}</text>')
    return parts, x, y


def scatter(rows: Sequence[Standing], key: str, label: str) -> Markup:
    """One point for each entry: `key` against best known robust accuracy; each leads to its page."""
    seen = [
        (float(getattr(row, key)), float(row.best_known), row)
        for row in rows
        if row.best_known is not None and getattr(row, key) is not None
    ]
    low_x = math.floor(10 * min([value for value, _, _ in seen], default=0)) / 10
    low_y = math.floor(10 * min([value for _, value, _ in seen], default=0)) / 10
    parts, x, y = _frame(min(low_x, 0.9), 1.0, min(low_y, 0.9), f"{label} in %", "best known robust accuracy in %", True)
    near = max(min(low_x, 0.9), min(low_y, 0.9))
    parts.append(f'<line class="axis" stroke-dasharray="3 4" x1="{x(near):.1f}" y1="{y(near):.1f}" x2="{x(1):.1f}" y2="{y(1):.1f}"/>')
    for at, up, row in sorted(seen, key=lambda one: one[2].rank is not None):
        words = escape(f"{harmless(row.name)}: {label} {percent(at)}, best known {percent(up)}")
        kind = "point" if row.rank is not None else "point unranked"
        circle = f'<circle class="{kind}" cx="{x(at):.1f}" cy="{y(up):.1f}" r="7"><title>{words}</title></circle>'
        parts.append(f'<a href="entry/{row.id}.html" tabindex="-1">{circle}</a>')
    return _svg(parts, f"{label} against best known robust accuracy")


def curve(summary: Mapping[str, Any]) -> Markup:
    """Robust and certified accuracy against the budget, as the summary has them."""
    points = sorted(summary["curve"], key=lambda point: point["eps"])
    top = max([point["eps"] for point in points], default=1) or 1
    parts, x, y = _frame(0, top, 0.0, f"budget ({str(summary['threat']).partition(':')[0]})", "accuracy in %", False)
    for key in ("certified", "robust"):
        known = [(point["eps"], point[f"{key}_accuracy"]) for point in points if point[f"{key}_accuracy"] is not None]
        path = [known[0]] if key == "certified" and known else list(known)
        for (before, _), (at, share) in itertools.pairwise(known) if key == "certified" else ():
            path += [(before, share), (at, share)]  # a proof holds at every smaller budget: steps, no slope
        line = " ".join(f"{x(at):.1f},{y(share):.1f}" for at, share in path)
        dashed = " dashed" if key == "robust" and len(points) < 20 else ""
        parts.append(f'<polyline class="{key}{dashed}" points="{line}"/>')
        colour = "broken" if key == "robust" else "certified"
        if len(known) < 20:
            parts += [f'<circle cx="{x(at):.1f}" cy="{y(share):.1f}" r="4" fill="var(--{colour})"/>' for at, share in known]
        if known:
            at, share = known[-1]
            down = 18 if key == "certified" and share > 0.1 else -10
            words = escape(f"{key} {percent(share)}")
            parts.append(f'<text x="{x(at) - 6:.1f}" y="{y(share) + down:.1f}" text-anchor="end">{words}</text>')
    return _svg(parts, "accuracy against the budget")


def _svg(parts: Sequence[str], label: str) -> Markup:
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>')
