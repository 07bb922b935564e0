"""The table of a board: every figure read off the entries' columns, the accepted challenges and the verifier's re-runs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from robustkit.core.comparisons import float_below
from robustkit.core.plain_text import harmless, skeleton
from robustkit.errors import RobustkitError
from robustkit.leaderboard.challenges import Challenge, known_sizes
from robustkit.leaderboard.figures import certificates, certified, figures, guarantee, state_of
from robustkit.leaderboard.ledger import Ledger
from robustkit.leaderboard.manifest import ID, Entry
from robustkit.leaderboard.rerun_record import reruns_of
from robustkit.spec import number

if TYPE_CHECKING:
    from robustkit.leaderboard.board import Leaderboard

STATES = {
    "re-run": "the verifier has run the suite again on random samples; only these entries are ranked",
    "evidence": "every witness judged again; robustness not attacked anew",
    "files": "only digests compared",
    "old rule": "judged by the old rule of what is wrong, and not run again since",
    "not established": "the attacks were blind or unchecked: there is a bound, and no robust accuracy",
    "check failed": "an honesty check of the verifier's re-run ended in an error",
    "failed": "a re-run disagreed",
    "refuted": "a witness lies inside a certified ball",
    "damaged": "a file was changed or is missing",
}
CAUTION = (
    "The images of this board are public, so a model may have been built from them, and no check can see that: "
    "the figures are about these images only."
)
COLUMNS = (
    "rank", "name", "robust_at_least", "attacked_again", "suite", "best_known", "clean", "certified", "guarantee",
    "certified_statistical", "certified_conditional", "certified_submitted", "claimed", "state", "note", "hidden_at_most",
    "diagnostics", "surface", "challengers", "paper", "training_data", "model", "submitted", "id",
)  # fmt: skip


@dataclass
class Standing:
    """One row. Shares are None where the entry cannot be read, or nobody but its submitter has computed them."""

    id: str
    name: str
    submitted: str
    state: str
    rank: int | None = None
    robust_at_least: float | None = None
    """What entries are ranked by: the lower end of what all re-runs together leave; see ranking.py. None before a re-run."""
    attacked_again: int | None = None
    """s: different samples called robust that re-runs attacked again."""
    called_robust: int | None = None
    """U: samples called robust."""
    clean: float | None = None
    certified: float | None = None
    """As computed again in re-runs, the lower end for all samples, of deterministic certificates; None before a re-run."""
    guarantee: str = ""
    certified_statistical: float | None = None
    certified_conditional: float | None = None
    """The weaker classes of guarantee, never mixed with the first."""
    certified_submitted: float | None = None
    """Deterministic certificates as submitted, without those that a witness has refuted."""
    best_known: float | None = None
    """Robust accuracy under every known witness, an upper end."""
    suite: float | None = None
    """Robust accuracy as submitted."""
    claimed: float | None = None
    hidden_at_most: float | None = None
    """Of the samples called robust, the share that the suite would still break, at most (95 %); None before a re-run."""
    diagnostics: str = ""
    """Honesty checks of the re-runs that did not pass; empty before a re-run: the submission's own are not believed."""
    findings: list[tuple[str, str, str]] = field(default_factory=list)
    """(status, check, message) of these."""
    surface: str = ""
    """none or declared, as the verifier saw it; empty before a re-run."""
    challengers: list[str] = field(default_factory=list)
    paper: str = ""
    training_data: str = ""
    model: str = ""
    note: str = ""
    """Why there is no rank, or what else a reader has to know."""
    problem: str = ""

    def row(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in COLUMNS}


def standings(board: Leaderboard) -> list[Standing]:
    """All entries: re-run ones ranked by what re-runs leave of their robust accuracy, then of their certificates; the others after them."""
    ledger = board.ledger()
    challenges = board.challenges(ledger)
    known = board.submitted(ledger)
    reached = levels(ledger)
    found, names = [], dict[str, str]()
    for entry in board.entries():
        told = _standing(entry, known[entry.id].time, challenges.get(entry.id, []), reached.get(entry.id, "files"), ledger)
        first = names.setdefault(skeleton(entry.name), entry.id)
        told.note = told.note if first == entry.id else _join(told.note, f"its name looks like that of entry {first[:10]}")
        found.append(told)
    ranked = sorted((one for one in found if one.state == "re-run"), key=_order)
    for place, one in enumerate(ranked):
        same = place > 0 and _order(ranked[place - 1])[:2] == _order(one)[:2]
        one.rank = ranked[place - 1].rank if same else place + 1
    return ranked + sorted((one for one in found if one.state != "re-run"), key=lambda one: one.name.casefold())


def levels(ledger: Ledger) -> dict[str, str]:
    """Entry id -> `files` or `evidence`: how far its checks short of a re-run have come."""
    found: dict[str, str] = {}
    for line in ledger.lines:
        about = line.about
        if line.event == "submit":
            found[str(about.get("manifest"))[:ID]] = "evidence" if about.get("checked") == "evidence" else "files"
        elif line.event == "verify" and str(about.get("entry")) in found and about.get("ok") is True:
            found[str(about["entry"])] = "evidence"
    return found


def _order(one: Standing) -> tuple[float, float, str]:
    return (-(one.robust_at_least or 0.0), -(one.certified or 0.0), one.name.casefold())


def _standing(entry: Entry, time: str, challenges: list[Challenge], level: str, ledger: Ledger) -> Standing:
    told = Standing(entry.id, entry.name, time, "damaged")
    try:
        manifest, summary, record, own = entry.manifest, entry.summary, entry.record, entry.columns
        upper, real = known_sizes(entry, challenges)
    except RobustkitError as problem:
        told.problem = str(problem)
        return told
    budget = float_below(number(entry.definition.eps))
    reruns = reruns_of(ledger, entry.id, len(upper))
    lower, refuted = certified(own, upper, real)
    told.clean, told.suite, told.best_known = (float(v.mean()) for v in (own["upper"] > 0, own["upper"] > budget, upper > budget))
    told.certified_submitted = float((lower >= budget).mean())
    told.claimed, told.paper, told.training_data = (manifest[key] for key in ("claimed", "paper", "training_data"))
    told.model = manifest["model"]["spec"]
    told.challengers = list(dict.fromkeys(one.by for one in challenges))
    if reruns.count:
        figures(told, reruns, own["upper"] > budget, upper <= budget)
        certificates(told, reruns, own, lower, upper, budget)
        told.guarantee = guarantee(summary, own["lower_stage"], reruns.held["deterministic"]) if told.certified else ""
        told.surface = reruns.surface
        told.findings = [(kind, check, why) for kind in ("error", "warn") for check, why in reruns.findings(kind).items()]
        counts = {kind: sum(status == kind for status, _, _ in told.findings) for kind in ("error", "warn")}
        told.diagnostics = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "ok"
    told.state, told.note = state_of(level, record, summary, reruns, refuted)
    if told.state == "not established":
        told.robust_at_least = told.best_known = told.suite = None
    return told


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def as_json(board: Leaderboard, rows: Sequence[Standing]) -> str:
    """The whole table as one document."""
    definition = board.definition
    about = {
        "board": definition.title,
        "data": definition.data["spec"],
        "n": definition.n,
        "threat": definition.threat,
        "eps": definition.eps,
    }
    return json.dumps(
        {
            **about,
            "suite": definition.suite,
            "caution": CAUTION,
            "head": board.ledger().head,
            "entries": [row.row() | {"problem": row.problem} for row in rows],
        },
        indent=1,
    )


def as_csv(rows: Sequence[Standing]) -> str:
    """The table for a spreadsheet; no cell begins like a formula, none holds what a screen obeys."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in rows:
        cells = one.row() | {"challengers": "; ".join(one.challengers)}
        writer.writerow(_cell(value) for value in cells.values())
    return stream.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return "" if value is None else value
    shown = harmless(value)
    return "'" + shown if shown.lstrip()[:1] in ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20") else shown
