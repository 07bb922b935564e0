"""A run that is killed at random moments, or whose disk is full at random writes, and goes on until it ends.

    python benchmarks/campaign_stops.py [--tries 20] [--seed 0] [--json]

Half of the tries kill the process (SIGKILL); the other half let files grow no longer than a random size, which is what a
full disk looks like to a program. The same command is then repeated without harm. Counts runs whose result differs from that
of a run nobody disturbed, commands that end in a traceback, and runs that do not go on. Exit code 1 for any of these.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import options

ASKED = ["evaluate", "zoo:digits-standard", "--data", "digits:n=150", "--threat", "linf:0.06", "--suite", "quick"]
SIZES = (0, 200, 2_000, 10_000, 40_000)
"""Bytes to which files may grow on the full disk."""


def start(out: Path, before: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    words = [sys.executable, "-m", "robustkit", *ASKED, "--out", str(out)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=before)


def result(out: Path) -> dict[str, Any]:
    """Columns and figures of a finished run, without its times."""
    with np.load(out / "samples.npz") as held:
        columns = {name: held[name].tolist() for name in held.files}
    told = json.loads((out / "summary.json").read_text())
    stages = [{key: value for key, value in stage.items() if key != "seconds"} for stage in told["stages"]]
    kept = {key: value for key, value in told.items() if key not in ("run", "environment", "stages")}
    return {"columns": columns, "stages": stages, "witnesses": (out / "witnesses.safetensors").read_bytes().hex(), **kept}


def full(most: int) -> Callable[[], None]:
    """What makes files end at so many bytes in a process."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def campaign(tries: int, seed: int) -> dict[str, Any]:
    """Counts, and what was said that should not have been."""
    draw, counts, said = random.Random(seed), Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        began = time.monotonic()
        whole = start(place / "whole")
        whole.communicate()
        lasts, wanted = time.monotonic() - began, result(place / "whole")
        for number in range(tries):
            out = place / f"run{number}"
            kills = number % 2 == 0
            for _ in range(draw.randint(1, 3)):
                process = start(out, None if kills else full(draw.choice(SIZES)))
                try:
                    _, told = process.communicate(timeout=draw.uniform(0.1, 1.1) * lasts if kills else 20 * lasts)
                except subprocess.TimeoutExpired:
                    process.kill()
                    _, told = process.communicate()
                    counts["killed"] += 1
                else:
                    counts[f"ended with exit {process.returncode}"] += 1
                if "Traceback" in told:
                    counts["tracebacks"] += 1
                    said.append(told[-500:])
            process = start(out)
            _, told = process.communicate()
            if process.returncode != 0:
                counts["did not go on"] += 1
                said.append(told[-500:])
            elif result(out) != wanted:
                counts["other results"] += 1
                said.append(f"try {number}")
            leftovers = [path.name for path in out.rglob("*") if path.name.endswith(".tmp") or f".{os.getpid()}." in path.name]
            counts["files left over"] += len(leftovers)
    bad = sum(counts[key] for key in ("tracebacks", "did not go on", "other results", "files left over"))
    return {"tries": tries, **counts, "bad": bad, "said": said}


def main(arguments: Sequence[str] | None = None) -> int:
    made = options.parser(__doc__.splitlines()[0] if __doc__ else "")
    made.add_argument("--tries", type=int, default=20)
    made.add_argument("--seed", type=int, default=0)
    chosen = options.parse(made, arguments)
    found = campaign(chosen.tries, chosen.seed)
    print(json.dumps(found, indent=1) if chosen.json else "\n".join(f"{what} | {value}" for what, value in found.items()))
    return int(found["bad"] > 0)


if __name__ == "__main__":
    sys.exit(main())
