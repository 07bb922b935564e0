"""One self-contained HTML page from one or several run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robustkit.errors import BadInput
from robustkit.store import write_atomic


def write_report(runs: Sequence[Path], html: Path) -> Path:
    """Write the report of run folders to `html` and return its path.

    One run gives its own page; several give a comparison on top, then a section for each. The file
    needs nothing beside it: no script, no network, pictures inside. It is replaced atomically, and
    the same runs give the same bytes.

    Raises:
        Missing: a run folder or a file of it is not there.
        BadInput: no run given, a file cannot be read, or `html` cannot be written.
    """
    from robustkit.report.page import render
    from robustkit.report.runs import load_run

    if not runs:
        raise BadInput("a report needs at least one run folder: robustkit report RUN [RUN ...] --html report.html")
    return _written(Path(html), render([load_run(Path(run)) for run in runs]).encode())


def write_pictures(run: Path) -> list[Path]:
    """Draw curve.png and curve.svg into a run folder: what is certified and what is left of the attacks, by budget."""
    from robustkit.report.canvas import house_style
    from robustkit.report.figures import curve_file
    from robustkit.report.runs import load_run

    loaded = load_run(Path(run))
    with house_style():
        return [_written(Path(run) / f"curve.{kind}", curve_file(loaded, kind)) for kind in ("png", "svg")]


def _written(path: Path, content: bytes) -> Path:
    try:
        write_atomic(path, content)
    except OSError as problem:
        raise BadInput(f"cannot write {path} ({problem.strerror}): choose a file in a folder you may write to") from problem
    return path


__all__ = ["write_pictures", "write_report"]
