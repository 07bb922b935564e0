"""Image folders: DIR/<class>/*.png, or DIR/test/<class>/ and DIR/train/<class>/.

Only what is asked for is decoded, by several threads, into one uint8 array. `index` counts as
torchvision's ImageFolder does (classes and files in alphabetical order); pick=first walks the
classes in turn, so that the first n images are balanced.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustkit.data.source import Selection, Source, pick_split
from robustkit.errors import BadInput
from robustkit.spec import Spec

S = TypeVar("S")
T = TypeVar("T")
SPLITS = ("test", "train")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_GRAY = ("1", "L")
_EIGHT_BIT = (*_GRAY, "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB")
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True)
class _Seen:
    """What the first look at an image file found, without decoding it."""

    sha256: bytes
    size: tuple[int, int]
    mode: str


def image_folder(path: Path, chosen: Selection, default: str) -> Source:
    """A folder named by the user, with or without train/ and test/. Raises BadInput."""
    head = Spec("folder", (str(path),))
    known = tuple(split for split in SPLITS if _class_folders(path / split))
    if known:
        split = pick_split(chosen.split, default, known, str(path))
        return folder(path / split, name="folder", head=head, origin=f"folder/{split}", split=split)
    if chosen.split is not None:
        raise BadInput(f"{path} has no folders train/ and test/: leave split= out")
    return folder(path, name="folder", head=head, origin="folder", split=None)


def folder(path: Path, *, name: str, head: Spec, origin: str, split: str | None, note: str = "") -> Source:
    """The Source of one tree path/<class>/**/image; every image must have the same size. Raises BadInput."""
    classes = _class_folders(path)
    files = [(file, label) for label, one in enumerate(classes) for file in _images(path / one)]
    if not files:
        raise BadInput(f"{path} holds no images: expected one folder per class with {', '.join(_SUFFIXES[:3])}, ... files")
    empty = [one for label, one in enumerate(classes) if not any(found == label for _, found in files)]
    if empty:
        raise BadInput(f"{path}: class folder {empty[0]!r} holds no images: remove it or fill it")
    seen = _parallel(_look, [file for file, _ in files])
    first = seen[0]
    for (file, _), one in zip(files, seen):
        if one.size != first.size:
            sizes = f"{one.size[0]}x{one.size[1]} pixels, {files[0][0]} {first.size[0]}x{first.size[1]}"
            raise BadInput(f"{file} is {sizes}: all images must have one size; resize them")
    gray = all(one.mode in _GRAY for one in seen)
    made = hashlib.sha256()
    for (file, _), one in zip(files, seen):
        made.update(file.relative_to(path).as_posix().encode() + b"\0" + one.sha256)
    y = torch.tensor([label for _, label in files])
    order = _round_robin(y)

    def read(where: Tensor | None) -> Tensor:
        chosen = (order if where is None else order[where]).tolist()
        return _decode([files[k][0] for k in chosen], gray, first.size)

    return Source(
        name=name,
        head=head,
        origin=origin,
        split=split,
        sha256=made.hexdigest(),
        class_names=tuple(classes),
        index=order,
        y=y[order],
        read=read,
        scale=255.0,
        note=note,
    )


def has_classes(path: Path, names: tuple[str, ...]) -> bool:
    """Whether a folder holds exactly these class folders."""
    return path.is_dir() and _class_folders(path) == list(names)


def _class_folders(path: Path) -> list[str]:
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _images(path: Path) -> list[Path]:
    return [
        Path(folder) / file
        for folder, _, names in sorted(os.walk(path, followlinks=True))
        for file in sorted(names)
        if file.lower().endswith(_SUFFIXES)
    ]


def _round_robin(y: Tensor) -> Tensor:
    """Positions ordered by (rank within the class, class), from labels (L,) sorted by class."""
    counts = torch.bincount(y)
    rank = torch.arange(len(y)) - (counts.cumsum(0) - counts)[y]
    return torch.argsort(rank, stable=True)


def _look(file: Path) -> _Seen:
    try:
        raw = file.read_bytes()
        with Image.open(BytesIO(raw)) as image:
            size, mode = image.size, image.mode
    except _BROKEN as problem:
        raise _damaged(file, problem) from problem
    if mode not in _EIGHT_BIT:
        raise BadInput(f"{file} is no 8-bit image (mode {mode}): convert it to 8 bits per channel")
    return _Seen(hashlib.sha256(raw).digest(), size, mode)


def _decode(files: list[Path], gray: bool, size: tuple[int, int]) -> Tensor:
    """(R,C,H,W) uint8 of the files, in order."""
    channels = 1 if gray else 3
    out = np.empty((len(files), channels, size[1], size[0]), dtype=np.uint8)

    def one(position: int) -> None:
        file = files[position]
        try:
            with Image.open(file) as image:
                pixels = np.asarray(image.convert("L" if gray else "RGB"))
        except _BROKEN as problem:
            raise _damaged(file, problem) from problem
        out[position] = pixels.reshape(size[1], size[0], channels).transpose(2, 0, 1)

    _parallel(one, range(len(files)))
    return torch.from_numpy(out)


def _damaged(file: Path, problem: Exception) -> BadInput:
    return BadInput(f"{file} cannot be read as an image ({problem}): replace or remove it")


def _parallel(work: Callable[[S], T], items: Iterable[S]) -> list[T]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, items))
