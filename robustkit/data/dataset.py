"""Labelled images, kept as small as they came and handed out as float32 in [0,1]."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Data:
    """N labelled images; unpacks to x (N,C,H,W) float32 in [0,1] and y (N,) int64.

    8-bit images stay 8-bit; `images` converts the rows that are asked for, so memory does not grow
    with what is handed out.
    """

    spec: str
    """Canonical specification, defaults and the number of samples written out."""
    name: str
    """The set: digits, mnist, ..., npz, folder, or the module:callable."""
    origin: str
    """The space that `index` counts in, for example mnist/test."""
    sha256: str
    """Hash of everything that `index` can point to: of the stored arrays, or of the image files."""
    class_names: tuple[str, ...]
    index: Tensor
    """(N,) int64 stored dataset indices."""
    y: Tensor
    """(N,) int64 labels, 0..classes-1."""
    values: Tensor
    """(N,C,H,W) uint8 or float32, as stored."""
    scale: float = 1.0
    """What stored values are divided by: 255 for 8-bit images, 16 for the digits, 1 for floats."""
    note: str = ""
    """What has to be said beside any figure measured on it; mostly empty."""

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C,H,W) of one image."""
        channels, height, width = self.values.shape[1:]
        return channels, height, width

    @property
    def eight_bit(self) -> bool:
        """Whether every value is a whole number of 255ths."""
        return self.values.dtype == torch.uint8 and self.scale == 255

    @property
    def x(self) -> Tensor:
        """All images (N,C,H,W) float32 in [0,1]."""
        return self.images()

    @property
    def digest(self) -> str:
        """Hex sha256 of which images these are: origin, source hash and indices, in order."""
        made = hashlib.sha256(f"{self.origin}\n{self.sha256}\n".encode())
        made.update(self.index.numpy().astype("<i8").tobytes())
        return made.hexdigest()

    def images(self, where: Tensor | slice | None = None) -> Tensor:
        """The images (R,C,H,W) float32 in [0,1] at positions `where` (int64, a bool mask or a slice); all by default."""
        rows = self.values if where is None else self.values[where]
        if rows.dtype == torch.float32:
            return rows.contiguous()
        return rows.to(torch.float32, memory_format=torch.contiguous_format).div_(self.scale)

    def subset(self, positions: Tensor | slice) -> Data:
        """The samples at `positions` (int64, a bool mask or a slice), which keep their dataset indices."""
        return replace(self, index=self.index[positions], y=self.y[positions], values=self.values[positions])

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Tensor]:
        yield self.x
        yield self.y

    def __repr__(self) -> str:
        return f"Data({self.spec}, n={len(self)}, shape={self.shape}, classes={self.classes})"


def hash_arrays(values: Tensor, y: Tensor) -> str:
    """sha256 of stored images (N,C,H,W) and labels (N,), the same whatever their memory layout."""
    made = hashlib.sha256(f"{values.dtype} {tuple(values.shape)}\n".encode())
    for start in range(0, len(values), 1024):
        made.update(np.ascontiguousarray(values[start : start + 1024].numpy()).data)
    made.update(y.numpy().astype("<i8").tobytes())
    return made.hexdigest()
