"""Ordinary training on cross-entropy: the undefended twin that every defense is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from robustkit.defenses.recipe import Minibatch, Objective, Recipe


@dataclass(frozen=True)
class Standard(Recipe):
    """Minimises the cross-entropy of clean images."""

    name = "standard"

    def bind(self, network: nn.Module) -> Objective:
        def loss(batch: Minibatch) -> Tensor:
            return functional.cross_entropy(network(batch.x), batch.y)

        return loss
