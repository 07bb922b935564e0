"""The Judge: the model as deployed, in exact fp32, is the only source of verdicts.

It re-makes every claimed witness from its parameter, and compares sizes exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.classifier import Classifier
from robustkit.goals import Goal
from robustkit.memory import in_parts
from robustkit.numerics import clear_margin, exact_mode, margins, pad_rows, padded, within
from robustkit.threats import Threat


@dataclass
class Judge:
    """Verdicts about one classifier under one threat family and goal."""

    classifier: Classifier
    threat: Threat
    goal: Goal

    def logits(self, x: Tensor) -> Tensor:
        """(R,K) float32 logits in exact mode, padded so that they do not depend on R."""
        return self._padded(self.classifier.logits, x)

    def correct(self, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """(R,) bool: all logits finite and the label's strictly highest; near ties redone in float64."""
        margin = margins(logits, y)
        near = torch.isfinite(margin) & (margin.abs() < clear_margin(logits))
        if bool(near.any()):
            where = near.nonzero()[:, 0]
            redone = self._padded(self.classifier.logits64, x[where].to(self.classifier.device)).to(margin.device)
            margin = margin.double().index_put((where,), margins(redone, y[where]))
        return margin < 0

    def _padded(self, logits: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with exact_mode():
            return in_parts(lambda rows: logits(pad_rows(rows, padded(len(rows))))[: len(rows)], x)

    def confirm(self, x: Tensor, y: Tensor, target: Tensor, p: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Check claimed witnesses.

        Args:
            x, y, target: (R,...) clean images, labels, target classes.
            p: (R,...) threat parameters.
            eps: (R,) float64 budgets, rounded down; +inf where only the size is wanted.
        Returns:
            verified (R,) bool, size (R,) float64 (+inf where not verified), logits (R,K).
        """
        x, p = x.to(self.classifier.device), p.to(self.classifier.device)
        image = self.threat.apply(x, p)
        legal = torch.isfinite(image).flatten(1).all(1) & torch.isfinite(p).flatten(1).all(1)
        legal &= ((image >= 0) & (image <= 1)).flatten(1).all(1)
        logits = self.logits(image)
        margin = self.goal.margin(logits, y, target)
        size = self.threat.size(x, p)
        verified = legal & within(size, eps) & ((margin >= clear_margin(logits)) | self._tie(image, y, logits, margin))
        return verified, torch.where(verified, size, torch.inf), logits

    def _tie(self, image: Tensor, y: Tensor, logits: Tensor, margin: Tensor) -> Tensor:
        """Untargeted: an exact tie in float32 that stands in float64 is an error too."""
        tie = (margin == 0) & (not self.goal.targeted)
        if bool(tie.any()):
            tie = tie & ~self.correct(image, y, logits)
        return tie
