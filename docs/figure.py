"""Draws the README's figure: accuracy over the budget, with its certified twin, of one run folder.

robustkit evaluate --curve --out runs/figure
python docs/figure.py runs/figure docs/bracket.svg
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from robustkit.report.canvas import WIDE, house_style
from robustkit.report.figures import curve
from robustkit.report.palette import LIGHT, variables
from robustkit.report.runs import load_run

_FINER = r"(?<=\d\.\d\d)\d+"
"""Digits beyond a hundredth of a pixel."""


def standalone(svg: str) -> str:
    """The report's inline figure as a file of its own: light colours, a paper, a font."""
    for colour, variable in variables().items():
        svg = svg.replace(variable, colour)
    head, rest = svg.split(">", 1)
    about = f'xmlns="http://www.w3.org/2000/svg" width="{WIDE.width}" height="{WIDE.height}" font-family="DejaVu Sans, sans-serif"'
    paper = f'<rect width="100%" height="100%" fill="{LIGHT["paper"]}"/>'
    return f"{head} {about}>{paper}{re.sub(_FINER, '', rest)}\n"


def main() -> None:
    """Read a run folder, write an SVG."""
    parser = argparse.ArgumentParser(description="Draw the curve of a run as an SVG file.")
    parser.add_argument("run", type=Path)
    parser.add_argument("svg", type=Path)
    chosen = parser.parse_args()
    with house_style():
        wide, _ = curve(load_run(chosen.run), "curve")
    chosen.svg.write_text(standalone(wide), encoding="utf-8")


if __name__ == "__main__":
    main()
