"""The table of a board: every figure read off the entries' columns and the accepted challenges."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from robustkit.core.comparisons import float_below
from robustkit.errors import RobustkitError
from robustkit.leaderboard.challenges import Challenge, best_known
from robustkit.leaderboard.files import Arrays
from robustkit.leaderboard.ledger import Ledger
from robustkit.leaderboard.manifest import ID, Entry
from robustkit.spec import number

if TYPE_CHECKING:
    from robustkit.leaderboard.board import Leaderboard

STATES = {
    "re-run": "the verifier has run the suite again on a random subset",
    "evidence": "every witness judged again; robustness not attacked anew",
    "files": "only digests compared",
    "failed": "a re-run disagreed",
    "refuted": "a witness lies inside a certified ball",
    "damaged": "a file was changed or is missing",
}
COLUMNS = (
    "rank", "name", "clean", "certified", "guarantee", "certified_statistical", "certified_conditional",
    "best_known", "suite", "claimed", "state", "hidden_at_most",
    "diagnostics", "surface", "challengers", "paper", "training_data", "model", "submitted", "id",
)  # fmt: skip


@dataclass
class Standing:
    """One row. Shares are None where the entry cannot be read."""

    id: str
    name: str
    submitted: str
    state: str
    rank: int | None = None
    clean: float | None = None
    certified: float | None = None
    guarantee: str = ""
    certified_statistical: float | None = None
    certified_conditional: float | None = None
    """The weaker classes of guarantee, never mixed with the first."""
    best_known: float | None = None
    """Robust accuracy under every known witness."""
    suite: float | None = None
    """Robust accuracy as submitted."""
    claimed: float | None = None
    hidden_at_most: float | None = None
    """Of the samples called robust, the share that the suite would still break, at most (95 %); None before a re-run."""
    diagnostics: str = ""
    surface: str = "none"
    challengers: list[str] = field(default_factory=list)
    paper: str = ""
    training_data: str = ""
    model: str = ""
    problem: str = ""

    def row(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in COLUMNS}


def standings(board: Leaderboard) -> list[Standing]:
    """All entries: re-run ones ranked by best known robust accuracy, then certified accuracy; the others after them."""
    ledger = board.ledger()
    challenges = board.challenges(ledger)
    known = board.submitted(ledger)
    reached = levels(ledger)
    found = [_standing(entry, known[entry.id].time, challenges.get(entry.id, []), reached.get(entry.id, {})) for entry in board.entries()]
    ranked = sorted((one for one in found if one.state == "re-run"), key=_order)
    for place, one in enumerate(ranked):
        same = place > 0 and _order(ranked[place - 1])[:2] == _order(one)[:2]
        one.rank = ranked[place - 1].rank if same else place + 1
    return ranked + sorted((one for one in found if one.state != "re-run"), key=lambda one: one.name.casefold())


def levels(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """Entry id -> what its checks have shown: level, ok, bound. The last re-run counts."""
    found: dict[str, dict[str, Any]] = {}
    for line in ledger.lines:
        about = line.about
        if line.event == "submit":
            found[str(about.get("manifest"))[:ID]] = {"level": "evidence" if about.get("checked") == "evidence" else "files", "ok": True}
        elif line.event == "verify" and str(about.get("entry")) in found:
            held = found[str(about["entry"])]
            if about.get("level") == "rerun":
                bound = about.get("bound")
                held |= {
                    "level": "rerun",
                    "ok": about.get("ok") is True,
                    "bound": bound if isinstance(bound, float) and 0 <= bound <= 1 else None,
                }
            elif held["level"] == "files" and about.get("ok") is True:
                held["level"] = "evidence"
    return found


def _order(one: Standing) -> tuple[float, float, str]:
    return (-(one.best_known or 0.0), -(one.certified or 0.0), one.name.casefold())


def _standing(entry: Entry, time: str, challenges: list[Challenge], reached: dict[str, Any]) -> Standing:
    told = Standing(entry.id, entry.name, time, "damaged")
    try:
        manifest, summary, own = entry.manifest, entry.summary, entry.columns
        upper = best_known(entry, challenges)
    except RobustkitError as problem:
        told.problem = str(problem)
        return told
    budget = float_below(number(entry.definition.eps))
    lower, refuted = certified(own, upper)
    told.clean, told.suite, told.best_known = (float(v.mean()) for v in (own["upper"] > 0, own["upper"] > budget, upper > budget))
    told.certified = float((lower >= budget).mean())
    told.certified_statistical, told.certified_conditional = (
        float(((own[f"lower_{kind}"] >= budget) & (upper > budget)).mean()) for kind in ("statistical", "conditional")
    )
    names = dict.fromkeys(stage["spec"].partition(":")[0] for stage in summary["stages"] if stage["kind"] == "certifier")
    told.guarantee = f"deterministic ({', '.join(names)})"[:80] if told.certified else ""
    level = {"rerun": "re-run"}.get(str(reached.get("level")), str(reached.get("level", "files")))
    told.state = "refuted" if refuted else level if reached.get("ok", True) else "failed"
    told.hidden_at_most = reached.get("bound")
    told.claimed, told.paper, told.training_data = (manifest[key] for key in ("claimed", "paper", "training_data"))
    told.surface = surface(summary)
    told.model = manifest["model"]["spec"]
    told.challengers = list(dict.fromkeys(one.by for one in challenges))
    counts = {kind: sum(one["status"] == kind for one in summary["diagnostics"]) for kind in ("error", "warn")}
    told.diagnostics = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "ok"
    return told


def certified(own: Arrays, upper: np.ndarray) -> tuple[np.ndarray, bool]:
    """(N,) deterministic lower ends that stand, and whether a witness has refuted any: its whole stage falls."""
    lower = own["lower"]
    wrong = (lower > 0) & (lower >= upper)
    fallen = np.isin(own["lower_stage"], np.unique(own["lower_stage"][wrong])) & (lower > 0)
    return np.where(fallen, 0.0, lower), bool(wrong.any())


def surface(summary: Mapping[str, Any]) -> str:
    """`none`, `declared`, or `tested`: the attacks have solved binary tasks with it."""
    if not summary["model"].get("surface"):
        return "none"
    return "tested" if any(one["check"] == "binarisation" and one["status"] == "pass" for one in summary["diagnostics"]) else "declared"


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
            "head": board.ledger().head,
            "entries": [row.row() | {"problem": row.problem} for row in rows],
        },
        indent=1,
    )


def as_csv(rows: Sequence[Standing]) -> str:
    """The table for a spreadsheet; no cell begins like a formula."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in rows:
        cells = one.row() | {"challengers": "; ".join(one.challengers)}
        writer.writerow(_cell(value) for value in cells.values())
    return stream.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t"):
        return "'" + value
    return "" if value is None else value
