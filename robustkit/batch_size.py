"""How many rows work together: what a user says, or what fits the machine."""

from __future__ import annotations

from typing import Literal

import torch

from robustkit.errors import BadInput
from robustkit.numerics import PAD, padded

BatchSize = int | Literal["auto"]


def auto_batch(shape: tuple[int, ...], device: torch.device, *, backward: bool = True) -> int:
    """Rows per batch to start with: what caches (CPU) or memory (GPU) hold comfortably.

    Without backward more: on the CPU eight times as many, which go forward in parts and share the cost of every other operation.
    """
    size, gpu = max(1, int(torch.Size(shape).numel())), device.type == "cuda"
    most, total = (4096, 1 << 24) if gpu else (192, 600_000)
    if not backward:
        most, total = (4 * most, total) if gpu else (8 * most, 8 * total)
    return max(PAD, min(most, total // size) // PAD * PAD)


def batch_rows(asked: BatchSize, shape: tuple[int, ...], device: torch.device, *, backward: bool = True) -> int:
    """Rows per batch for images (C,H,W): as many as asked for, padded, or what fits."""
    return auto_batch(shape, device, backward=backward) if asked == "auto" else padded(asked)


def check_batch(batch_size: BatchSize) -> None:
    """Raises BadInput unless `auto` or at least 1."""
    if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
        raise BadInput(f"batch size {batch_size!r}: expected auto or a whole number of at least 1")
