"""The arithmetic that verdicts rest on: exact fp32, padded batches, budgets without tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

PAD = 16
"""Batches are multiples of this: kernels choose other reductions for other small batch sizes."""


def padded(rows: int, unit: int = PAD) -> int:
    """The next multiple of PAD (or another unit), at least one."""
    return max(unit, -(-rows // unit) * unit)


def whole(images: int) -> int:
    """The fewest rows of so many images each that fill a multiple of PAD."""
    return PAD // math.gcd(PAD, images)


def pad_rows(tensor: Tensor, rows: int) -> Tensor:
    """Repeat the last row until there are `rows` of them."""
    missing = rows - len(tensor)
    return tensor if missing <= 0 else torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])])


@contextmanager
def exact_mode() -> Iterator[None]:
    """fp32 as written: TF32, reduced precision, autocast and cudnn benchmarking off; restored after."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    saved = (torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic)
    reduced = (matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction)
    try:
        torch.set_float32_matmul_precision("highest")
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = False, False, True
        matmul.allow_fp16_reduced_precision_reduction = matmul.allow_bf16_reduced_precision_reduction = False
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(saved[0])
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = saved[1:]
        matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction = reduced


def wide(values: Tensor, like: Tensor) -> Tensor:
    """Values of the leading dimensions of `like`, (R,) or (R,C), with as many dimensions as it has, to combine with it."""
    return values.view(*values.shape, *[1] * (like.dim() - values.dim()))


def choose(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """`yes` in the rows (R,) bool that are marked, `no` in the others; all values finite.

    On the CPU as an interpolation, exact at 0 and 1 and four times as fast as torch.where.
    """
    marked = wide(rows, no)
    return torch.where(marked, yes, no) if no.is_cuda else torch.lerp(no, yes, marked.to(no.dtype))


def overwrite(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """As `choose(rows, new, old)`; on the CPU `old` is written into, which costs the less the fewer rows are marked."""
    return renew(rows, lambda values: values, (new,), old)


def renew(rows: Tensor, make: Callable[..., Tensor], of: tuple[Tensor, ...], old: Tensor) -> Tensor:
    """As `choose(rows, make(*of), old)` for what `make` makes row by row; on the CPU of the marked rows only, written into `old`."""
    if old.is_cuda:
        return choose(rows, make(*of), old)
    at = rows.nonzero()[:, 0]
    return old.index_copy_(0, at, make(*(values.index_select(0, at) for values in of)))


@lru_cache(maxsize=256)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(V,) fixed values, sent to the device once: the host waits for every sending. Never to be written into."""
    return torch.tensor(values, dtype=dtype, device=device)
