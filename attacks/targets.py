"""Which classes an attack aims at when nobody says."""

from __future__ import annotations

import torch
from torch import Tensor


def likeliest_wrong(logits: Tensor, y: Tensor, attempt: Tensor, count: int) -> Tensor:
    """(R,) one of the `count` likeliest classes but the label for each row, the next one at each attempt (R,)."""
    order = logits.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
    return order.gather(1, (attempt % min(count, logits.shape[1] - 1))[:, None])[:, 0]
