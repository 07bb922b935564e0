"""Whether two answers to the same images are the same, but for rounding.

Rounding moves a gap by little more than `core/comparisons.rounding_width`; in deep networks it grows, but it
stays far below the gaps that the model usually has. So differences are measured against both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.core.comparisons import margins, rounding_width, units_in_last_place

DEPTH = 1e-3
"""Share of the usual gap that rounding may take in a deep network; more of it in half precision."""

HALF = 16
"""How many times more."""


def apart(first: Tensor, second: Tensor) -> Tensor:
    """(R,K) float64 differences of two answers; 0 where both are the same infinity or NaN, +inf where only one is."""
    first, second = first.double(), second.double()
    same = (first == second) | (first.isnan() & second.isnan())
    return torch.where(same, 0.0, (first - second).abs().nan_to_num(torch.inf, torch.inf))


@dataclass(frozen=True)
class Answers:
    """A model's answers (R,K) to images, which others to the same images are compared with."""

    logits: Tensor
    half: bool = False
    """Whether weights or logits are of half precision."""

    @property
    def usual(self) -> float:
        """The median gap between the two largest logits, where they are finite."""
        first, second = self.logits.double().topk(2, dim=1).values.unbind(1)
        gaps = (first - second)[torch.isfinite(first) & torch.isfinite(second)]
        return float(gaps.median()) if len(gaps) else 0.0

    def decided_otherwise(self, other: Tensor) -> Tensor:
        """(R,) bool: in which rows another answer (R,K) gives another class, or none, beyond rounding."""
        there, back = self._lost(self.logits, other), self._lost(other, self.logits)
        return there | back

    def _lost(self, first: Tensor, second: Tensor) -> Tensor:
        best = first.nan_to_num(-torch.inf).argmax(1)
        before, after = margins(first, best).double(), margins(second, best).double()
        width = (self._rounding(first) + self._rounding(second)).to(before.device)
        return (before < 0) & (after >= 0) & ((after - before).nan_to_num(0.0, torch.inf) > width)

    def _rounding(self, logits: Tensor) -> Tensor:
        dtype = torch.float16 if self.half else torch.float32
        finite = logits.double().nan_to_num(0.0, 0.0, 0.0)
        return rounding_width(finite, dtype).clamp(min=self._depth)

    @property
    def _depth(self) -> float:
        return DEPTH * (HALF if self.half else 1) * self.usual

    def moved(self, other: Tensor, share: float) -> Tensor:
        """(R,) bool: in which rows a logit differs by more than this share of the usual gap, and more than its own rounding."""
        own = 64 * units_in_last_place(torch.maximum(self.logits.abs(), other.abs()).nan_to_num(0.0, 0.0, 0.0).float())
        most = torch.maximum(own * (HALF if self.half else 1), torch.tensor(share * (4 if self.half else 1) * self.usual))
        return (apart(self.logits, other) > most.to(self.logits.device)).any(1)
