"""The static site of a board: a table, two pictures, a page per entry, a comparison of any two. No server, no network."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from robustkit.core.comparisons import float_below
from robustkit.core.plain_text import harmless
from robustkit.data import Data
from robustkit.errors import RobustkitError
from robustkit.leaderboard.challenges import known_sizes
from robustkit.leaderboard.drawing import curve, scatter
from robustkit.leaderboard.figures import certified
from robustkit.leaderboard.manifest import Entry
from robustkit.leaderboard.pictures import gallery, write_report
from robustkit.leaderboard.standings import CAUTION, STATES, Standing, as_csv, as_json
from robustkit.report.page import finalize
from robustkit.report.palette import STATES as SAMPLES
from robustkit.report.palette import css
from robustkit.report.wording import allowed, percent, short
from robustkit.spec import number
from robustkit.store import write_atomic

if TYPE_CHECKING:
    from robustkit.leaderboard.board import Leaderboard
    from robustkit.leaderboard.ledger import Ledger

FEW = 50
"""Up to as many entries get their full report and pictures by default: they take a second each."""

_COLUMNS = (
    ("rank", "number", "up", "num"),
    ("name", "text", "up", "name"),
    ("robust at least", "number", "down", "num"),
    ("submitted", "number", "down", "num opt"),
    ("best known", "number", "down", "num"),
    ("clean", "number", "down", "num"),
    ("certified", "number", "down", "num"),
    ("claimed", "number", "down", "num opt"),
    ("state", "text", "up", ""),
    ("checks", "text", "up", "opt"),
    ("surface", "text", "up", "opt"),
)
_SIGNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_SHOWN = {"certified": "certified as submitted", "open": "open", "broken": "broken", "error": "clean errors"}


def write_site(board: Leaderboard, out: Path, *, reports: str = "auto", data_root: str | Path | None = None) -> Path:
    """Write the site into the folder `out` and return its index.html.

    Args:
        reports: all, none, or auto for the full reports and pictures of up to 50 entries.

    Raises BadInput where the board's ledger is damaged or `out` cannot be written. A damaged entry
    gets a page that says so.
    """
    ledger = board.ledger()
    rows, challenges = board.standings(), board.challenges(ledger)
    entries = {entry.id: entry for entry in board.entries()}
    data = None
    if reports == "all" or (reports == "auto" and len(entries) <= FEW):
        try:
            data = board.definition.load_data(data_root)
        except RobustkitError:
            data = None
    pages = _Pages(board, ledger)
    packed = []
    out.mkdir(parents=True, exist_ok=True)
    for row in rows:
        entry = entries[row.id]
        report = ""
        if not row.problem:
            upper, real = known_sizes(entry, challenges.get(row.id, []))
            lower, _ = certified(entry.columns, upper, real)
            states = sample_states(upper, lower, float_below(number(board.definition.eps)))
            packed.append({"id": row.id, "name": harmless(row.name), "s": pack(states)})
            report = write_report(entry, data, out)
        else:
            states = np.zeros(0, np.int64)
        write_atomic(out / "entry" / f"{row.id}.html", pages.entry(row, entry, states, data, report).encode())
    write_atomic(out / "compare.html", pages.compare(packed).encode())
    write_atomic(out / "board.csv", as_csv(rows).encode())
    write_atomic(out / "board.json", as_json(board, rows).encode())
    write_atomic(out / "index.html", pages.index(rows).encode())
    return out / "index.html"


def sample_states(upper: NDArray[np.float64], lower: NDArray[np.float64], budget: float) -> NDArray[np.int64]:
    """(N,) 0 certified, 1 open, 2 broken, 3 clean error; a witness outweighs a certificate."""
    found = np.where(lower >= budget, 0, 1)
    found[upper <= budget] = 2
    found[~(upper > 0)] = 3
    return found


def pack(states: NDArray[np.int64]) -> str:
    """Three samples to a character."""
    filled = np.zeros(-(-len(states) // 3) * 3, np.int64)
    filled[: len(states)] = states
    signs = filled.reshape(-1, 3) @ np.array([1, 4, 16])
    return "".join(_SIGNS[sign] for sign in signs.tolist())


class _Pages:
    """The pages of one board."""

    def __init__(self, board: Leaderboard, ledger: Ledger) -> None:
        self.board, self.ledger = board, ledger
        loader = jinja2.FunctionLoader(_read)
        options: dict[str, Any] = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True, "finalize": finalize}
        self.made = jinja2.Environment(loader=loader, autoescape=True, **options)
        self.made.globals.update(
            board=board.definition,
            head=ledger.head,
            caution=CAUTION,
            light=Markup(css(dark=False)),
            dark=Markup(css(dark=True)),
            css=Markup(_read("site.css")),
        )
        self.events: dict[str, list[tuple[str, str]]] = {}
        for line in ledger.lines:
            self.events.setdefault(str(line.about.get("entry", "")), []).append(
                (line.time[:16].replace("T", " "), _told(line.event, line.about))
            )

    def _render(self, name: str, script: str = "", **given: Any) -> str:
        source = _read(script) if script else ""
        allowed_ = f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'" if source else "'none'"
        return self.made.get_template(name).render(script=Markup(source), script_source=Markup(allowed_), **given)

    def index(self, rows: Sequence[Standing]) -> str:
        n, told = self.board.definition.n, self.board.definition
        columns = [dict(zip(("title", "kind", "first", "css"), column)) for column in _COLUMNS]
        pictures = [
            {
                "svg": scatter(rows, "clean", "clean accuracy"),
                "caption": "Clean against best known robust accuracy; up and to the right is better. Dashed: both equal.",
            },
            {
                "svg": scatter(rows, "certified", "certified accuracy"),
                "caption": "Certified, as computed again, against best known: the nearer to the diagonal, the less is open.",
            },
        ]
        shown = [_row(row, n) for row in rows]
        words = allowed(told.threat, told.eps)
        words = words[:1].upper() + words[1:]
        return self._render(
            "index.html.j2", "table.js", columns=columns, rows=shown, states=STATES, scatters=pictures if rows else [], allowed=words
        )

    def entry(self, row: Standing, entry: Entry, states: NDArray[np.int64], data: Data | None, report: str) -> str:
        history = [{"time": time, "text": text} for time, text in self.events.get(row.id, [])]
        if row.problem:
            return self._render("entry.html.j2", row=row, history=history)
        n, summary = self.board.definition.n, entry.summary
        keys = ("robust_at_least", "clean", "certified", "certified_submitted", "best_known", "suite", "claimed")
        figures = {key: percent(getattr(row, key), n) for key in keys}
        shares = [float((states == place).mean()) for place in range(len(SAMPLES))]
        starts = np.concatenate([[0.0], np.cumsum(shares)[:-1]]).tolist()
        bar = [
            {"state": s, "title": _SHOWN[s], "share": share, "start": start, "text": percent(share, n)}
            for s, share, start in zip(SAMPLES, shares, starts)
        ]
        stages = [{**stage, "forwards": short(stage["forwards"])} for stage in summary["stages"]]
        name, place = shlex.quote(row.id[:12]), "--board BOARD"
        commands = "\n".join(
            [
                f"robustkit leaderboard verify {name} {place} --level evidence",
                f"robustkit leaderboard verify {name} {place} --level rerun",
                f"robustkit leaderboard challenge {name} {place} --witnesses RUN --by YOU",
            ]
        )
        return self._render(
            "entry.html.j2",
            row=row,
            figures=figures,
            bar=bar,
            weaker=weaker(row, n),
            hidden=percent(row.hidden_at_most, n),
            report=report,
            curve=curve(summary),
            gallery=gallery(entry, data),
            stages=stages,
            diagnostics=[{"status": kind, "check": check, "message": why} for kind, check, why in row.findings],
            history=history,
            commands=commands,
            model_sha256=entry.manifest["model"]["sha256"],
        )

    def compare(self, packed: Sequence[Mapping[str, str]]) -> str:
        document = json.dumps({"n": self.board.definition.n, "entries": list(packed)}, ensure_ascii=True)
        safe = Markup(document.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
        return self._render("compare.html.j2", "compare.js", data=safe, packed=packed)


def _read(name: str) -> str:
    """A file of this package."""
    return (resources.files("robustkit.leaderboard") / name).read_text(encoding="utf-8")


def _row(row: Standing, n: int) -> dict[str, Any]:
    """One row of the table, ready to print."""
    shares = []
    again = "" if row.attacked_again is None else f"{row.attacked_again} of {row.called_robust} attacked again"
    for key, title, optional, under in (
        ("robust_at_least", "robust at least", False, again), ("suite", "submitted", True, ""), ("best_known", "best known", False, ""),
        ("clean", "clean", False, ""), ("certified", "certified", False, weaker(row, n)),
        ("claimed", "claimed", True, "unchecked" if row.claimed is not None else ""),
    ):  # fmt: skip
        value = getattr(row, key)
        shares.append(
            {
                "title": title,
                "value": "" if value is None else repr(value),
                "text": percent(value, n),
                "main": key == "robust_at_least",
                "optional": optional,
                "under": under,
            }
        )
    text = " ".join([row.name, row.paper, row.training_data, row.model, row.id, *row.challengers])
    bound = "" if row.hidden_at_most is None else f"hidden ≤ {percent(row.hidden_at_most, n)}"
    return {**vars(row), "shares": shares, "text": text, "bound": bound, "challengers": ", ".join(row.challengers)}


def weaker(row: Standing, n: int) -> str:
    """The class of guarantee, and what the weaker classes add."""
    parts = [row.guarantee.partition(" ")[0]] if row.guarantee else []
    for name, share in (("statistical", row.certified_statistical), ("conditional", row.certified_conditional)):
        parts += [f"{name} {percent(share, n)}"] if share else []
    return ", ".join(parts)


def _told(event: str, about: Mapping[str, Any]) -> str:
    """A line of the ledger in words."""
    if event == "submit":
        return "submitted; " + ("every witness judged" if about.get("checked") == "evidence" else "digests recorded, not judged yet")
    by, source = (str(about.get(key))[:200] for key in ("by", "source"))
    if event == "challenge":
        return f"challenged by {by} with {source}: {about.get('accepted')} better witnesses of {about.get('tried')} tried"
    if event == "verify" and about.get("level") == "rerun":
        told = f"run again on {about.get('sample')} random samples (seed {about.get('seed')}): "
        told += f"{about.get('hits')} of {about.get('robust')} broke, {about.get('certificates')} certificates computed again"
        told += "; the seed was given by hand, so it does not count for the rank" if about.get("seed_given") is not False else ""
        problems = about.get("problems")
        return (
            told
            if about.get("ok")
            else told + "; it disagreed: " + "; ".join(map(str, problems if isinstance(problems, list) else []))[:500]
        )
    if event == "verify":
        return "every witness judged again"
    return f"{event[:40]} by {by}: {about.get('tried')} tried"
