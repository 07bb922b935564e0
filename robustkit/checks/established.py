"""Whether a run has a robust accuracy at all: the one rule that every output goes by.

A share that no attack broke says something about the model only if the attacks could see. Where a check
proves that they could not, or that the model's answer is no function of the image alone, the share is
still an upper bound (`robust_accuracy_at_most`), but no robust accuracy: that is *not established*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BLIND = (
    "zero gradients",
    "unbounded",
    "converged",
    "single step",
    "random noise",
    "choice of loss",
    "smoothed gradients",
    "black box",
    "repeatable",
)
"""Checks that end in an error where the run's attacks missed what others find, or had nothing to follow."""

NO_FUNCTION = ("batch", "state")
"""Checks that end in an error where an image has not one answer: it depends on other images or earlier calls."""


def blinding(diagnostics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the checks that prove the attacks blind: stronger attacks may mend that."""
    return _errors(diagnostics, BLIND)


def not_established(diagnostics: Sequence[Mapping[str, Any]]) -> str:
    """Why a run with these findings ({check, status, message, cure}) has no robust accuracy; "" where it has one."""
    objections = _errors(diagnostics, (*BLIND, *NO_FUNCTION))
    if not objections:
        return ""
    first = next(one for one in diagnostics if one["check"] == objections[0] and one["status"] == "error")
    more = f"; also: {', '.join(objections[1:])}" if len(objections) > 1 else ""
    return f"{objections[0]}: {first['message']}{more}"


def rankable(summary: Mapping[str, Any]) -> bool:
    """Whether a run's robust accuracy may be ranked: there is one, it was checked, and no check objects to anything."""
    if summary.get("robust_accuracy") is None or not summary.get("checked"):
        return False
    return all(one["status"] != "error" for one in summary["diagnostics"])


def _errors(diagnostics: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    return [str(one["check"]) for one in diagnostics if one["status"] == "error" and one["check"] in names]
