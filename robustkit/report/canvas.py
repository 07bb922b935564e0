"""Matplotlib figures as inline SVG that follows the page: its colours, its font, its width."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
import matplotlib.style
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from robustkit.report.palette import LIGHT, variables

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "robustkit",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12.0,
    "axes.edgecolor": LIGHT["soft"],
    "axes.labelcolor": LIGHT["soft"],
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["soft"],
    "ytick.color": LIGHT["soft"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "hatch.linewidth": 1.1,
    "path.simplify_threshold": 0.2,
}


@dataclass(frozen=True)
class Size:
    """Width and height in CSS pixels at which text keeps its size, and the margins around the axes."""

    width: int
    height: int
    left: int = 56
    right: int = 16
    top: int = 26
    bottom: int = 50


WIDE = Size(900, 400)
NARROW = Size(370, 330, left=48, right=10)
HALF = Size(500, 270, top=8)
SHORT = Size(370, 250, left=52, right=14, top=8)


@contextmanager
def house_style() -> Iterator[None]:
    """Our look, whatever the caller's matplotlib settings are; they are restored after."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


def axes(size: Size) -> Axes:
    """Axes of a fresh figure, without pyplot. One unit is one CSS pixel."""
    figure = Figure(figsize=(size.width / 72, size.height / 72), dpi=72)
    FigureCanvasSVG(figure)
    box = (size.left / size.width, size.bottom / size.height)
    inner = ((size.width - size.left - size.right) / size.width, (size.height - size.top - size.bottom) / size.height)
    drawn: Axes = figure.add_axes((*box, *inner))
    figure.patch.set_visible(False)
    drawn.patch.set_visible(False)
    drawn.grid(axis="y", color=LIGHT["line"], linewidth=1)
    drawn.tick_params(length=0, pad=6)
    drawn.tick_params(axis="x", length=4)
    return drawn


def svg(drawn: Axes, name: str, alt: str) -> Markup:
    """The figure as an `<svg>` element: ids prefixed with `name`, colours as CSS variables, `alt` read aloud."""
    figure = drawn.figure.get_figure(root=True)
    assert figure is not None
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, variable in variables().items():
        text = text.replace(colour, variable)
    text = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", text)
    head, rest = text.split(">", 1)
    found = re.search(r'viewBox="[^"]+"', head)
    assert found is not None
    opening = Markup('<svg xmlns:xlink="http://www.w3.org/1999/xlink" role="img" aria-label="{}" {}>').format(alt, Markup(found.group()))
    return opening + Markup(rest)
