"""What the bundled defenses are worth: every one attacked, beside what was published of it, as docs/RESULTS.md.

    python benchmarks/results.py [--rows pgd trades] [--n 1000] [--again]

Every figure is read off the summary of a run folder under runs/results, made by `robustkit evaluate`
in a process of its own; runs that are there already are not repeated. What was published is in
published.py. A row has up to three runs: `naive` is PGD-40 on the model as deployed, `standard` the
suite, with the test of its own attacks, `adaptive` the attacks made for the defense. With --again the
models are trained once more, with another seed, and measured in the same way.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from published import ROWS, Row
from results_page import Summary, document
from retrain import SEED, bundled, train, trained_again, weights

from robustkit import load_model, registry
from robustkit.errors import Missing, RobustkitError
from robustkit.suites import suite
from robustkit.threats import load_threat

KINDS = ("naive", "standard", "adaptive")


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
    for file in weights(row):
        told.update(file.read_bytes())
    return root / f"{row.name.replace(' ', '-')}-{told.hexdigest()[:12]}"


def run(words: Sequence[str], place: Path, options: Sequence[str]) -> Summary:
    """The summary of a finished run, made now unless it is there; raises RobustkitError with what it says."""
    held = held_run(place)
    if held is None:
        if why := changed(place):
            print(f"{place}: {why} has changed since, so the run is made anew", file=sys.stderr)
            shutil.rmtree(place)
        whole = [sys.executable, "-m", "robustkit", *words, "--out", str(place), *options]
        done = subprocess.run(whole, capture_output=True, text=True, check=False)
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
    """The first method of a run folder, or the wrapper of its model, that is another one now; empty for none."""
    if not (place / "run.json").exists():
        return ""
    bound = json.loads((place / "run.json").read_text())["specification"]
    wrapper = bound["model"]["spec"].partition(":")[0]
    if wrapper in registry.table("wrapper") and wrapped(bound["model"]["spec"]) != bound["model"]["sha256"]:
        return str(wrapper)
    for stage in bound["stages"]:
        name = str(stage["method"]).partition(":")[0]
        kind = "attack" if name in registry.table("attack") else "certifier"
        if registry.make(kind, stage["method"]).version != stage["version"]:
            return name
    return ""


@cache
def wrapped(spec: str) -> str | None:
    """What a wrapped model is now, as its sha256: a bank of neighbours is searched for images only once."""
    return load_model(spec).sha256


def measure(row: Row, chosen: argparse.Namespace, asked: bool) -> dict[str, Summary]:
    """All runs of a row, those that are not there made now where it is asked for; raises Missing, RobustkitError."""
    absent = [file.stem for file in weights(row) if not file.exists()]
    if absent:
        raise Missing(f"there is no {'bundled model' if bundled(row) else 'model that was trained again:'} {', '.join(absent)}")
    found = {}
    for kind in KINDS:
        words = command(row, kind, chosen.n, chosen.seed)
        if words is None:
            continue
        place = folder(row, words, Path(chosen.runs))
        if not asked and held_run(place) is None:
            raise Missing(f"not measured yet: name it with --rows (its run `{kind}` is not in {chosen.runs})")
        print(f"{row.name}: {kind}", file=sys.stderr, flush=True)
        try:
            found[kind] = run(words, place, _root(chosen)) | {"command": shlex.join(["robustkit", *words])}
        except RobustkitError as problem:
            raise RobustkitError(f"its run `{kind}` failed: {problem}") from problem
    return found


def measure_again(row: Row, chosen: argparse.Namespace, asked: bool) -> dict[str, Summary]:
    """The same of models trained with another seed, now where that is asked for; raises Missing, RobustkitError."""
    folder = Path(chosen.runs) / f"seed-{SEED}"
    for name in bundled(row) if asked else []:
        train(name, folder, _root(chosen))
    return measure(trained_again(row, folder), chosen, asked)


def main(arguments: Sequence[str] | None = None, rows: Sequence[Row] = ROWS) -> int:
    """Run what is missing and write the page; exit code 1 where a run failed."""
    parser = argparse.ArgumentParser(description="What the bundled defenses are worth, as docs/RESULTS.md.")
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in rows], metavar="NAME", help="measure only these (default all)")
    parser.add_argument("--n", type=int, help="images (default: as on the page, 100 to 1000)")
    parser.add_argument("--again", action="store_true", help=f"also train the models of these rows with seed {SEED}, and measure those")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", default="runs/results", help="folder of the run folders (default runs/results)")
    parser.add_argument("--out", default="docs/RESULTS.md", help="the page, always of all rows that are measured (default docs/RESULTS.md)")
    parser.add_argument("--data-root", metavar="DIR", help="where MNIST lies (or set ROBUSTKIT_DATA)")
    chosen = parser.parse_args(arguments)
    done: list[tuple[Row, dict[str, Summary]]] = []
    again: list[tuple[Row, dict[str, Summary]]] = []
    skipped: dict[str, str] = {}
    failed = False
    for row in rows:
        asked = not chosen.rows or row.name in chosen.rows
        try:
            done.append((row, measure(row, chosen, asked)))
        except RobustkitError as problem:
            skipped[row.name] = str(problem)
            failed |= not isinstance(problem, Missing)
            continue
        try:
            again.append((row, measure_again(row, chosen, asked and chosen.again)))
        except Missing:
            continue  # the page names those that were not trained again
        except RobustkitError as problem:
            skipped[f"{row.name}, trained again"] = str(problem)
            failed = True
    Path(chosen.out).write_text(document(done, skipped, chosen.seed, again), encoding="utf-8")
    for name, why in skipped.items():
        print(f"{name} is left out: {why}", file=sys.stderr)
    return int(failed)


def _attacks(specifications: Sequence[str]) -> list[str]:
    return [word for one in specifications for word in ("--attack", one)]


def _root(chosen: argparse.Namespace) -> list[str]:
    return ["--data-root", chosen.data_root] if chosen.data_root else []


if __name__ == "__main__":
    raise SystemExit(main())
