"""samples.npz: its columns and their types, read with care, and as the evidence that they were written from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustkit.core.untrusted_files import Archive, Arrays
from robustkit.errors import BadInput
from robustkit.verdict.evidence import Evidence

COLUMNS: dict[str, str] = {
    "index": "i8",
    "label": "i8",
    "predicted": "i8",
    "confidence": "f8",
    "clean_margin": "f8",
    "lower": "f8",
    "lower_statistical": "f8",
    "lower_conditional": "f8",
    "upper": "f8",
    "lower_stage": "i8",
    "upper_stage": "i8",
    "adversarial_class": "i8",
    "radius_covered": "b1",
}
"""Columns of samples.npz and their types."""

ALSO = {"lower_simultaneous": "f8"}
"""Columns that a run may have besides."""

MOST_ROWS = 1 << 21
"""Samples of one run that are read: more would need gigabytes."""

MOST_BYTES = 1 << 29
"""Of samples.npz on disk."""

LARGEST = 10**9
"""No budget and no size is larger."""

_LOWER = ("lower", "lower_statistical", "lower_conditional", "lower_simultaneous")


def read_columns(raw: bytes, where: str) -> Arrays:
    """The columns of a run, each (N,), that agree with one another; raises BadInput. Columns of no known name are left alone."""
    archive = Archive(raw, where)
    absent = [name for name in COLUMNS if name not in archive.names]
    if absent:
        raise BadInput(f"{where} lacks the columns {', '.join(absent)}")
    count = archive.length("index")
    if not 0 < count <= MOST_ROWS:
        raise BadInput(f"{where} has {count} rows: expected one for each sample, at least one and at most {MOST_ROWS}")
    kinds = COLUMNS | {name: kind for name, kind in ALSO.items() if name in archive.names}
    found = {name: archive.array(name, kind, count) for name, kind in kinds.items()}
    for what, wrong in _rules(found):
        if bool(wrong.any()):
            place = int(wrong.argmax())
            raise BadInput(f"{where} contradicts itself: row {place}: {what} ({int(wrong.sum())} such)")
    return found


def _rules(own: Arrays) -> list[tuple[str, NDArray[np.bool_]]]:
    """What no run writes, row by row."""
    upper, lower = own["upper"], own["lower"]
    correct = upper > 0
    rules = [
        ("upper is no size", ~((upper >= 0) & ((upper <= LARGEST) | (upper == np.inf)))),
        ("lower reaches upper, so a certificate is contradicted", correct & (lower >= upper)),
        ("lower is not -inf although the clean answer is wrong", ~correct & (lower != -np.inf)),
        ("lower is below 0 or infinite although the clean answer is right", correct & ~((lower >= 0) & (lower <= LARGEST))),
        ("a class or a stage is no such number", _odd(own, ("label", "predicted", "adversarial_class", "lower_stage", "upper_stage"))),
    ]
    weak = [own[name] for name in _LOWER[1:] if name in own]
    return rules + [("a weaker certificate is no radius", (one != -np.inf) & ~((one >= 0) & (one <= LARGEST))) for one in weak]


def _odd(own: Arrays, names: tuple[str, ...]) -> NDArray[np.bool_]:
    found = np.zeros(len(own[names[0]]), dtype=bool)
    for name in names:
        found |= (own[name] < -1) | (own[name] > 1 << 31)
    return found


def as_evidence(columns: Mapping[str, NDArray[Any]]) -> Evidence:
    """Columns as the evidence they were written from."""
    own = [columns[key] for key in ("index", "label", "predicted", "confidence", "clean_margin")]
    found = Evidence(own[0], own[1], own[2], own[3], own[4], columns["upper"] > 0)
    found.upper, found.upper_stage = columns["upper"], columns["upper_stage"]
    found.adversarial_class, found.radius_covered = columns["adversarial_class"], columns["radius_covered"]
    found.proofs = {0: ("deterministic", np.where(columns["lower"] > 0, columns["lower"], -np.inf))}
    found.proofs |= {n + 1: (kind, columns[f"lower_{kind}"]) for n, kind in enumerate(("statistical", "conditional"))}
    return found
