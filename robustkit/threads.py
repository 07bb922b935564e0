"""How many threads torch may use: on tiny images they cost more than they save, most of all on a busy machine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

TINY = 256
"""Values in an image up to which one thread is used."""


@contextmanager
def threads_for(shape: tuple[int, ...]) -> Iterator[None]:
    """One thread inside for images (C,H,W) of at most TINY values; as many as before afterwards."""
    before = torch.get_num_threads()
    if before > 1 and math.prod(shape) <= TINY:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
