"""Small data sets, as arrays and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def small_arrays(n: int = 12, shape: tuple[int, ...] = (8, 8), seed: int = 0) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) % 3


def saved_npz(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return f"npz:{path}"


def cifar_tree(root: Path) -> None:
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    random = np.random.default_rng(0)
    for split, each in (("train", 3), ("test", 2)):
        for name in names:
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(each):
                Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{k}.png")
