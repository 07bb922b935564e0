"""Summaries that an older robustkit wrote, in the words of today's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OLD_RULE = "judged by the old rule: the same command judges anew"


def upgraded(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary of schema_version 1 in the words of version 2. Its hits had to win by a margin, so that its shares are at most that."""
    found = dict(summary) | {"schema_version": 2, "checked": False, "not_established": OLD_RULE, "open": None}
    found["interval95"] = {**summary["interval95"], "robust_accuracy": None}
    found |= _at_most(summary)
    found["curve"] = [dict(point) | _at_most(point) for point in summary["curve"]]
    found["stages"] = [dict(stage) | _at_most(stage) for stage in summary["stages"]]
    return found


def _at_most(told: Mapping[str, Any]) -> dict[str, Any]:
    return {"robust_accuracy": None, "robust_accuracy_at_most": told["robust_accuracy"]}
