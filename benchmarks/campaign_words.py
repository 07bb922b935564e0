"""Malformed names of threats, attacks and certifiers, and malformed budgets, read in one process.

    python benchmarks/campaign_words.py [--tries 5000] [--seed 0] [--json]

Words of the grammar are cut, doubled, mixed and spoilt at random. Each has to be understood, or refused in one line. Exit code 1
for a traceback, several lines, or more than 20 s.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import options

from robustkit import registry, spec
from robustkit.errors import RobustkitError
from robustkit.threats import load_threat

GRAINS = [
    *"():,=[]/.- \t",
    "1e999",
    "-1",
    "8/255",
    "1/0",
    "nan",
    "inf",
    "0",
    "1" * 400,
    "steps=",
    "eps",
    "ﬀ",
    "\u202e",
    "\0",
    "(" * 60,
    "{}",
]
SEEDS = {
    "attack": [
        "pgd:steps=5",
        "apgd:loss=dlr,restarts=2",
        "square:queries=10",
        "foolbox:ddn,steps=3",
        "boundary:sampler=(low-frequency:1/8)",
    ],
    "certifier": ["ibp", "crown:slope=same", "alpha-crown:steps=3", "sound:(crown)", "smoothing:sigma=0.25,n=100"],
    "threat": ["linf:8/255", "l2:0.5", "l1:3", "l0:5", "rotation:angle=30,shift=3", "flow:eps=2"],
    "number": ["8/255", "0.1", "1e-3", "3"],
}


def spoilt(word: str, draw: random.Random) -> str:
    """A word with a few mistakes in it."""
    for _ in range(draw.randint(1, 4)):
        at = draw.randint(0, len(word))
        kind = draw.random()
        if kind < 0.3:
            word = word[:at] + draw.choice(GRAINS) + word[at:]
        elif kind < 0.6:
            word = word[:at] + word[at + draw.randint(1, 3) :]
        elif kind < 0.8:
            word = word[:at] + word
        else:
            word = word[:at] + draw.choice(draw.choice(list(SEEDS.values())))[draw.randint(0, 3) :]
    return word


def read(kind: str, word: str) -> None:
    """Make what a word stands for; raises what reading it raises."""
    if kind == "threat":
        load_threat(word)
    elif kind == "number":
        spec.number(word)
    else:
        registry.make(kind, word)


def campaign(tries: int, seed: int) -> dict[str, Any]:
    """Counts of what happened."""
    draw, counts, seen, longest = random.Random(seed), Counter[str](), dict[str, str](), 0.0
    for _ in range(tries):
        kind = draw.choice(list(SEEDS))
        word = spoilt(draw.choice(SEEDS[kind]), draw)
        start = time.monotonic()
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                read(kind, word)
            counts["understood"] += 1
        except RobustkitError as problem:
            counts["refused"] += 1
            if "\n" in str(problem).strip():
                counts["answers of several lines"] += 1
                seen.setdefault(f"several lines: {str(problem)[:200]!r}", f"{kind} {word!r}"[:200])
        except Exception as problem:  # what this campaign looks for
            counts["tracebacks"] += 1
            where = traceback.extract_tb(problem.__traceback__)[-1]
            seen.setdefault(f"{type(problem).__name__} in {Path(where.filename).name}:{where.lineno}", f"{kind} {word!r}"[:300])
        longest = max(longest, time.monotonic() - start)
    bad = counts["tracebacks"] + counts["answers of several lines"]
    return {"tries": tries, **counts, "longest": longest, "bad": bad, "different": seen}


def main(arguments: Sequence[str] | None = None) -> int:
    made = options.parser(__doc__.splitlines()[0] if __doc__ else "")
    made.add_argument("--tries", type=int, default=5000)
    made.add_argument("--seed", type=int, default=0)
    chosen = options.parse(made, arguments)
    found = campaign(chosen.tries, chosen.seed)
    print(json.dumps(found, indent=1) if chosen.json else "\n".join(f"{what} | {value}" for what, value in found.items()))
    return int(found["bad"] > 0 or found["longest"] > 20)


if __name__ == "__main__":
    sys.exit(main())
