"""The colours of robustkit, the same meaning on paper, screen and terminal.

Chosen so that the four states stay apart for every common kind of colour vision (simulated after
Machado et al. 2009) and reach a contrast of 3:1 on their background; tests/robustkit/test_palette.py
checks both. No meaning rests on colour alone: open is hatched, and everything is labelled.
"""

from __future__ import annotations

STATES = ("certified", "open", "broken", "error")
"""What became of a sample at a budget, in the order of the bar."""

LIGHT = {
    "certified": "#1b6ec2",
    "open": "#c08600",
    "broken": "#b93c18",
    "error": "#2f343b",
    "ink": "#1a1d21",
    "soft": "#565d66",
    "line": "#d9dde2",
    "paper": "#ffffff",
    "panel": "#f5f6f8",
}
DARK = {
    "certified": "#4a8de0",
    "open": "#efb92e",
    "broken": "#d8532b",
    "error": "#b4bcc7",
    "ink": "#eceff3",
    "soft": "#a7b0bb",
    "line": "#353b43",
    "paper": "#14171b",
    "panel": "#1c2026",
}
TERMINAL = {"certified": "#3a8fe0", "open": "#b08c14", "broken": "#c0341c", "error": "#6b7076"}
"""Readable on black and on white, as nobody knows the terminal's background."""

RUNS_LIGHT = ("#0067a8", "#c2510a", "#00795a", "#9c4a86", "#7d6200", "#4b5563")
RUNS_DARK = ("#58aaf2", "#f08a4b", "#31c79a", "#e59ac9", "#e5c84a", "#b4bcc7")
"""One colour for each run where several are overlaid; markers tell them apart as well."""

MARKERS = ("o", "s", "^", "D", "v", "P")
MARKER_SIGNS = ("●", "■", "▲", "◆", "▼", "✚")


def variables() -> dict[str, str]:
    """Figure colour -> CSS variable, so that an inline SVG follows light and dark mode."""
    named = {value: f"var(--{name})" for name, value in LIGHT.items()}
    return named | {value: f"var(--run{number})" for number, value in enumerate(RUNS_LIGHT)}


def css(dark: bool) -> str:
    """The declarations of one mode."""
    colours = DARK if dark else LIGHT
    runs = RUNS_DARK if dark else RUNS_LIGHT
    pairs = list(colours.items()) + [(f"run{number}", value) for number, value in enumerate(runs)]
    return "".join(f"--{name}:{value};" for name, value in pairs)
