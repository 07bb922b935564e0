"""One self-contained HTML page from one or several run folders."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from robustkit.errors import BadInput


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
    html = Path(html)
    text = render([load_run(Path(run)) for run in runs])
    partial = html.with_name(f".{html.name}.{os.getpid()}.partial")
    try:
        html.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, html)
    except OSError as problem:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise BadInput(f"cannot write {html} ({problem.strerror}): choose a file in a folder you may write to") from problem
    return html


__all__ = ["write_report"]
