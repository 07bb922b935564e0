"""What a row of the table says of an entry: its figures, and what keeps it from a rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from robustkit.core.comparisons import RULE
from robustkit.leaderboard.files import Arrays
from robustkit.leaderboard.ranking import hidden_share, lower_end
from robustkit.leaderboard.rerun_record import Reruns
from robustkit.verdict.evidence import Bools, Floats, Ints

if TYPE_CHECKING:
    from robustkit.leaderboard.standings import Standing


def figures(told: Standing, reruns: Reruns, called: Bools, broken: Bools) -> None:
    """The figure of the rank, from what was called robust and what is broken by now (N,)."""
    again, fell = reruns.again & called, reruns.fell & called
    called = called & ~(broken & ~again)
    most, tried, lost = (int(where.sum()) for where in (called, again, fell))
    told.called_robust, told.attacked_again = most, tried
    told.robust_at_least = lower_end(len(called), most, tried, lost, gone=int((broken & again & ~fell).sum()))
    told.hidden_at_most = 0.0 if most == tried else hidden_share(tried, lost)


def certificates(told: Standing, reruns: Reruns, own: Arrays, lower: Floats, upper: Floats, budget: float) -> None:
    """The lower ends of certified accuracy: what re-runs computed again, and what that says of the rest."""
    radii = {"deterministic": lower} | {kind: own[f"lower_{kind}"] for kind in ("statistical", "conditional")}
    for kind, key in zip(radii, ("certified", "certified_statistical", "certified_conditional")):
        claimed = (radii[kind] >= budget) & (upper > budget)
        again, held = claimed & reruns.drawn, claimed & reruns.held[kind]
        lost = int((again & ~held).sum())
        setattr(told, key, lower_end(len(lower), int(claimed.sum()), int(again.sum()), lost))


def guarantee(summary: Mapping[str, Any], stage: Ints, held: Bools) -> str:
    """Whose certificates were computed again."""
    stages = summary["stages"]
    used = [stages[one]["spec"].partition(":")[0] for one in np.unique(stage[held]).tolist() if 0 <= one < len(stages)]
    return f"deterministic ({', '.join(dict.fromkeys(used))})"[:80]


def state_of(level: str, record: Mapping[str, Any], summary: Mapping[str, Any], reruns: Reruns, refuted: bool) -> tuple[str, str]:
    """What keeps an entry from a rank, worst first, and why in words; `re-run` where nothing does."""
    old = "judged by the old rule" if _rule(record) < RULE else ""
    errors = reruns.findings("error")
    if refuted:
        return "refuted", ""
    if reruns.problems:
        return "failed", reruns.problems[0][:300]
    if summary.get("not_established") or summary.get("robust_accuracy", 0.0) is None:
        return "not established", f"not established: {summary.get('not_established') or 'the run says so'}"[:300]
    if "robust accuracy" in errors:
        return "not established", errors["robust accuracy"]
    if errors:
        return "check failed", "; ".join(f"{check}: {why}" for check, why in errors.items())[:300]
    if not reruns.count:
        return ("old rule", old) if old else (level, "")
    if not reruns.checked:
        return "not established", "the honesty checks of the re-run were not made"
    return "re-run", f"the submission was {old}; what it leaves open was judged by the new one" if old else ""


def _rule(record: Mapping[str, Any]) -> int:
    """The version of the rule that a run was judged by."""
    found = record["specification"].get("judge", 1)
    return found if isinstance(found, int) else 1


def certified(own: Arrays, upper: Floats, real: Floats | None = None) -> tuple[Floats, bool]:
    """(N,) deterministic lower ends that stand, and whether a witness has refuted any: its whole stage falls.

    A witness by rounding only (in `upper` (N,), not in `real` (N,)) takes away the certificate of its own sample and refutes none.
    """
    lower = own["lower"]
    wrong = (lower > 0) & (lower >= (upper if real is None else real))
    fallen = np.isin(own["lower_stage"], np.unique(own["lower_stage"][wrong])) & (lower > 0)
    return np.where(fallen | ((lower > 0) & (lower >= upper)), 0.0, lower), bool(wrong.any())
