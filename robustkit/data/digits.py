"""scikit-learn's handwritten digits: 1797 real 8x8 images that come with the library.

Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI 1998. scikit-learn ships them
without a split, so one is fixed here: within each class, in stored order, every fifth sample
(the 5th, 10th, ...) is the test split, 20 % of every class; the others are the training split.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from robustkit.data.dataset import hash_arrays
from robustkit.data.source import Selection, Source, array_reader, pick_split
from robustkit.errors import Missing
from robustkit.spec import Spec

SPLITS = ("test", "train", "all")


def is_test(y: Tensor) -> Tensor:
    """(L,) bool: the samples of the fixed test split, from all labels (L,) in stored order."""
    rank = torch.empty_like(y)
    for label in range(int(y.max()) + 1):
        members = y == label
        rank[members] = torch.arange(int(members.sum()))
    return rank % 5 == 4


def digits(chosen: Selection, default: str) -> Source:
    """The digits as a Source: 1x8x8, stored values 0..16. Raises Missing without scikit-learn."""
    split = pick_split(chosen.split, default, SPLITS, "digits")
    try:
        bunch = importlib.import_module("sklearn.datasets").load_digits()
    except ImportError as problem:
        raise Missing(f"digits needs scikit-learn ({problem}): pip install scikit-learn") from problem
    values = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    y = torch.from_numpy(bunch.target).to(torch.int64)
    held_back = is_test(y)
    index = torch.arange(len(y)) if split == "all" else torch.nonzero(held_back if split == "test" else ~held_back)[:, 0]
    return Source(
        name="digits",
        head=Spec("digits"),
        origin="digits",
        split=split,
        sha256=hash_arrays(values, y),
        class_names=tuple(str(k) for k in range(10)),
        index=index,
        y=y[index],
        read=array_reader(values[index]),
        scale=16.0,
    )
