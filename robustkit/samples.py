"""What an attack is run on, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Samples:
    """What an attack is run on: N samples, their images fetched only when their turn comes."""

    index: Tensor
    """(N,) int64 dataset indices."""
    y: Tensor
    """(N,) int64 labels."""
    target: Tensor
    """(N,) int64 classes of the goal, -1 when untargeted."""
    logits: Tensor
    """(N,K) clean logits."""
    eps: Tensor
    """(N,) float64 budgets, rounded down."""
    images: Callable[[Tensor], Tensor]
    """positions (R,) -> (R,C,H,W) float32."""

    def __len__(self) -> int:
        return len(self.index)

    def pick(self, where: Tensor) -> Samples:
        """The samples at positions `where`."""
        return Samples(
            self.index[where], self.y[where], self.target[where], self.logits[where], self.eps[where], lambda at: self.images(where[at])
        )


@dataclass
class Outcome:
    """What the Driver reports of samples that are through with an attack; tensors on the CPU."""

    at: Tensor
    """(M,) positions."""
    success: Tensor
    """(M,) bool, verified by the Judge."""
    size: Tensor
    """(M,) float64, +inf without success."""
    parameters: Tensor
    """(M,...) threat parameters of the candidate."""
    predicted: Tensor
    """(M,) class the model gives the candidate."""
    queries: Tensor
    gradients: Tensor

    def pick(self, where: Tensor) -> Outcome:
        """The outcomes at `where`."""
        return Outcome(**{name: value[where] for name, value in vars(self).items()})

    @staticmethod
    def join(parts: list[Outcome]) -> Outcome:
        """Several groups as one."""
        return Outcome(**{name: torch.cat([getattr(p, name) for p in parts]) for name in vars(parts[0])})
