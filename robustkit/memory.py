"""What to do when memory runs out: the same work in smaller batches, with the same result."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustkit.numerics import PAD, padded


def out_of_memory(problem: BaseException) -> bool:
    """Whether an exception says that an accelerator or the host has no memory left."""
    text = str(problem)
    return isinstance(problem, (torch.OutOfMemoryError, MemoryError)) or "out of memory" in text or "can't allocate memory" in text


def in_parts(work: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """work(rows), in halves that are multiples of 16 where memory does not hold it in one."""
    try:
        return work(rows)
    except (RuntimeError, MemoryError) as problem:
        if not out_of_memory(problem) or len(rows) <= PAD:
            raise
    half = padded(len(rows) // 2)
    return torch.cat([in_parts(work, rows[:half]), in_parts(work, rows[half:])])
