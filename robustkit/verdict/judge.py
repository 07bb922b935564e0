"""The Judge: the model as deployed, in exact fp32, is the only source of verdicts.

It re-makes every claimed witness from its parameter, and compares sizes exactly. A random model is
judged by the votes of fresh draws (Cohen et al. 2019, arXiv 1902.02918, test a prediction so).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit import streams
from robustkit.binomial import at_least
from robustkit.classifier import Classifier
from robustkit.core.comparisons import clear_margin, margins, within
from robustkit.memory import in_parts
from robustkit.numerics import exact_mode, pad_rows, padded
from robustkit.threats import Threat
from robustkit.verdict.goals import Goal

LEVEL = 1e-4
"""Level of the vote test of one candidate: a few candidates a sample together stay below 1 in 1000."""

_FRESH = 7919
"""Purpose of the Judge's draws, apart from those of every search."""


@dataclass
class Judge:
    """Verdicts about one classifier under one threat family and goal."""

    classifier: Classifier
    threat: Threat
    goal: Goal

    def logits(self, x: Tensor) -> Tensor:
        """(R,K) float32 logits in exact mode, padded so that they do not depend on R.

        Of a random model the shares of its votes, from draws that depend on the image alone and that
        no search has seen.
        """
        if self.classifier.random:
            return self._padded(self._votes, x)
        return self._padded(self.classifier.logits, x)

    def _votes(self, x: Tensor) -> Tensor:
        x = x.to(self.classifier.device)
        return self.classifier.tally(x, streams.child(streams.content_keys(x), _FRESH))

    def correct(self, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """(R,) bool: all logits finite and the label's strictly highest; near ties redone in float64.

        Of a random model: an exact binomial test at 0.001 rejects that another class has the majority.
        Where it cannot tell, the model abstains, which is not correct.
        """
        if self.classifier.random:
            own = logits.gather(1, y[:, None])[:, 0]
            return self._majority(own, logits.scatter(1, y[:, None], -1.0).amax(1), 0.0005)
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
        if self.classifier.random:
            verified = legal & within(size, eps) & self._outvoted(logits, y, target)
            return verified, torch.where(verified, size, torch.inf), logits
        verified = legal & within(size, eps) & ((margin >= clear_margin(logits)) | self._tie(image, y, logits, margin))
        return verified, torch.where(verified, size, torch.inf), logits

    def _outvoted(self, shares: Tensor, y: Tensor, target: Tensor) -> Tensor:
        """(R,) bool: whether the votes reject, in an exact binomial test, that the label (or anything
        but the target) has the majority over its strongest rival."""
        seen = self.goal.seen(shares, y)
        held = target if self.goal.targeted else y
        own = seen.gather(1, held[:, None])[:, 0]
        rival = seen.scatter(1, held[:, None], -1.0).amax(1)
        return self._majority(own, rival, LEVEL) if self.goal.targeted else self._majority(rival, own, LEVEL)

    def _majority(self, more: Tensor, less: Tensor, level: float) -> Tensor:
        """(R,) bool: whether shares of the votes show at this level that the first class beats the second."""
        won, lost = ((v * self.classifier.surface.votes).round().cpu().numpy() for v in (more, less))
        return torch.from_numpy(at_least(won, won + lost, 0.5) <= level).to(more.device)

    def _tie(self, image: Tensor, y: Tensor, logits: Tensor, margin: Tensor) -> Tensor:
        """Untargeted: an exact tie in float32 that stands in float64 is an error too."""
        tie = (margin == 0) & (not self.goal.targeted)
        if bool(tie.any()):
            tie = tie & ~self.correct(image, y, logits)
        return tie
