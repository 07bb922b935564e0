"""Memory: the same work in smaller batches where it runs out, and no page faults where it does not."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from robustkit.numerics import PAD, padded

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Options of glibc's mallopt."""


@cache
def keep_freed_memory() -> bool:
    """Tell the C library, once for this process, to keep what tensors on the CPU free; whether it could be told.

    By default glibc gives large blocks back to the system at once, and every forward pays for fresh,
    zeroed pages: measured, that is half the time of small networks. Does nothing elsewhere.
    """
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  only glibc has it
        options = ((_MMAP_THRESHOLD, 1 << 25), (_TRIM_THRESHOLD, 1 << 30), (_TOP_PAD, 1 << 26))
        taken = [library.mallopt(option, value) == 1 for option, value in options]
        return all(taken)
    except (OSError, AttributeError):
        return False


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
