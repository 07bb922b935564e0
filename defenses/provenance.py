"""What a trained file says of where it came from."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import torch
from torch import Tensor

from robustkit.data import Data, load_data
from robustkit.defenses.recipe import Recipe, typed
from robustkit.errors import BadInput


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


def source(data: str) -> str:
    """The data that the specification in a trained file takes its images from, without options."""
    return re.split("[:,]n=", data)[0]


def held_back(data: str, most: int, root: str | Path | None) -> str:
    """Up to `most` images of the test split of the data that a file was trained on; raises BadInput, Missing where there is none."""
    unseen = re.sub(r"n=\d+,split=train", "split=test", data)
    if unseen == data:
        raise BadInput(f"{data} is not a training split: nothing is held back from it")
    return unseen.replace("split=test", f"n={min(most, len(load_data(unseen, root)))},split=test")


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
