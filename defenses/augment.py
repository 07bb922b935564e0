"""Random changes of training images, drawn from the images' own keys."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from robustkit import streams


def shifted(x: Tensor, keys: Tensor, pixels: int) -> Tensor:
    """Images (R,C,H,W), each moved by up to `pixels` in either direction of both axes; zeros come in.

    Args:
        keys: (R,) int64, one key per image; the draws depend on nothing else.
    """
    height, width = x.shape[2:]
    down = streams.integers(streams.child(keys, 1), 2 * pixels + 1)
    right = streams.integers(streams.child(keys, 2), 2 * pixels + 1)
    wide = functional.pad(x, (pixels, pixels, pixels, pixels)).permute(0, 2, 3, 1)
    rows = down[:, None] + torch.arange(height, device=x.device)
    columns = right[:, None] + torch.arange(width, device=x.device)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    return wide[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def noisy(x: Tensor, keys: Tensor, sigma: float) -> Tensor:
    """Images (R,C,H,W) plus Gaussian noise of standard deviation `sigma`, not clipped to the box.

    Args:
        keys: (R,) int64, one key per image; the draws depend on nothing else.
    """
    return x + sigma * streams.normal(streams.child(keys, 3), tuple(x.shape[1:]))
