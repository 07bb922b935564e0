"""What a trained file says of where it came from."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch
from torch import Tensor

from robustkit.data import Data
from robustkit.defenses.recipe import Recipe, typed


def ranges(index: Tensor) -> str:
    """Sorted dataset indices as runs, for example `0-4,7,9-11`."""
    sorted_index = torch.unique(index)
    cuts = (sorted_index.diff() != 1).nonzero()[:, 0] + 1
    runs = [(int(run[0]), int(run[-1])) for run in sorted_index.tensor_split(cuts)]
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def command(recipe: Recipe, data: Data, arch: str | None, seed: int, path: Path) -> str:
    """The command line that makes the same file."""
    words = ["robustkit", "train", str(typed(recipe)), "--data", str(data.spec), *(["--arch", arch] if arch else [])]
    return shlex.join([*words, "--seed", str(seed), "--out", path.name])


def task_of(recipe: Recipe, data: Data, architecture: str, seed: int) -> dict[str, str]:
    """What a file must agree in to be this training's."""
    return {
        "recipe": str(recipe.spec),
        "recipe_version": str(recipe.version),
        "data": str(data.spec),
        "data_sha256": str(data.sha256),
        "trained_digest": str(data.digest),
        "architecture": architecture,
        "seed": str(seed),
    }
