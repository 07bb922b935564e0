"""What the ledger keeps of a re-run, and what all re-runs of an entry say together.

A re-run counts for the rank only if its seed was drawn (not given by hand), it was judged by today's
rule, and it says which samples it attacked. What one re-run found no later one takes back.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robustkit.core.comparisons import RULE
from robustkit.guarantees import CLASSES
from robustkit.leaderboard.ledger import Ledger, Line
from robustkit.verdict.evidence import Bools

CERTAIN = ("batch", "state", "repeatable", "train mode", "contradiction")
"""Honesty checks that sampling does not make fail: one such error in any re-run stands for good."""


def as_text(where: Bools) -> str:
    """(N,) bool as text for the ledger: one bit a sample, in base64."""
    return base64.b64encode(np.packbits(where).tobytes()).decode()


def from_text(text: Any, count: int) -> Bools | None:
    """(N,) bool again; None where the text is not of so many samples."""
    if not isinstance(text, str) or len(text) > 4 * (count // 6 + 2):
        return None
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    bits = np.unpackbits(np.frombuffer(raw, np.uint8)).astype(bool)
    return bits[:count] if len(bits) == -(-count // 8) * 8 and not bits[count:].any() else None


@dataclass
class Reruns:
    """All re-runs of one entry of N samples together."""

    drawn: Bools
    """Samples that any of them drew."""
    again: Bools
    """Of these, those that it attacked while they were called robust."""
    fell: Bools
    """Of these, those that any of them broke."""
    held: dict[str, Bools]
    """Class of guarantee -> samples whose certificate at the board's budget was computed again and held."""
    count: int = 0
    """How many re-runs count."""
    problems: list[str] = field(default_factory=list)
    """What disagreed with the submission."""
    surface: str = ""
    """`none` or `declared`, as the verifier's own look at the model had it; empty before that."""
    weights: dict[tuple[str, str], int] = field(default_factory=dict)
    """(status, check) -> samples of the re-runs in which a check did not pass."""
    told: dict[tuple[str, str], str] = field(default_factory=dict)
    """(status, check) -> its last message."""
    checked: int = 0
    """Samples of the re-runs in which the honesty checks were made to the end."""

    @classmethod
    def none(cls, count: int) -> Reruns:
        """Of an entry that nobody has run again."""
        no = np.zeros(count, dtype=bool)
        return cls(no, no.copy(), no.copy(), {kind: no.copy() for kind in CLASSES})

    def findings(self, status: str) -> dict[str, str]:
        """Check -> message, of those that ended in `status` and count.

        A check looks at few samples and may fail by chance: it counts where the re-runs that made it
        fail drew at least half of all samples that were drawn. So one small re-run condemns nobody
        for good, and repeating does not wash a failure away.
        """
        heavy = {check for (kind, check), size in self.weights.items() if kind == status and (check in CERTAIN or 2 * size >= self.checked)}
        return {check: self.told[status, check] for check in sorted(heavy)}


def reruns_of(ledger: Ledger, entry: str, count: int) -> Reruns:
    """What the re-runs in the ledger say of an entry of `count` samples. Lines that cannot be read count nothing."""
    found, old = Reruns.none(count), []
    for line in _of(ledger.lines, entry):
        told = line.about
        problems = told.get("problems")
        said = [str(one) for one in problems] if isinstance(problems, list) else []
        said = said or ([] if told.get("ok") is True else ["a re-run disagreed"])
        maps = {key: from_text(told.get(key), count) for key in ("drawn", "again", "fell")}
        rule = told.get("judge")
        if any(one is None for one in maps.values()) or not isinstance(rule, int) or rule < RULE:
            old += said
            continue
        found.problems += said
        if told.get("seed_given") is False:
            _add(found, told, maps["drawn"], maps["again"], maps["fell"], count)
    if not found.count:
        found.problems += old
    return found


def _of(lines: Iterable[Line], entry: str) -> Iterable[Line]:
    return (line for line in lines if line.event == "verify" and line.about.get("level") == "rerun" and line.about.get("entry") == entry)


def _add(found: Reruns, told: Mapping[str, Any], drawn: Any, again: Any, fell: Any, count: int) -> None:
    """One more re-run that counts."""
    found.count += 1
    found.drawn |= drawn
    found.again |= again & drawn
    found.fell |= fell & again & drawn
    held = told.get("held")
    for kind in CLASSES:
        bits = from_text(held.get(kind), count) if isinstance(held, dict) else None
        if bits is not None:
            found.held[kind] |= bits & drawn
    if told.get("surface") in ("none", "declared"):
        found.surface = str(told["surface"])
    size = int(drawn.sum())
    if told.get("checked") is not False:
        found.checked += size
    checks = told.get("checks")
    for one in checks if isinstance(checks, list) else []:
        if isinstance(one, dict) and one.get("status") in ("error", "warn"):
            key = (str(one["status"]), str(one.get("check"))[:60])
            found.weights[key] = found.weights.get(key, 0) + size
            found.told[key] = str(one.get("message"))[:500]
