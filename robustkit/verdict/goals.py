"""What counts as a success of the adversary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit import streams
from robustkit.core.comparisons import margins, strictly_largest
from robustkit.errors import unknown

GOALS = ("untargeted", "targeted:next", "targeted:random", "accepted-error")


@dataclass(frozen=True)
class Goal:
    """`untargeted` (any wrong class) or a target class per sample: the `next` one or a `random` one.

    `accepted-error` is for models that reject, whose last logit stands for rejection: a witness must
    be accepted and wrong. For them `untargeted` is the strict figure, where rejection is an error too.
    """

    name: str = "untargeted"

    def __post_init__(self) -> None:
        if self.name not in GOALS:
            raise unknown("goal", self.name, GOALS)

    @property
    def targeted(self) -> bool:
        return self.name.startswith("targeted")

    def targets(self, y: Tensor, index: Tensor, classes: int, seed: int) -> Tensor:
        """(N,) target class per sample, -1 when untargeted; never the label."""
        if not self.targeted:
            return torch.full_like(y, -1)
        if self.name == "targeted:next":
            return (y + 1) % classes
        drawn = streams.integers(streams.row_keys(seed, "goal", index), classes - 1)
        return drawn + (drawn >= y).to(drawn.dtype)

    def seen(self, logits: Tensor, y: Tensor) -> Tensor:
        """(R,K) logits as an attack sees them: for accepted-error, rejection counts as the label."""
        if self.name != "accepted-error":
            return logits
        own = torch.maximum(logits.gather(1, y[:, None]), logits[:, -1:])
        return logits[:, :-1].scatter(1, y[:, None], own)

    def reached(self, logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
        """(R,) bool: whether the adversary has succeeded at logits (R,K) of the model itself, labels y and targets (R,)."""
        return strictly_largest(logits, target) if self.targeted else ~strictly_largest(self.seen(logits, y), y)

    def hit(self, margin: Tensor) -> Tensor:
        """(R,) bool: whether `margin` (R,) says that the adversary has succeeded."""
        return margin > 0 if self.targeted else margin >= 0

    def margin(self, logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
        """(R,) the higher, the nearer to success: at least 0 where `reached` (above 0 when targeted), for searching.

        Logits that are not finite are an error (+inf, untargeted) and no target (-inf, targeted).
        """
        return -margins(logits, target) if self.targeted else margins(self.seen(logits, y), y)
