"""The page of results: figures of run summaries as tables, and what they say in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO
from typing import Any

from published import Row
from retrain import SEED
from rich import box
from rich.console import Console
from rich.table import Table

from robustkit.report.wording import bounds, percent, short
from robustkit.summary import interval

Summary = dict[str, Any]
"""summary.json, and the `command` that made it."""

SHARES = ("clean", "naive", "standard", "adaptive", "95 %", "published")
FIGURES = ("defense", "threat", "n", *SHARES, "in words", "surface", "queries an image")
COMPARED = FIGURES[: FIGURES.index("published")]
"""What is shown of models that were trained again."""


def verdict(row: Row, found: dict[str, Summary]) -> str:
    """A row's figures in words."""
    name, best = strongest(found)
    robust, n = float(best["robust_accuracy_at_most"]), int(best["data"]["n"])
    reach = interval(robust, n)
    naive = found.get("naive")
    words = []
    if best["not_established"]:
        words.append(f"**not established** ({best['not_established'].partition(':')[0]})")
    elif not best["checked"]:
        words.append("not checked")
    if robust < 0.1:
        words.append(f"**does not hold**: {percent(robust, n)} left")
    if naive is not None and reach[1] < float(naive["robust_accuracy_at_most"]):
        lost = float(naive["robust_accuracy_at_most"]) - robust
        words.append(f"PGD-40 flatters it by {100 * lost:.1f} points")
    proven = max(float(one["certified_accuracy"]) for one in found.values())
    if proven:
        words.append(f"at least {percent(proven, n)} proven")
    for kind in ("statistical", "conditional"):
        weaker = max(float(one[f"certified_{kind}"]) for one in found.values())
        if weaker:
            words.append(f"{percent(weaker, n)} certified, {kind}")
    if row.claim is not None:
        apart = 100 * abs(row.claim - robust)
        side = "below" if reach[1] < row.claim else "above" if reach[0] > row.claim else ""
        words.append(f"{apart:.1f} points {side} the published figure" if side else "as published, within the 95 % interval")
    state = attack_test(best)
    if state and state["status"] == "error":
        words.append(f"its upper end says little ({state['message'].partition(';')[0]})")
    objections = [one["check"] for one in best["diagnostics"] if one["status"] == "error" and one is not state]
    if objections:
        words.append(f"honesty checks object to the run `{name}`: {', '.join(objections)}")
    return "; ".join(words) or "holds so far"


def strongest(found: dict[str, Summary]) -> tuple[str, Summary]:
    """The run that leaves least, the later one of equals."""
    return min(reversed(found.items()), key=lambda entry: float(entry[1]["robust_accuracy_at_most"]))


def attack_test(summary: Summary) -> dict[str, str] | None:
    """What the binarisation test said of the run's attacks."""
    return next((one for one in summary["diagnostics"] if one["check"] == "binarisation"), None)


def surface(found: dict[str, Summary]) -> str:
    """What the model declares of itself, and whether the attacks of its strongest run passed their own test."""
    best = strongest(found)[1]
    declared = str(best["model"].get("surface", "plain")).partition(": ")
    state = attack_test(best)
    word = "tested" if state and state["status"] == "pass" else "declared" if declared[2] else "not tested"
    return f"{word}: {declared[2] or declared[0]}"


def bracket(summary: Summary | None) -> str:
    """`0.0 – 88.1 %`: certified and robust, the latter alone where nothing was certified; weaker guarantees in brackets."""
    if summary is None:
        return "as `standard`"
    n = int(summary["data"]["n"])
    if all(stage["kind"] != "certifier" for stage in summary["stages"]):
        return f"at most {percent(summary['robust_accuracy_at_most'], n)}"
    ends = bounds([summary["certified_accuracy"], summary["robust_accuracy_at_most"]], n).replace("–", " – ") + " %"
    if summary["not_established"]:
        ends = f"{percent(summary['certified_accuracy'], n)} – not established"
    for kind in ("statistical", "conditional"):
        if summary[f"certified_{kind}"]:
            ends += f" ({percent(summary[f'certified_{kind}'], n)} certified, {kind})"
    return ends


def cells(row: Row, found: dict[str, Summary]) -> list[str]:
    """One line of the table of figures."""
    best = strongest(found)[1]
    n = int(best["data"]["n"])
    naive = percent(found["naive"]["robust_accuracy_at_most"], n) if "naive" in found else "–"
    queries = [f"{kind} {short(sum(stage['queries'] or 0 for stage in one['stages']) / n)}" for kind, one in found.items()]
    return [
        row.name,
        f"`{row.threat}`",
        str(n),
        percent(best["clean_accuracy"], n),
        naive,
        bracket(found["standard"]),
        bracket(found.get("adaptive")),
        "–" if best["not_established"] else bounds(best["interval95"]["robust_accuracy"], n),
        percent(row.claim) if row.claim is not None else "–",
        verdict(row, found),
        surface(found),
        f"{suite_words(row)}: {', '.join(queries)}",
    ]


def suite_words(row: Row) -> str:
    """What the run `standard` of a row is, in words."""
    return "PGD-20 over 10 draws" if row.random else "`quick` + Square 200" if row.slow else "`standard`"


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    table = Table(*columns, box=box.MARKDOWN)
    for line in lines:
        table.add_row(*(cell.replace("|", "\\|").replace("\u00a0", " ") for cell in line))
    out = StringIO()
    Console(file=out, width=100_000, markup=False, highlight=False, emoji=False).print(table)
    return re.sub(r" +\n", "\n", out.getvalue()).strip("\n")


def beside(first: dict[str, Summary], second: dict[str, Summary]) -> str:
    """What a second training changes, in words: the lowest robust accuracies and the clean ones, and whether chance explains them."""
    one, other = strongest(first)[1], strongest(second)[1]
    words = []
    for name in ("clean", "robust"):
        key = f"{name}_accuracy"
        key = "robust_accuracy_at_most" if name == "robust" else key
        low, high = interval(float(one[key]), int(one["data"]["n"]))
        apart = 100 * (float(other[key]) - float(one[key]))
        words.append(f"{name} {apart:+.1f} points{'' if low <= float(other[key]) <= high else ', outside the 95 % interval of the first'}")
    return "; ".join(words)


def compared(row: Row, first: dict[str, Summary], second: dict[str, Summary]) -> list[str]:
    """One line of the table of models that were trained again."""
    return [*cells(row, second)[: len(COMPARED)], beside(first, second)]


def second_training(done: Sequence[tuple[Row, dict[str, Summary]]], again: Sequence[tuple[Row, dict[str, Summary]]]) -> list[str]:
    """The part of the page about models that were trained again, empty without any."""
    if not again:
        return []
    first = {row.name: found for row, found in done}
    lines = [compared(row, first[row.name], found) for row, found in again]
    left_out = [name for name in first if name not in {row.name for row, _ in again}]
    told = f" Not trained again: {', '.join(left_out)}." if left_out else ""
    return [f"## Trained again\n\n{AGAIN}{told}", markdown((*COMPARED, "beside the first"), lines)]


def document(
    done: Sequence[tuple[Row, dict[str, Summary]]],
    skipped: dict[str, str],
    seed: int,
    again: Sequence[tuple[Row, dict[str, Summary]]] = (),
) -> str:
    """The page, of rows and their runs' summaries, and those of the same models trained again."""
    environment = next(iter(done[0][1].values()))["environment"] if done else {}
    machine = ", ".join(f"{name} {environment[name]}" for name in ("robustkit", "python", "torch", "device") if name in environment)
    sources = [[row.name, row.paper, row.published, row.broken] for row, _ in done]
    runs = [[row.name, kind, f"`{one['command']}`"] for row, found in done for kind, one in found.items()]
    left_out = "".join(f"\n- {name}: {why}" for name, why in skipped.items())
    parts = [
        HEAD.format(seed=seed, machine=machine),
        markdown(FIGURES, [cells(row, found) for row, found in done]),
        *second_training(done, again),
        "## What was published, and who broke it\n\n" + SOURCES,
        markdown(("defense", "paper", "published", "known against it"), sources),
        "## The runs\n\nEvery figure above is in the `summary.json` of one of these.",
        markdown(("defense", "run", "command"), runs),
    ]
    return "\n\n".join(parts + ([f"Left out:\n{left_out}"] if left_out else [])) + "\n"


HEAD = """# Results

<!-- written by `python benchmarks/results.py`; edit that file, or published.py beside it -->

What the bundled defenses are worth on the first n MNIST test images. Each was trained in minutes by its recipe
([how](../robustkit/zoo/README.md)), on a network far smaller than those of the papers: compare a defense with its own published
figure for the order of magnitude, and with the other rows for what the idea is worth here.

- **naive**: accuracy left by PGD with 40 steps on the model as deployed, which is what many papers report.
- **standard**: certified – robust. No attack can leave less than the first number; the suite `standard` (APGD-CE, APGD-T, FAB-T,
  Square) has left the second. The truth about these n images lies between.
- **adaptive**: the same after attacks made for this defense, where `standard` is not already that.
- **95 %**: interval of the lowest robust accuracy, for all images of this kind.
- **published**: robust accuracy that was reported first for this threat; sources below.
- **surface**: what the model says stands in for its gradients, `plain` where it needs nothing. `tested`: the attacks of the
  strongest run find known adversarial examples in tasks made from this very model (`--check-attack`); `declared` or `not tested`:
  they were not seen to.
- **queries an image**: forward passes of every run, over n.

Models slower than a millisecond an image get 100 images, the suite `quick` and 200 queries of Square in place of `standard`;
models that vote over noise get 100 images, PGD-20 whose gradients are averaged over 10 draws (the suite `rand` does more, at twenty
times the cost), and certificates by sampling (10 000 draws, alpha 0.001). Analysis by synthesis, at 60 milliseconds an image, is
measured without the honesty checks and the test of its attacks (`--checks off`), which would take hours.
Seed {seed}; {machine}."""

AGAIN = f"""What another seed makes of it: the same models trained by the same commands with seed {SEED}, measured in the same way
(`python benchmarks/results.py --again`). Weights, order of images and every draw differ; images and attacks are the same."""

SOURCES = "Figures of others, on their networks; typed from the source named, not measured here."
