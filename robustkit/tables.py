"""The answer in the terminal. Tables go to a rich Console; user text is never read as markup."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from robustkit.core.plain_text import harmless, harmless_all
from robustkit.guarantees import CLASSES
from robustkit.report.palette import STATES, TERMINAL
from robustkit.report.wording import (
    SPACE,
    bounds,
    caution,
    digits,
    duration,
    extra_guarantees,
    guarantee,
    milliseconds,
    model_title,
    percent,
    plural,
    proofs,
    radii,
    short,
    sorted_diagnostics,
    stage_labels,
)
from robustkit.spec import number

PIPE_WIDTH = 100
"""Least number of columns where the output is no terminal: a pipe wraps nothing by surprise."""

_TITLES = {"certified": "certified", "open": "open", "broken": "broken", "error": "clean errors"}
_BLOCKS = {"certified": "█", "open": "▒", "broken": "▓", "error": "░"}
_PLAIN_BLOCKS = {"certified": "#", "open": "?", "broken": "x", "error": "."}
_COSTS = ("received", "settled", "robust", "certified", "time", "forwards", "backwards", "queries")
"""Columns of the stage table; where the terminal is narrow, the last ones are left out."""

_BASIC = {"certified": "bright_blue", "open": "yellow", "broken": "red", "error": "bright_black"}
_STATUS = {"error": "broken", "warn": "open", "skipped": "error"}


def terminal(file: TextIO | None = None) -> Console:
    """A console on `file` (default: stdout) whose width and colours hold no surprise in a pipe."""
    stream = sys.stdout if file is None else file
    width = None
    if not stream.isatty():
        asked = os.environ.get("COLUMNS", "")
        width = max(PIPE_WIDTH, int(asked) if asked.isdigit() else 0)
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def bracket_table(summary: Mapping[str, Any], console: Console | None = None, *, certifiers: bool = False) -> None:
    """Print the answer of a run: headline, budgets, stages, diagnostics that are not `pass`.

    `summary` has the keys of summary.json. Prints to stdout unless a console is given. `certifiers`
    adds a table of what each certifier was given and has proven, by class of guarantee.
    """
    console, summary = console or terminal(), harmless_all(dict(summary))
    plain = not _unicode(console)
    budget = max((str(text) for text in summary["eps"]), key=number)
    n = int(summary["data"]["n"])
    colours = _colours(console)
    for line in _headline(summary, budget, n, "<=" if plain else "≤", colours):
        console.print(_fit(line, console))
    blocks = _PLAIN_BLOCKS if plain else _BLOCKS
    console.print(_bar(summary, min(console.width, 100) - 2, blocks, colours))
    console.print(_legend(summary, n, blocks, console))
    console.print()
    full, lean = (_budgets(summary, budget, n, intervals) for intervals in (True, False))
    console.print(_widest(console, [full, lean]))
    if _fits(console, full):
        console.print(Text("In brackets: 95 % intervals, for all images of this kind.", style="dim"))
    else:
        names = [name for name in ("certified", "robust") if summary[f"{name}_accuracy"] is not None]
        told = ", ".join(f"{name} {_interval(summary, f'{name}_accuracy', n)}" for name in names)
        console.print(Text(f"95 % intervals at {budget}, for all images of this kind: {told}.", style="dim"))
    if summary["stages"]:
        console.print()
        console.print(_widest(console, [_stages(summary, n, console, count) for count in range(len(_COSTS), 3, -1)]))
    if certifiers and proofs(summary):
        console.print()
        console.print(_proofs(summary, console))
    _diagnostics(summary, console)


def listing(title: str, rows: Iterable[Sequence[Any]], columns: Sequence[str], console: Console | None = None) -> None:
    """Print a plain table, for example all attacks. Each row has one value for each column."""
    console = console or terminal()
    table = Table(title=_fit(Text(title), console), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, title_style="bold")
    for place, name in enumerate(columns):
        table.add_column(Text(harmless(name)), style="bold" if place == 0 else "", no_wrap=place == 0, overflow="fold")
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} values for {len(columns)} columns")
        table.add_row(*(_fit(Text("" if value is None else harmless(str(value))), console) for value in row))
    console.print(table)


def _colours(console: Console) -> dict[str, str]:
    """The palette, by its nearest names on a terminal of 16 colours."""
    return _BASIC if console.color_system in ("standard", "windows") else TERMINAL


def _unicode(console: Console) -> bool:
    return console.encoding.lower().replace("-", "").startswith("utf")


def _fit(text: Text, console: Console) -> Text:
    """The same text with `?` for every sign that the stream cannot carry (rich would raise)."""
    if not _unicode(console):
        text.plain = (
            text.plain.replace("–", "-").replace("·", "|").replace(SPACE, " ").encode(console.encoding, "replace").decode(console.encoding)
        )
    return text


def _headline(summary: Mapping[str, Any], budget: str, n: int, at_most: str, colours: Mapping[str, str]) -> list[Text]:
    about = Text(model_title(str(summary["model"]["spec"])), style="bold")
    images = f"{n:,} image{'' if n == 1 else 's'}"
    about.append(
        f" on {summary['data']['spec']} · {images} · {summary['threat']} · {summary['goal']} · labels {summary['labels']}", style="not bold"
    )
    answer = Text("certified ")
    answer.append(percent(summary["certified_accuracy"], n), style=f"bold {colours['certified']}")
    answer.append(f" {at_most} true robust accuracy at {budget} {at_most} ")
    answer.append(percent(summary["robust_accuracy"], n), style=f"bold {colours['broken']}")
    careful, clean = caution(summary, n), f"clean {percent(summary['clean_accuracy'], n)}"
    answer.append(f" empirical{f', {careful}' if careful and not summary['not_established'] else ''} ({clean})")
    told = [about, answer]
    if summary["not_established"]:
        told.append(Text(f"Robust accuracy is {careful}.", style=f"bold {colours['broken']}"))
    told.append(Text(guarantee(summary), style="dim"))
    told += [Text(f"Beside the bracket: {text}.", style="dim") for text in extra_guarantees(summary, n)]
    return told + [Text(f"{text[0].upper()}{text[1:]}.", style="dim") for text in radii(summary)]


def _shares(summary: Mapping[str, Any]) -> dict[str, float]:
    """How long each part of the bar is. What neither proofs nor attacks have settled has one even where it is no share of open samples."""
    clean, robust = float(summary["clean_accuracy"]), float(summary["robust_accuracy_at_most"])
    certified = float(summary["certified_accuracy"])
    left = robust - certified if summary["open"] is None else float(summary["open"])
    values = (certified, left, clean - robust, 1 - clean)
    return {state: max(0.0, value) for state, value in zip(STATES, values)}


def _bar(summary: Mapping[str, Any], width: int, blocks: Mapping[str, str], colours: Mapping[str, str]) -> Text:
    """One line of blocks in the proportions of the four states; what is not zero is never invisible."""
    shares = _shares(summary)
    cells = {state: max(1, round(share * width)) if share > 0 else 0 for state, share in shares.items()}
    widest = max(cells, key=lambda state: cells[state])
    cells[widest] += width - sum(cells.values())
    bar = Text(no_wrap=True)
    for state in STATES:
        bar.append(blocks[state] * cells[state], style=colours[state])
    return bar


def _legend(summary: Mapping[str, Any], n: int, blocks: Mapping[str, str], console: Console) -> Columns:
    colours = _colours(console)
    shares = _shares(summary).items()
    known = {s: None if s == "open" and summary["open"] is None else share for s, share in shares}
    parts = [
        Text.assemble((blocks[s] * 2, colours[s]), f" {_TITLES[s]} {_spaced(percent(share, n))}", no_wrap=True)
        for s, share in known.items()
    ]
    return Columns(parts, padding=(0, 3))


def _table(gap: int) -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", padding=(0, gap, 0, 0))


def _fits(console: Console, table: Table) -> bool:
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum <= console.width


def _widest(console: Console, tables: Sequence[Table]) -> Table:
    """The first table that fits the terminal, else the last."""
    return next((table for table in tables if _fits(console, table)), tables[-1])


def _budgets(summary: Mapping[str, Any], budget: str, n: int, intervals: bool) -> Table:
    table = _table(3 if intervals else 1)
    table.add_column("eps", style="bold", no_wrap=True)
    for name in ("clean", "robust (empirical)" if intervals else "robust", "certified", "open"):
        table.add_column(name, justify="right", no_wrap=True)
    for text in sorted((str(text) for text in summary["eps"]), key=number):
        told = _at(summary, text, budget)
        if told is not None:
            table.add_row(Text(text), *_cells(summary, told, n, intervals))
    return table


def _cells(summary: Mapping[str, Any], told: Mapping[str, Any], n: int, intervals: bool) -> list[Text]:
    """clean, robust, certified, open at one budget; the first three with their 95 % intervals if asked for."""
    robust, certified = told["robust_accuracy"], told["certified_accuracy"]
    cells = []
    for key in ("clean_accuracy", "robust_accuracy", "certified_accuracy"):
        source = summary if key == "clean_accuracy" else told
        cell = Text(_spaced(percent(source[key], n)))
        if intervals and source[key] is not None:
            cell.append(f" {_interval(source, key, n)}".ljust(10 + 2 * digits(n)), style="dim")
        cells.append(cell)
    return [*cells, Text(_spaced(percent(None if robust is None else max(0.0, robust - certified), n)))]


def _interval(told: Mapping[str, Any], key: str, n: int) -> str:
    """`[67.6-77.9]`: the summary's own 95 % interval, or the same kind at another budget."""
    if "interval95" in told:
        found = told["interval95"][key]
    else:
        from robustkit.summary import interval  # brings torch and scipy, which a listing does not need

        found = interval(told[key], n)
    return f"[{_spaced(bounds(found, n))}]"


def _spaced(text: str) -> str:
    """Table cells never wrap, so plain ASCII does: every terminal shows it."""
    return text.replace(SPACE, " ").replace("–", "-")


def _at(summary: Mapping[str, Any], text: str, budget: str) -> Mapping[str, Any] | None:
    """The figures at one reported budget."""
    if text == budget:
        return summary
    value = float(number(text))
    return next((entry for entry in summary["curve"] if math.isclose(float(entry["eps"]), value, rel_tol=1e-9)), None)


def _stages(summary: Mapping[str, Any], n: int, console: Console, count: int) -> Table:
    table = _table(1)
    table.add_column("stage", overflow="fold", max_width=24)
    budgets = len({stage.get("eps") for stage in summary["stages"]}) > 1
    if budgets:
        table.add_column("eps", no_wrap=True)
    shown = _COSTS[:count]
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for stage, label in zip(summary["stages"], stage_labels(summary["stages"])):
        cells = {
            "received": f"{int(stage['received']):,}",
            "settled": f"{int(stage['settled']):,}",
            "robust": percent(stage["robust_accuracy"], n),
            "certified": percent(stage["certified_accuracy"], n),
            "time": duration(float(stage["seconds"])),
            "forwards": short(stage["forwards"] or 0),
            "backwards": short(stage["backwards"] or 0),
            "queries": short(stage["queries"] or 0),
        }
        colour = _colours(console)["certified" if stage["kind"] == "certifier" else "broken"]
        first = [_fit(Text(label, style=f"bold {colour}"), console)] + [Text(str(stage.get("eps", "")))] * budgets
        table.add_row(*first, *(Text(_spaced(cells[name])) for name in shown))
    return table


def _proofs(summary: Mapping[str, Any], console: Console) -> Table:
    table = _table(1)
    rows = proofs(summary)
    table.add_column("certifier", overflow="fold", max_width=24)
    budgets = len({row.eps for row in rows}) > 1
    for name in [*(["eps"] if budgets else []), "given", *CLASSES, "margin", "each"]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("guarantee", no_wrap=True)
    for row in rows:
        counts = ["-" if count is None else f"{count:,}" for count in row.proven.values()]
        cells = [*([row.eps] if budgets else []), f"{row.given:,}", *counts, row.margin, milliseconds(row.each)]
        first = _fit(Text(row.label, style=f"bold {_colours(console)['certified']}"), console)
        table.add_row(first, *(Text(_spaced(cell)) for cell in cells), _fit(Text(row.guarantee), console))
    return table


def _diagnostics(summary: Mapping[str, Any], console: Console) -> None:
    entries = [entry for entry in sorted_diagnostics(summary) if entry["status"] != "pass"]
    if not entries:
        if summary["diagnostics"]:
            console.print()
            console.print(Text(f"Diagnostics: {plural(len(summary['diagnostics']), 'check')}, nothing to report.", style="dim"))
        return
    console.print()
    colours = _colours(console)
    for entry in entries:
        line = Text(f"{entry['status']}: ", style=f"bold {colours[_STATUS.get(str(entry['status']), 'open')]}")
        line.append(f"{entry['check']}: {entry['message']}", style="not bold default")
        console.print(_fit(line, console))
        if entry["cure"]:
            console.print(Padding(_fit(Text(f"cure: {entry['cure']}"), console), (0, 0, 0, 6)))
