"""The task of Elsayed et al. 2019, https://arxiv.org/abs/1806.11146: how many squares does an image show?

Images of 4 x 4 cells, 1 to 10 of them with a white square in the middle (the paper: black ones on white);
which ones is random. Made by a formula, so any number of them is there without a download.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from robustkit import streams
from robustkit.data import Data, as_data
from robustkit.errors import BadInput

GRID, MOST = 4, 10


def counting_squares(count: int = 2000, cell: int = 3, split: str = "train", seed: int = 0) -> Data:
    """Labelled images (N,1,4 cell,4 cell), label k for k + 1 squares; the splits are drawn apart.

    (There are only 16 images of one square: such an image occurs in both.)

    Raises BadInput for a cell below 2 pixels or no images.
    """
    if count < 1 or cell < 2:
        raise BadInput(f"counting-squares: n is at least 1 and a cell at least 2 pixels wide, found n={count}, cell={cell}")
    index = torch.arange(count)
    keys = streams.row_keys(seed, f"counting-squares/{split}", index)
    y = streams.integers(keys, MOST)
    rank = streams.uniform(streams.child(keys, 1), (GRID * GRID,)).argsort(1).argsort(1)
    shown = (rank <= y[:, None]).view(count, 1, GRID, GRID)
    inside = torch.zeros(cell, cell)
    inside[: cell - 1, : cell - 1] = 1.0
    x = shown.float().repeat_interleave(cell, 2).repeat_interleave(cell, 3) * inside.repeat(GRID, GRID)
    spec = f"counting-squares:n={count},cell={cell},split={split},seed={seed}"
    return replace(as_data(x, y), spec=spec, name="counting-squares", class_names=tuple(str(k + 1) for k in range(MOST)))
