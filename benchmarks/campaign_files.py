"""Run folders, boards and model files damaged at random, and read again by every command that reads them, in one process.

    python benchmarks/campaign_files.py [--tries 1000] [--seed 0] [--json]

Counts how each reading ended: exit codes, tracebacks, the longest reading, peak memory. Exit code 1 for a traceback, for a
reading of more than 20 s, or where memory grew by more than 2 GiB.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import options

import robustkit as rk
from robustkit.cli import main as robustkit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
from damage import damages  # type: ignore[import-not-found]

LONGEST, MEMORY = 20.0, 2.0
"""Seconds and GiB that a reading may take."""


def subjects(place: Path) -> dict[str, list[list[str]]]:
    """Folders or files to be damaged, each with the commands that read it ("{}" stands for the damaged copy)."""
    run, board = place / "run", place / "board@1"
    asked: dict[str, Any] = {"attacks": ["pgd:steps=5"], "progress": False, "report": False, "checks": "off"}
    rk.evaluate("zoo:digits-ibp", "digits:n=40", "linf:0.1", out=run, **asked)
    rk.evaluate("zoo:digits-ibp", "digits:n=40", "linf:0.1", suite="quick", progress=False, report=False, out=place / "submitted")
    made = rk.Leaderboard.create(place / "board", data="digits:n=40", threat="linf:0.1", suite="quick")
    made.submit(place / "submitted", name="One")
    model = place / "model.safetensors"
    shutil.copy(Path(rk.__file__).parent / "zoo" / "digits-ibp.safetensors", model)
    return {
        str(run): [["show", "{}"], ["report", "{}"], ["compare", "{}", str(run)], ["verify", "{}"], RESUMED],
        str(board): [["leaderboard", "show", "--board", "{}"], ["leaderboard", "verify", "--level", "files", "--board", "{}"]],
        str(model): [["evaluate", "{}", "--data", "digits:n=4", "--attack", "fgsm", "--certifier", "none", "--checks", "off", "--quiet"]],
    }


RESUMED = ["resume", "{}"]
"""Stands for the same evaluation once more."""


def read(command: list[str], copy: Path) -> int:
    """The exit code."""
    words = [word.replace("{}", str(copy)) for word in command]
    if command is RESUMED:
        asked = ["--attack", "pgd:steps=5", "--checks", "off", "--out", str(copy)]
        words = ["evaluate", "zoo:digits-ibp", "--data", "digits:n=40", "--threat", "linf:0.1", *asked]
    elif words[0] == "evaluate":
        words = [*(word for word in words if word != "--quiet"), "--out", str(copy.parent / "out")]
        shutil.rmtree(copy.parent / "out", ignore_errors=True)
    try:
        return robustkit(words)
    except SystemExit as ended:  # argparse
        return int(ended.code or 0)


def campaign(tries: int, seed: int) -> dict[str, Any]:
    """Counts of what happened; `tracebacks` holds the last lines of each different one."""
    draw, counts, seen, longest = random.Random(seed), Counter[str](), dict[str, str](), 0.0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        known = subjects(place)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(tries):
            source = Path(draw.choice(list(known)))
            copy = place / "copies" / source.name
            shutil.rmtree(copy.parent, ignore_errors=True)
            copy.parent.mkdir()
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy)
            files = sorted(path for path in copy.rglob("*") if path.is_file()) if source.is_dir() else [copy]
            path = draw.choice(files)
            how: Callable[[Path, random.Random], None] = draw.choice(damages(path))
            how(path, draw)
            for command in known[str(source)]:
                start, said = time.monotonic(), io.StringIO()
                try:
                    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                        counts[f"exit {read(command, copy)}"] += 1
                except Exception as problem:  # what this campaign looks for
                    counts["tracebacks"] += 1
                    where = traceback.extract_tb(problem.__traceback__)[-1]
                    told = f"{type(problem).__name__} in {Path(where.filename).name}:{where.lineno}: {str(problem)[:100]}"
                    seen.setdefault(told, f"try {number}, {path.name} by {how.__name__}, {command[0]}")
                longest = max(longest, time.monotonic() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    return {"tries": tries, **counts, "tracebacks": counts["tracebacks"], "longest": longest, "grown_gib": grown, "different": seen}


def main(arguments: Sequence[str] | None = None) -> int:
    made = options.parser(__doc__.splitlines()[0] if __doc__ else "")
    made.add_argument("--tries", type=int, default=1000)
    made.add_argument("--seed", type=int, default=0)
    chosen = options.parse(made, arguments)
    found = campaign(chosen.tries, chosen.seed)
    if chosen.json:
        print(json.dumps(found, indent=1))
    else:
        for what, value in found.items():
            print(what, value if not isinstance(value, float) else f"{value:.2f}", sep=" | ")
    return int(found["tracebacks"] > 0 or found["longest"] > LONGEST or found["grown_gib"] > MEMORY)


if __name__ == "__main__":
    sys.exit(main())
