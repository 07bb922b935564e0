"""Evidence: for every sample the interval lower <= robust radius < upper, which only narrows.

Nothing is stored twice: clean = mean(upper > 0), robust accuracy at eps = mean(upper > eps),
certified accuracy at eps = mean(lower >= eps); what lies between is open.

An adversarial example inside a proven ball contradicts the proof, unless it exists by rounding only
(float64 calls it right): then a proof in real arithmetic is not wrong, but it says nothing of this
sample as deployed, and proofs of its kind spare no sample of the run an attack any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from robustkit.core.comparisons import float_below
from robustkit.guarantees import guarantee_class

REAL = "real-arithmetic"

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
    asked64: Bools = field(init=False)
    """Whose smallest witness has been asked in float64."""
    by_rounding: Bools = field(init=False)
    """Whose smallest witness float64 calls right."""
    proofs: dict[int, tuple[str, Floats]] = field(default_factory=dict)
    """Stage -> (guarantee, radius proven per sample)."""
    stricter: dict[int, Floats] = field(default_factory=dict)
    """Statistical stage -> (N,L) radii proven with half, a quarter, ... of its probability to err."""
    suspect: set[int] = field(default_factory=set)
    """Stages whose certificates a judged witness has contradicted."""
    spared: bool = True
    """Whether proofs in real arithmetic spare attacks their samples."""

    def __post_init__(self) -> None:
        count = len(self.index)
        self.upper = np.where(self.correct, np.inf, 0.0)
        self.upper_stage = np.full(count, -1, dtype=np.int64)
        self.adversarial_class = np.full(count, -1, dtype=np.int64)
        self.radius_covered = np.zeros(count, dtype=bool)
        self.asked64 = np.zeros(count, dtype=bool)
        self.by_rounding = np.zeros(count, dtype=bool)

    def __len__(self) -> int:
        return len(self.index)

    def broke(self, at: Ints, size: Floats, stage: int, predicted: Ints) -> None:
        """Judged witnesses of the given sizes at positions `at`."""
        better = size < self.upper[at]
        where = at[better]
        self.upper[where] = size[better]
        self.upper_stage[where] = stage
        self.adversarial_class[where] = predicted[better]
        self.asked64[where] = self.by_rounding[where] = False

    def proved(self, at: Ints, radius: Floats, guarantee: str, stage: int, stricter: Floats | None = None) -> None:
        """Closed balls of the given radii proven free of errors at positions `at`; `stricter` (M,L) as the field."""
        _, held = self.proofs.setdefault(stage, (guarantee, np.full(len(self), -np.inf)))
        np.maximum.at(held, at, radius)
        if stricter is not None:
            less = self.stricter.setdefault(stage, np.full((len(self), stricter.shape[1]), -np.inf))
            less[at] = np.maximum(less[at], stricter)

    def to_ask64(self) -> Ints:
        """Positions whose smallest witness lies inside a proven ball and has not been asked in float64."""
        inside = np.zeros(len(self), dtype=bool)
        for _, held in self._deterministic():
            inside |= held >= self.upper
        return np.flatnonzero(inside & (self.upper_stage >= 0) & ~self.asked64)

    def answered64(self, at: Ints, by_rounding: Bools) -> None:
        """What float64 says of the smallest witnesses at positions `at`."""
        self.asked64[at], self.by_rounding[at] = True, by_rounding
        self.spared = self.spared and not by_rounding.any()

    def lost_by_rounding(self) -> int:
        """Samples that have lost a proof in real arithmetic to a witness by rounding."""
        lost = np.zeros(len(self), dtype=bool)
        for number, (guarantee, held) in self.proofs.items():
            if guarantee == REAL and number not in self.suspect:
                lost |= self.by_rounding & (held >= self.upper)
        return int(lost.sum())

    def contradicted(self) -> list[int]:
        """Stages with a certificate at or above a judged witness; their certificates leave `lower`.

        Statistical certificates may fail at their stated rate and are not counted here; nor are
        proofs in real arithmetic about samples whose witness exists by rounding.
        """
        found = []
        for number, (guarantee, held) in self.proofs.items():
            inside = (held >= self.upper) & ~(self.by_rounding if guarantee == REAL else False)
            if guarantee_class(guarantee) == "deterministic" and bool(inside.any()):
                found.append(number)
        self.suspect.update(found)
        return sorted(found)

    def _deterministic(self) -> list[tuple[int, Floats]]:
        return [(number, held) for number, (guarantee, held) in self.proofs.items() if guarantee_class(guarantee) == "deterministic"]

    def lower_of(self, kind: str, sparing: bool = False) -> tuple[Floats, Ints]:
        """(lower, stage) of one guarantee class; for the deterministic one, 0 where clean and correct.

        With `sparing`, only of the proofs that spare attacks their samples.
        """
        lower = np.where(self.correct, 0.0, -np.inf) if kind == "deterministic" else np.full(len(self), -np.inf)
        stage = np.full(len(self), -1, dtype=np.int64)
        for number, (guarantee, held) in self.proofs.items():
            if guarantee_class(guarantee) != kind or number in self.suspect or (sparing and guarantee == REAL and not self.spared):
                continue
            counts = ~(self.by_rounding & (held >= self.upper)) if guarantee == REAL else True
            higher = (held > lower) & counts
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

    def to_attack(self, eps: Fraction) -> Ints:
        """Positions that an attack at eps is run on: correct, unbroken within eps, and spared by no proof."""
        budget = float_below(eps)
        return np.flatnonzero((self.upper > budget) & (self.lower_of("deterministic", sparing=True)[0] < budget))

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
