"""The Judge: the model as deployed, in exact fp32, is the only source of verdicts.

It re-makes every claimed adversarial example from its parameter, compares sizes exactly, and calls an
image right only by the rule of `core/comparisons.py`. Where rounding could have decided, the image is
also asked alone and in float64, and one dissent is an error: other arithmetic may add errors, never
excuse one. A random model is judged by the votes of fresh draws (Cohen et al. 2019, arXiv 1902.02918,
test a prediction so).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit import streams
from robustkit.binomial import at_least
from robustkit.classifier import Classifier
from robustkit.core.comparisons import close_call, strictly_largest, within
from robustkit.memory import in_parts, out_of_memory
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
        """(R,) bool: whether images x (R,C,H,W), whose logits in exact mode are given, are classified as y (R,).

        Of a random model: an exact binomial test at 0.001 rejects that another class has the majority.
        Where it cannot tell, the model abstains, which is not correct.
        """
        if self.classifier.random:
            own = logits.gather(1, y[:, None])[:, 0]
            return self._majority(own, logits.scatter(1, y[:, None], -1.0).amax(1), 0.0005)
        right = strictly_largest(logits, y)
        return right & ~self._dissents(x, right & self._close(logits), lambda found, at: ~strictly_largest(found, y[at]))

    def _close(self, logits: Tensor) -> Tensor:
        return close_call(logits, self.classifier.logits_dtype)

    def _dissents(self, x: Tensor, asked: Tensor, errs: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """(R,) bool: which of the images that are `asked` (R,) err when they are asked alone, or in float64.

        Args:
            errs: (logits (M,K), positions (M,)) -> (M,) bool.
        """
        found = torch.zeros_like(asked)
        at = asked.nonzero()[:, 0]
        if len(at):
            images = x[at].to(self.classifier.device)
            one_by_one = torch.cat([self._alone(image) for image in images[:, None]]).to(asked.device)
            found[at] = errs(one_by_one, at) | errs(self.logits64(images).to(asked.device), at)
        return found

    def _alone(self, image: Tensor) -> Tensor:
        """(1,K) logits of one image in a batch of its own, without padding; padded where the model cannot take one."""
        try:
            with exact_mode():
                return self.classifier.logits(image)
        except Exception as problem:  # a model that needs several rows: the honesty checks speak of it
            if out_of_memory(problem):
                raise
            return self.logits(image)

    def logits64(self, x: Tensor) -> Tensor:
        """(R,K) logits in float64 where the model can compute in it, else as `logits`."""
        return self._padded(self.classifier.logits64, x.to(self.classifier.device))

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
        size = self.threat.size(x, p)
        legal &= within(size, eps)
        if self.classifier.random:
            verified = legal & self._outvoted(logits, y, target)
        else:
            fooled = self.goal.reached(logits, y, target)
            unsure = legal & ~fooled & self._close(self.goal.seen(logits, y))
            verified = legal & (fooled | self._dissents(image, unsure, lambda found, at: self.goal.reached(found, y[at], target[at])))
        return verified, torch.where(verified, size, torch.inf), logits

    def by_rounding(self, x: Tensor, y: Tensor, target: Tensor, p: Tensor) -> Tensor:
        """(R,) bool: which confirmed adversarial examples, of parameters p, float64 does not call errors.

        They stay errors of the model as deployed; but a proof in real arithmetic is not wrong because of them.
        """
        x, p = x.to(self.classifier.device), p.to(self.classifier.device)
        return ~self.goal.reached(self.logits64(self.threat.apply(x, p)).to(y.device), y, target)

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
