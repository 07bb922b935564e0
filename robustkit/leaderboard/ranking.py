"""The figure that entries are ranked by: what is left of their robust accuracy after all re-runs, at the lower end.

A submission cannot be trusted to hold every adversarial example its attacks found. A re-run attacks
some of the samples called robust again. Of those we know the truth about the suite; of the others we
know, with 95 % confidence, at most which share would fall as well. So leaving adversarial examples
out never pays, repeating a re-run can only find more and narrow the bound, and one of all samples
leaves nothing to be bounded.
"""

from __future__ import annotations

from robustkit import binomial
from robustkit.errors import BadInput

CONFIDENCE = 0.95


def hidden_share(again: int, fell: int, confidence: float = CONFIDENCE) -> float:
    """At most this share of the samples not attacked again would fall too (one-sided Clopper-Pearson bound of `fell` of `again`)."""
    if not 0 <= fell <= again:
        raise BadInput(f"{fell} of {again} samples fell: expected a number from 0 to {again}")
    if again == fell:
        return 1.0
    return 1 - float(binomial.lower_bound(again - fell, again, 1 - confidence))


def lower_end(total: int, called: int, again: int, fell: int, gone: int = 0) -> float:
    """((s - h) + (U - s) (1 - c)) / n: the share of all samples that stays, at the lower end.

    Args:
        total: n, all samples of the board.
        called: U, those called robust in the submission and not broken since by anybody but a re-run.
        again: s of these, different ones, that re-runs attacked again.
        fell: h of these that a re-run ever broke.
        gone: of the s - h survivors, those that a challenger has broken: they bound nothing, and are not robust.

    Raises BadInput where the numbers contradict each other.
    """
    if not 0 <= fell + gone <= again <= called <= total or total < 1 or gone < 0:
        raise BadInput(f"{total} samples, {called} called robust, {again} attacked again, {fell} + {gone} fell: that cannot be")
    left = 0.0 if called == again else (called - again) * (1 - hidden_share(again, fell))
    return (again - fell - gone + left) / total
