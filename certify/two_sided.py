"""Certificates that compare the label with every other class; the base of `pixeldp` and `renyi`.

Both bound how far noise of deviation sigma lets the distribution of the answers of two images at a
distance drift apart, from a lower bound of the label's probability and an upper bound of any other's.
A class drawn from mean scores is an answer as well, so they hold for both ways to aggregate.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustkit.certify.confidence import Drawn
from robustkit.certify.smoothing import SmoothingCertifier
from robustkit.models.smoothed import Smoothing
from robustkit.verdict.evidence import Floats


@dataclass(frozen=True)
class TwoSided(SmoothingCertifier):
    """Radii in l2 under Gaussian noise from both bounds. Fields as in `smoothing`."""

    noises = ("gaussian",)
    threats = ("l2",)

    @staticmethod
    @abstractmethod
    def certified(first: Any, second: Any, sigma: float) -> Floats:
        """l2 radius (R,) for probabilities of the label (at least `first`) and of every other class (at most `second`)."""

    def judged(self, drawn: Drawn, label: NDArray[np.int64], alpha: float, how: Smoothing) -> tuple[Floats, Floats]:
        low, high = drawn.label_and_others(label, alpha)
        return low, self.certified(low, high, how.scale)
