"""Images and budgets on which attacks are tried in moments."""

from __future__ import annotations

import torch
from torch import Tensor

from robustkit import streams

BUDGETS = {"linf": "linf:0.1", "l2": "l2:0.8", "l1": "l1:6", "l0": "l0:9", "rotation": "rotation:angle=40,shift=1", "flow": "flow:1"}
"""A threat of every family."""


def images(count: int) -> Tensor:
    """(count,1,8,8) random images."""
    return streams.uniform(streams.row_keys(0, "images", torch.arange(count)), (1, 8, 8))
