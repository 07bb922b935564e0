"""A model under the question of a run: what judges its answers and its adversarial examples again."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from robustkit import streams
from robustkit.batch_size import auto_batch
from robustkit.classifier import Classifier
from robustkit.data import Data
from robustkit.threats import Threat
from robustkit.verdict.evidence import Ints
from robustkit.verdict.goals import Goal
from robustkit.verdict.judge import Judge


class Question(Protocol):
    """What a run was asked besides model and data."""

    @property
    def goal(self) -> str: ...
    @property
    def labels(self) -> str: ...
    @property
    def seed(self) -> int: ...
    def load_threat(self) -> Threat:
        """The threat at its largest budget; raises BadInput."""


@dataclass(frozen=True)
class Asked:
    """The question of one run, its threat already loaded."""

    threat: Threat
    goal: str
    labels: str
    seed: int

    def load_threat(self) -> Threat:
        return self.threat


@dataclass(frozen=True)
class Subject:
    """One model, its data, and the question."""

    question: Question
    classifier: Classifier
    data: Data

    @property
    def judge(self) -> Judge:
        return Judge(self.classifier, self.question.load_threat(), Goal(self.question.goal))

    def fresh_judge(self) -> Judge:
        """For new witnesses: a random model draws from seeds that nobody could know, and has to fail twice."""
        if not self.classifier.random:
            return self.judge
        return FreshJudge(self.classifier, self.question.load_threat(), Goal(self.question.goal))

    def batches(self, count: int) -> Iterator[slice]:
        """Rows to send through the model together."""
        return batches(count, self.data, self.classifier.device)

    def targets(self, label: Tensor) -> Tensor:
        """(N,) target classes of the goal."""
        return Goal(self.question.goal).targets(label, self.data.index, self.classifier.classes or 0, self.question.seed)

    def images(self, at: Ints) -> Tensor:
        return self.data.images(torch.from_numpy(at))


class FreshJudge(Judge):
    """Judges a random model by two votes from secret seeds; the level of both together withstands many tries."""

    def confirm(self, x: Tensor, y: Tensor, target: Tensor, p: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.secret = secrets.randbits(62)
        first, size, logits = super().confirm(x, y, target, p, eps)
        self.secret = secrets.randbits(62)
        second, _, _ = super().confirm(x, y, target, p, eps)
        return first & second, torch.where(first & second, size, torch.inf), logits

    def _votes(self, x: Tensor) -> Tensor:
        x = x.to(self.classifier.device)
        return self.classifier.tally(x, streams.child(streams.content_keys(x), self.secret))


def batches(count: int, data: Data, device: torch.device | str = "cpu") -> Iterator[slice]:
    """Rows of images of this size to work on together."""
    rows = auto_batch(data.shape, torch.device(device))
    return (slice(first, min(count, first + rows)) for first in range(0, count, rows))
