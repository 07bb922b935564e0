"""Classes of guarantees, never mixed in one number, and what a guarantee such as statistical(0.001) says."""

from __future__ import annotations

CLASSES = ("deterministic", "statistical", "conditional")


def guarantee_class(guarantee: str) -> str:
    """The class of a guarantee such as real-arithmetic or statistical(0.001)."""
    head = guarantee.partition("(")[0]
    return head if head in CLASSES else "deterministic"


def alpha_of(guarantee: str) -> float:
    """The probability to err that a guarantee such as statistical(0.001) states; 1 where it states none."""
    try:
        return float(guarantee.partition("(")[2].rstrip(")"))
    except ValueError:
        return 1.0
