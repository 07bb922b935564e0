"""What the bundled defenses are worth: every one attacked, beside what was published of it, as docs/RESULTS.md.

    python benchmarks/results.py [--rows pgd trades] [--n 1000]

Every figure is read off the summary of a run folder under runs/results, made by `robustkit evaluate`
in a process of its own; runs that are there already are not repeated. What was published is in
published.py. A row has up to three runs: `naive` is PGD-40 on the model as deployed, `standard` the
suite, with the test of its own attacks, `adaptive` the attacks made for the defense.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from published import ROWS, Row
from results_page import Summary, document

from robustkit import registry
from robustkit.errors import Missing, RobustkitError
from robustkit.models.load import ZOO
from robustkit.suites import suite
from robustkit.threats import load_threat

KINDS = ("naive", "standard", "adaptive")


def bundled(row: Row) -> list[str]:
    """The bundled models that a row needs."""
    return re.findall(r"zoo:([\w.-]+)", row.model)


def command(row: Row, kind: str, n: int | None, seed: int) -> list[str] | None:
    """The arguments of `robustkit` for one run of a row; None where the row has no such run."""
    images = n or (100 if row.slow or row.random else row.n)
    words = ["evaluate", row.model, "--data", f"{row.data}:n={images}", "--threat", row.threat, "--seed", str(seed)]
    words += ["--checks", "off"] if row.unchecked else []
    test = [] if row.unchecked else ["--check-attack"]
    if kind == "naive":
        return [*words, "--attack", "pgd:steps=40,eot=1" if row.random else "pgd:steps=40", "--certifier", "none", "--adaptive", "off"]
    if kind == "adaptive":
        return [*words, *_attacks(row.adaptive), "--certifier", "none", *test] if row.adaptive else None
    if row.random:
        return [*words, "--attack", "pgd:steps=20", "--certifier", "smoothing"]
    if row.slow:
        return [*words, *_attacks((*suite("quick", load_threat(row.threat)).attacks, "square:queries=200")), *test]
    return [*words, "--suite", "standard", *test]


def folder(row: Row, words: Sequence[str], root: Path) -> Path:
    """Where a run lies: named by its arguments and by the weights of the bundled models in them."""
    told = hashlib.sha256(json.dumps(list(words)).encode())
    for name in bundled(row):
        told.update(_file(name).read_bytes())
    return root / f"{row.name.replace(' ', '-')}-{told.hexdigest()[:12]}"


def run(words: Sequence[str], place: Path, data_root: str | None) -> Summary:
    """The summary of a finished run, made now unless it is there; raises RobustkitError with what it says."""
    held = held_run(place)
    if held is None:
        if changed(place):
            print(f"{place}: {changed(place)} has changed since, so the run is made anew", file=sys.stderr)
            shutil.rmtree(place)
        options = ["--out", str(place), *(["--data-root", data_root] if data_root else [])]
        done = subprocess.run([sys.executable, "-m", "robustkit", *words, *options], capture_output=True, text=True, check=False)
        held = held_run(place)
        if held is None:
            said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise RobustkitError(said.removeprefix("robustkit: "))
    return held


def held_run(place: Path) -> Summary | None:
    """The summary in a run folder; None where the run is not complete, or by a method that has changed since."""
    try:
        bound = json.loads((place / "run.json").read_text())
        found: Summary = json.loads((place / "summary.json").read_text())
    except FileNotFoundError:
        return None
    return found if bound["status"] == "complete" and not changed(place) else None


def changed(place: Path) -> str:
    """The first method of a run folder that has another version now, empty for none."""
    if not (place / "run.json").exists():
        return ""
    for stage in json.loads((place / "run.json").read_text())["specification"]["stages"]:
        name = str(stage["method"]).partition(":")[0]
        kind = "attack" if name in registry.table("attack") else "certifier"
        if registry.make(kind, stage["method"]).version != stage["version"]:
            return name
    return ""


def measure(row: Row, chosen: argparse.Namespace) -> dict[str, Summary]:
    """All runs of a row, those that are not there made now where the row is asked for; raises Missing, RobustkitError."""
    absent = [name for name in bundled(row) if not _file(name).exists()]
    if absent:
        raise Missing(f"there is no bundled model {', '.join(absent)}")
    found = {}
    for kind in KINDS:
        words = command(row, kind, chosen.n, chosen.seed)
        if words is None:
            continue
        place = folder(row, words, Path(chosen.runs))
        if chosen.rows and row.name not in chosen.rows and held_run(place) is None:
            raise Missing(f"not measured yet: name it with --rows (its run `{kind}` is not in {chosen.runs})")
        print(f"{row.name}: {kind}", file=sys.stderr, flush=True)
        try:
            found[kind] = run(words, place, chosen.data_root) | {"command": shlex.join(["robustkit", *words])}
        except RobustkitError as problem:
            raise RobustkitError(f"its run `{kind}` failed: {problem}") from problem
    return found


def main(arguments: Sequence[str] | None = None, rows: Sequence[Row] = ROWS) -> int:
    """Run what is missing and write the page; exit code 1 where a run failed."""
    parser = argparse.ArgumentParser(description="What the bundled defenses are worth, as docs/RESULTS.md.")
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in rows], metavar="NAME", help="measure only these (default all)")
    parser.add_argument("--n", type=int, help="images (default: as on the page, 100 to 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", default="runs/results", help="folder of the run folders (default runs/results)")
    parser.add_argument("--out", default="docs/RESULTS.md", help="the page, always of all rows that are measured (default docs/RESULTS.md)")
    parser.add_argument("--data-root", metavar="DIR", help="where MNIST lies (or set ROBUSTKIT_DATA)")
    chosen = parser.parse_args(arguments)
    done: list[tuple[Row, dict[str, Summary]]] = []
    skipped: dict[str, str] = {}
    failed = False
    for row in rows:
        try:
            done.append((row, measure(row, chosen)))
        except RobustkitError as problem:
            skipped[row.name] = str(problem)
            failed |= not isinstance(problem, Missing)
    Path(chosen.out).write_text(document(done, skipped, chosen.seed), encoding="utf-8")
    for name, why in skipped.items():
        print(f"{name} is left out: {why}", file=sys.stderr)
    return int(failed)


def _attacks(specifications: Sequence[str]) -> list[str]:
    return [word for one in specifications for word in ("--attack", one)]


def _file(name: str) -> Path:
    return ZOO / f"{name}.safetensors"


if __name__ == "__main__":
    raise SystemExit(main())
