"""A network, images and budgets that tests are done with in moments."""

from __future__ import annotations

import torch
from torch import Tensor

from robustkit import streams

SMALL = "conv(1,4,3,s2,p1)-relu-flatten-linear(64,10)"
"""A network for ten classes of 1x8x8 images."""

BUDGETS = {"linf": "linf:0.1", "l2": "l2:0.8", "l1": "l1:6", "l0": "l0:9", "rotation": "rotation:angle=40,shift=1", "flow": "flow:1"}
"""A threat of every family."""


def images(count: int) -> Tensor:
    """(count,1,8,8) random images."""
    return streams.uniform(streams.row_keys(0, "images", torch.arange(count)), (1, 8, 8))
