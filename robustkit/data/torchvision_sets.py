"""MNIST, Fashion-MNIST and CIFAR-10 through torchvision's readers; nothing is ever downloaded here."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robustkit.data.dataset import hash_arrays
from robustkit.data.folders import folder, has_classes
from robustkit.data.roots import bases, find, missing
from robustkit.data.source import Selection, Source, array_reader, pick_split
from robustkit.errors import BadInput, first_line
from robustkit.spec import Spec
from robustkit.torchvision_compat import torchvision

SPLITS = ("test", "train")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_JPEG_NOTE = "images re-encoded from an image folder: accuracies differ a little from those published for the original CIFAR-10"


@dataclass(frozen=True)
class _Known:
    """How torchvision stores one data set under its root."""

    reader: str
    marker: str
    """A file that is there where the set is."""
    class_names: tuple[str, ...]


KNOWN = {
    "mnist": _Known("MNIST", "MNIST/raw/t10k-images-idx3-ubyte", tuple(str(k) for k in range(10))),
    "fashion-mnist": _Known(
        "FashionMNIST",
        "FashionMNIST/raw/t10k-images-idx3-ubyte",
        ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
    "cifar10": _Known("CIFAR10", "cifar-10-batches-py/test_batch", _CIFAR10),
}


def locate(name: str, root: str | Path | None) -> Path | None:
    """The folder that holds a set, as torchvision's root or (cifar10) as an image folder; None if absent."""
    marker = KNOWN[name].marker
    found = find(root, (name,), lambda place: os.path.isfile(place / marker))
    if found is None and name == "cifar10":
        found = find(root, (name, "cifar10-images", "cifar-10"), _is_cifar_tree)
    return found


def known_set(name: str, chosen: Selection, default: str, root: str | Path | None) -> Source:
    """One split of a known set. Raises Missing where it is not found, BadInput where it is damaged."""
    split = pick_split(chosen.split, default, SPLITS, name)
    known = KNOWN[name]
    place = locate(name, root)
    if place is None:
        raise missing(name, root, _expected(name), _cure(name, root))
    if not os.path.isfile(place / known.marker):
        return folder(place / split, name=name, head=Spec(name), origin=f"cifar10-images/{split}", split=split, note=_JPEG_NOTE)
    try:
        read = getattr(torchvision().datasets, known.reader)(str(place), train=split == "train", download=False)
        values, y = _tensors(read.data), torch.as_tensor(read.targets, dtype=torch.int64)
        if len(values) != len(y) or len(y) == 0:
            raise ValueError(f"{len(values)} images, {len(y)} labels")
    except (RuntimeError, ValueError, AssertionError, OSError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as problem:
        line = first_line(problem)
        raise BadInput(f"the data set {name} in {place} is damaged or incomplete ({line}): fetch it again") from problem
    return Source(
        name=name,
        head=Spec(name),
        origin=f"{name}/{split}",
        split=split,
        sha256=hash_arrays(values, y),
        class_names=known.class_names,
        index=torch.arange(len(y)),
        y=y,
        read=array_reader(values),
        scale=255.0,
    )


def _tensors(stored: Any) -> torch.Tensor:
    """(N,C,H,W) uint8 view of torchvision's (N,H,W) tensor or (N,H,W,3) array."""
    values = torch.as_tensor(stored)
    return values[:, None] if values.dim() == 3 else values.permute(0, 3, 1, 2)


def _is_cifar_tree(place: Path) -> bool:
    return all(has_classes(place / split, _CIFAR10) for split in SPLITS)


def _expected(name: str) -> str:
    tree = " or train/<class>/ and test/<class>/ with images" if name == "cifar10" else ""
    return KNOWN[name].marker + tree


def _cure(name: str, root: str | Path | None) -> str:
    packed = [file for base in bases(root) if base.is_dir() for file in sorted(base.glob(f"{name}*.tar*"))]
    if packed:
        return f"unpack {packed[0]} into a folder {name}"
    reader = KNOWN[name].reader
    return f"fetch it once with torchvision.datasets.{reader}(FOLDER, download=True)"
