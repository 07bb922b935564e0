"""Evidence: for every sample the interval lower <= robust radius < upper, which only narrows.

Nothing is stored twice: clean = mean(upper > 0), robust accuracy at eps = mean(upper > eps),
certified accuracy at eps = mean(lower >= eps); what lies between is open.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from robustkit.core.comparisons import float_below
from robustkit.guarantees import guarantee_class

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass
class Evidence:
    """Per-sample arrays of one run; every update is monotone, whatever the order."""

    index: Ints
    label: Ints
    predicted: Ints
    confidence: Floats
    clean_margin: Floats
    correct: Bools
    upper: Floats = field(init=False)
    upper_stage: Ints = field(init=False)
    adversarial_class: Ints = field(init=False)
    radius_covered: Bools = field(init=False)
    proofs: dict[int, tuple[str, Floats]] = field(default_factory=dict)
    """Stage -> (guarantee class, radius proven per sample)."""
    stricter: dict[int, Floats] = field(default_factory=dict)
    """Statistical stage -> (N,L) radii proven with half, a quarter, ... of its probability to err."""
    suspect: set[int] = field(default_factory=set)
    """Stages whose certificates a judged witness has contradicted."""

    def __post_init__(self) -> None:
        count = len(self.index)
        self.upper = np.where(self.correct, np.inf, 0.0)
        self.upper_stage = np.full(count, -1, dtype=np.int64)
        self.adversarial_class = np.full(count, -1, dtype=np.int64)
        self.radius_covered = np.zeros(count, dtype=bool)

    def __len__(self) -> int:
        return len(self.index)

    def broke(self, at: Ints, size: Floats, stage: int, predicted: Ints) -> None:
        """Judged witnesses of the given sizes at positions `at`."""
        better = size < self.upper[at]
        where = at[better]
        self.upper[where] = size[better]
        self.upper_stage[where] = stage
        self.adversarial_class[where] = predicted[better]

    def proved(self, at: Ints, radius: Floats, guarantee: str, stage: int, stricter: Floats | None = None) -> None:
        """Closed balls of the given radii proven free of errors at positions `at`; `stricter` (M,L) as the field."""
        _, held = self.proofs.setdefault(stage, (guarantee_class(guarantee), np.full(len(self), -np.inf)))
        np.maximum.at(held, at, radius)
        if stricter is not None:
            less = self.stricter.setdefault(stage, np.full((len(self), stricter.shape[1]), -np.inf))
            less[at] = np.maximum(less[at], stricter)

    def contradicted(self) -> list[int]:
        """Stages with a certificate at or above a judged witness; their certificates leave `lower`.

        Statistical certificates may fail at their stated rate and are not counted here.
        """
        found = [s for s, (kind, held) in self.proofs.items() if kind == "deterministic" and bool((held >= self.upper).any())]
        self.suspect.update(found)
        return sorted(found)

    def lower_of(self, kind: str) -> tuple[Floats, Ints]:
        """(lower, stage) of one guarantee class; for the deterministic one, 0 where clean and correct."""
        lower = np.where(self.correct, 0.0, -np.inf) if kind == "deterministic" else np.full(len(self), -np.inf)
        stage = np.full(len(self), -1, dtype=np.int64)
        for number, (one, held) in self.proofs.items():
            if one == kind and number not in self.suspect:
                higher = held > lower
                lower, stage = np.where(higher, held, lower), np.where(higher, number, stage)
        return lower, stage

    @property
    def lower(self) -> Floats:
        """Deterministic certificates only."""
        return self.lower_of("deterministic")[0]

    def open_at(self, eps: Fraction) -> Ints:
        """Positions that are correct, unbroken within eps and not certified at eps."""
        budget = float_below(eps)
        return np.flatnonzero((self.upper > budget) & (self.lower < budget))

    def clean_accuracy(self) -> float:
        return float(np.mean(self.upper > 0))

    def robust_accuracy(self, eps: Fraction | float) -> float:
        """Share without a witness of size at most eps."""
        return float(np.mean(self.upper > _budget(eps)))

    def certified_accuracy(self, eps: Fraction | float, kind: str = "deterministic") -> float:
        """Share with a certificate of radius at least eps."""
        budget = _budget(eps)
        lower, _ = self.lower_of(kind)
        return float(np.mean(lower >= budget))

    def columns(self) -> dict[str, NDArray[np.generic]]:
        """Everything per sample, as stored in samples.npz."""
        lower, lower_stage = self.lower_of("deterministic")
        return {
            "index": self.index,
            "label": self.label,
            "predicted": self.predicted,
            "confidence": self.confidence,
            "clean_margin": self.clean_margin,
            "lower": lower,
            "lower_statistical": self.lower_of("statistical")[0],
            "lower_conditional": self.lower_of("conditional")[0],
            "upper": self.upper,
            "lower_stage": lower_stage,
            "upper_stage": self.upper_stage,
            "adversarial_class": self.adversarial_class,
            "radius_covered": self.radius_covered,
        }


def _budget(eps: Fraction | float) -> float:
    return float_below(eps) if isinstance(eps, Fraction) else eps
