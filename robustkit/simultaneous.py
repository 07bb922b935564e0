"""What statistical certificates say of a whole set of images, not of each one alone.

A certificate that may be wrong with probability alpha says little about n of them at once: about
alpha n are wrong. Two statements about all are exact, as every image has draws of its own. With 95 %
confidence no more are wrong than a binomial count of n trials reaches; and by the union bound those
that still hold at alpha / n are all true with confidence 1 - alpha. For the second the same draws are
judged again at alpha / 2, alpha / 4, ...: the first of these that is strict enough is taken, so that
nothing stored depends on n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from robustkit import binomial
from robustkit.core.comparisons import float_below
from robustkit.guarantees import alpha_of, guarantee_class
from robustkit.methods import Certifier
from robustkit.plan import Stage
from robustkit.verdict.evidence import Evidence, Floats


def halvings(alpha: float, share: float) -> int:
    """How often alpha must be halved to be at most `share`."""
    return max(0, math.ceil(math.log2(alpha / share) - 1e-9))


def lower_at_once(evidence: Evidence, stages: Sequence[Stage]) -> tuple[Floats, dict[str, Any]] | None:
    """Radii (N,) that all hold at once, -inf for none, and what is said of them; None without statistical certificates.

    `alpha` is of one image, over all methods; `images` how many were certified at most, `wrong` how many
    certificates at alpha are wrong at most, with 95 % confidence; `confidence` that all radii hold, for
    which certificates at `level` were counted.
    """
    used = [(s, s.method) for s in stages if s.number in evidence.proofs and isinstance(s.method, Certifier)]
    alphas = {str(m.spec): alpha_of(m.guarantee) for _, m in used if guarantee_class(m.guarantee) == "statistical"}
    images = int(evidence.correct.sum())
    if not alphas or not images:
        return None
    total, least = sum(alphas.values()), max(alphas.values())
    share = least / (images * len(alphas))
    found, level = np.full(len(evidence), -np.inf), 0.0
    for stage, method in used:
        if str(method.spec) not in alphas:
            continue
        alpha = alphas[str(method.spec)]
        often = halvings(alpha, share)
        ladder = evidence.stricter.get(stage.number)
        if often == 0:
            radii = evidence.proofs[stage.number][1]
        elif ladder is not None and often <= ladder.shape[1]:
            radii = ladder[:, often - 1]
        else:
            continue
        found, level = np.maximum(found, radii), max(level, alpha / 2**often)
    wrong = binomial.most(images, min(1.0, total), 0.95)
    return found, {"alpha": total, "images": images, "wrong": wrong, "confidence": 1 - least, "level": level}


def simultaneous(radii: Floats, about: dict[str, Any], eps: Fraction) -> dict[str, Any]:
    """What summary.json says of a budget, from `lower_at_once`: `certified` is the share proven there, all at once."""
    return {"certified": float(np.mean(radii >= float_below(eps))), **about}
