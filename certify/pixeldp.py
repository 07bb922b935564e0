"""PixelDP, Lecuyer et al. 2019, https://arxiv.org/abs/1802.03471: a radius from differential privacy.

Gaussian noise of deviation sigma makes the network's scores (e, d)-differentially private for inputs
within L = sigma e / sqrt(2 ln(1.25/d)), e at most 1; the answer cannot change where the label's mean
score exceeds exp(2e) times any other's plus (1 + exp(e)) d. This holds for any scores in [0,1]: the
paper's softmax scores (`aggregate=mean`), bounded by their mean and variance, and votes, which are
scores of 0 and 1 and are counted. Here d is searched, not fixed beforehand: the bounds on the means
do not depend on it. Over the same draws as `smoothing`, whose radius is never smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustkit.certify.two_sided import TwoSided
from robustkit.verdict.evidence import Floats

_DELTAS = np.logspace(-12, -0.5, 116)


def pixeldp_radius(first: Any, second: Any, sigma: float) -> Floats:
    """l2 radius (R,) for probabilities of the label (at least `first`) and of every other class (at most `second`)."""
    p, q = (np.asarray(v, dtype=np.float64)[..., None] for v in (first, second))
    low, high = np.zeros(np.broadcast_shapes(p.shape, _DELTAS.shape)), np.ones(np.broadcast_shapes(p.shape, _DELTAS.shape))

    def holds(e: Floats) -> NDArray[np.bool_]:
        return p > np.exp(2 * e) * q + (1 + np.exp(e)) * _DELTAS

    possible = holds(low)
    low = np.where(holds(high), high, low)
    for _ in range(40):
        middle = (low + high) / 2
        good = holds(middle)
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    found = np.where(possible, sigma * low / np.sqrt(2 * np.log(1.25 / _DELTAS)), 0.0)
    return np.asarray(found.max(-1) * (1 - 1e-12))


@dataclass(frozen=True)
class PixelDP(TwoSided):
    """Radii of a smoothed classifier by differential privacy, never above those of `smoothing`. Fields as there."""

    name = "pixeldp"
    paper = "Lecuyer et al. 2019"
    certified = staticmethod(pixeldp_radius)
