"""The additive-noise certificate of Li et al. 2019, https://arxiv.org/abs/1809.03113: a radius from Renyi divergence.

Two images at distance L differ under Gaussian noise by a Renyi divergence of a L^2 / (2 sigma^2)
at order a; the answer cannot change while that is below -log(1 - p - q + 2 m), where p and q bound the
probabilities of the label and of any other class and m is their power mean of exponent 1 - a. The
best order is searched. Mean softmax scores (`aggregate=mean`) are the probabilities of a class drawn
from them, which is the answer that the divergence is of. Over the same draws as `smoothing`, whose radius is never smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from robustkit.certify.two_sided import TwoSided
from robustkit.verdict.evidence import Floats

_ORDERS = 1 + np.logspace(-3, 3, 301)


def renyi_radius(first: Any, second: Any, sigma: float) -> Floats:
    """l2 radius (R,) for probabilities of the label (at least `first`) and of every other class (at most `second`)."""
    p, q = (np.clip(np.asarray(v, dtype=np.float64)[..., None], 1e-300, 1) for v in (first, second))
    power = 1 - _ORDERS
    mean = np.exp((np.logaddexp(power * np.log(p), power * np.log(q)) - np.log(2)) / power)
    inside = np.clip(1 - p - q + 2 * mean, 1e-300, 1)
    found = np.sqrt(-2 * sigma**2 / _ORDERS * np.log(inside)).max(-1)
    return np.where(p[..., 0] > q[..., 0], found * (1 - 1e-9), 0.0)


@dataclass(frozen=True)
class Renyi(TwoSided):
    """Radii of a smoothed classifier by Renyi divergence, never above those of `smoothing`. Fields as there."""

    name = "renyi"
    paper = "Li et al. 2019"
    certified = staticmethod(renyi_radius)
