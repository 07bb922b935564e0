"""A network that logs who asks it what, and the counts that follow from the log."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.core.comparisons import margins


@dataclass
class Call:
    """One forward of the model: who was in it, and whether the point was adversarial."""

    tags: list[int]
    errors: list[bool]
    with_gradient: bool


class Counting(nn.Module):
    """Logs every forward. The first value of an image names its sample: steps of 0.01, and a budget of 0.004."""

    def __init__(self, labels: Tensor) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.net = nn.Linear(15, 4)
        with torch.no_grad():
            self.net.bias.copy_(-0.5 * self.net.weight.sum(1))
        self.labels = labels
        self.log: list[Call] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Counting:
        return self

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        logits: Tensor = self.net(flat[:, 1:]) * 3
        tags = (flat[:, 0].detach() * 100).round().long()
        margin = margins(logits.detach(), self.labels[tags])
        self.log.append(Call(tags.tolist(), (margin >= 0).tolist(), logits.requires_grad))
        return logits


def counted(count: int = 90) -> tuple[Counting, Tensor, Tensor]:
    x = 0.45 + 0.1 * torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    x[:, 0, 0, 0] = torch.arange(count) / 100
    module = Counting(torch.zeros(100, dtype=torch.int64))
    y = module(x).argmax(1)
    module.labels[:count] = y
    module.log.clear()
    return module, x, y


def expected_counts(log: list[Call], count: int, iterations: int, *, never: bool = False) -> tuple[list[int], list[int], list[int]]:
    """Queries and gradients per sample as the definition has them, and all forwards with it in them.

    A query is a row through the forward after the clean check. Padding repeats a row of the same
    call, and a row that is through may stay in its batch for a while: neither counts.
    """
    queries, gradients, forwards = Counter[int](), Counter[int](), Counter[int]()
    attempt_steps, hit = Counter[int](), set[int]()
    for call in log:
        for tag in set(call.tags):
            forwards[tag] += 1
            if not call.with_gradient:
                queries[tag] += 1  # the Judge's confirmation
                attempt_steps[tag] = 0
                continue
            if attempt_steps[tag] >= iterations or (tag in hit and not never):
                continue  # lingers
            attempt_steps[tag] += 1
            queries[tag] += 1
            gradients[tag] += 1
            if any(error for error, name in zip(call.errors, call.tags) if name == tag):
                hit.add(tag)
    every = range(count)
    return [queries[i] for i in every], [gradients[i] for i in every], [forwards[i] for i in every]
