"""How many rows work together: what a user says, or what fits the machine."""

from __future__ import annotations

from typing import Literal

import torch

from robustkit.errors import BadInput
from robustkit.numerics import PAD, padded

BatchSize = int | Literal["auto"]
Work = Literal["forward", "part", "gradients", "scores"]
"""What rows are together for: one pass through a model; one part of a larger batch, all parts of one size; an attack with
gradients; an attack without."""

_SHARED: dict[str, dict[Work, int]] = {
    "cpu": {"forward": 1, "part": 1, "gradients": 2, "scores": 8},
    "cuda": {"forward": 1, "part": 1, "gradients": 1, "scores": 4},
}
"""By how much they may be more, by device: rows share the cost of every operation of an attack. On the CPU those without
gradients go forward in parts that caches hold, of which every thread has its own."""


_ENOUGH = 96
"""Rows that share the cost of an operation well."""


def auto_batch(shape: tuple[int, ...], device: torch.device, work: Work = "forward", crowd: int = 1) -> int:
    """Rows per batch to start with, for images (C,H,W): what caches (CPU) or memory (GPU) hold comfortably.

    A `crowd` of processes shares the memory, as far as enough rows are left for each.
    """
    gpu, size = device.type == "cuda", max(1, int(torch.Size(shape).numel()))
    most, total = (4096, 1 << 24) if gpu else (192, 600_000)
    shared = _SHARED["cuda" if gpu else "cpu"][work] * (torch.get_num_threads() if work == "part" and not gpu else 1)
    rows = min(shared * most, (1 if gpu else shared) * total // size)
    return max(PAD, min(rows, max(rows // crowd, _ENOUGH)) // PAD * PAD)


def batch_rows(asked: BatchSize, shape: tuple[int, ...], device: torch.device, work: Work = "forward", crowd: int = 1) -> int:
    """Rows per batch for images (C,H,W), of every process: as many as asked for, padded, or what fits."""
    return auto_batch(shape, device, work, crowd) if asked == "auto" else padded(asked)


def check_batch(batch_size: BatchSize) -> None:
    """Raises BadInput unless `auto` or at least 1."""
    if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
        raise BadInput(f"batch size {batch_size!r}: expected auto or a whole number of at least 1")
