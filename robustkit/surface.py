"""What an adversary who knows a defense uses against it: the adaptive surface that a model declares.

A model declares it by an attribute or a method `adaptive_surface` that gives a Surface; without one
it is attacked as it is. Athalye et al. 2018 (arXiv 1802.00420), Tramer et al. 2020 (2002.08347).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from robustkit.errors import BadInput


@dataclass(frozen=True)
class Surface:
    """How a model differs from a plain differentiable function, and what stands in for it.

    `surrogate`, like the model, maps what the model itself is fed to logits (N,K). A random model
    draws anew in every forward, from torch's global generators or, where it has `takes_keys`, from
    the (N,) int64 keys that its forward is handed as second argument. A model that rejects has one
    more logit than there are classes, the last: an input is rejected where that one is the highest.
    """

    surrogate: Callable[[Tensor], Tensor] | None = None
    """Differentiable stand-in: forward as deployed, backward through it (BPDA)."""
    random: Literal["none", "vote", "mean"] = "none"
    """vote: the model's answer is the class that most draws give; mean: the class with the highest mean softmax score."""
    votes: int = 200
    """Draws that the Judge counts; with mean, a draw gives a class drawn from its softmax scores."""
    draws: int = 10
    """Draws that a search averages over (EOT)."""
    soft: bool = False
    """Whether a search averages softmax scores over its draws, instead of losses and logits."""
    rejects: bool = False

    def __post_init__(self) -> None:
        if self.random not in ("none", "vote", "mean"):
            raise BadInput(f"adaptive surface: random is {self.random!r}: expected none, vote or mean")
        if self.votes < 50 or self.draws < 1:
            raise BadInput(f"adaptive surface: votes is {self.votes}, draws {self.draws}: expected at least 50 and 1")

    @property
    def plain(self) -> bool:
        """Whether there is nothing to adapt to."""
        return self.surrogate is None and self.random == "none" and not self.rejects

    def __str__(self) -> str:
        parts = ["surrogate for gradients"] * (self.surrogate is not None)
        parts += [f"random, {self.random} of {self.votes}"] * (self.random != "none") + ["rejects"] * self.rejects
        return ", ".join(parts) or "none"


def pooled(logits: Tensor, draws: int) -> Tensor:
    """(R,K) logarithms of mean softmax scores, from logits (R x draws,K), those of a row one after another."""
    return logits.view(-1, draws, logits.shape[1]).log_softmax(2).logsumexp(1) - math.log(draws)


def picked(logits: Tensor, chance: Tensor) -> Tensor:
    """(R,) class drawn from the softmax scores of logits (R,K), by (R,) numbers uniform on [0,1)."""
    reached = logits.softmax(1).cumsum(1)
    return (reached <= chance[:, None] * reached[:, -1:]).sum(1).clamp_(max=logits.shape[1] - 1)


def surface_of(model: Any) -> Surface:
    """The surface a model declares; raises BadInput where it is none."""
    declared = getattr(model, "adaptive_surface", None)
    if declared is None:
        return Surface()
    found = declared() if callable(declared) and not isinstance(declared, (Surface, nn.Module)) else declared
    if not isinstance(found, Surface):
        raise BadInput(f"adaptive_surface gives {type(found).__name__}: expected a robustkit.Surface")
    return found
