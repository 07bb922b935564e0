"""What images and labels must look like, and one clear line for each way they do not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustkit.errors import BadInput

_CHANNELS = (1, 3)
_WANTED = "expected uint8 0..255 or floats in [0,1]"


def check_images(x: Any, y: Any = None) -> tuple[Tensor, Tensor | None]:
    """Images and labels as a user passes them in Python, made fit for the engine.

    Args:
        x: (N,C,H,W) tensor or array, uint8 0..255 or floats in [0,1].
        y: (N,) whole-number labels, or None.

    Returns:
        x as float32 in [0,1] on its own device, y as int64 on the same device (None stays None).

    Raises:
        BadInput: empty, another number of dimensions, NaN, out of the box, labels that do not fit.
    """
    values = to_tensor(x, "images")
    if values.dim() != 4:
        raise BadInput(f"images have shape {tuple(values.shape)}: expected (N,C,H,W)")
    values, scale = check_values(values)
    values = values.to(torch.float32).div(scale) if scale != 1 else values
    return values, None if y is None else check_labels(y, len(values)).to(values.device)


def check_values(values: Tensor) -> tuple[Tensor, float]:
    """Stored images (N,C,H,W) as uint8 or float32, and what to divide them by; raises BadInput."""
    if values.numel() == 0:
        raise BadInput(f"the data is empty: images have shape {tuple(values.shape)}; at least one image is needed")
    if values.dtype == torch.uint8:
        return values, 255.0
    if not values.is_floating_point():
        span = "" if values.is_complex() else " with values from {:g} to {:g}".format(*(v.item() for v in torch.aminmax(values.double())))
        raise BadInput(f"images are {_name(values.dtype)}{span}: {_WANTED}; convert them first")
    low, high = (v.item() for v in torch.aminmax(values))
    if math.isnan(low):
        raise BadInput(f"images hold {int(torch.isnan(values).sum())} NaN values: {_WANTED}")
    if low < 0 or high > 1:
        cure = "divide by 255" if low >= 0 and 1 < high <= 255 else "undo the normalisation and give mean/std to the model"
        raise BadInput(f"images have values from {low:g} to {high:g}: {_WANTED}; {cure}")
    return values.to(torch.float32), 1.0


def check_labels(y: Any, count: int) -> Tensor:
    """Labels (N,) or (N,1) as int64; raises BadInput."""
    labels = to_tensor(y, "labels")
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dim() != 1:
        raise BadInput(f"labels have shape {tuple(labels.shape)}: expected (N,), one class number per image (no one-hot rows)")
    if len(labels) != count:
        raise BadInput(f"{count} images but {len(labels)} labels: expected one label per image")
    whole = labels if labels.is_floating_point() or labels.is_complex() else labels.to(torch.int64)
    if whole.dtype != torch.int64:
        if whole.is_complex() or bool((whole != whole.round()).any()) or not bool(torch.isfinite(whole).all()):
            raise BadInput(f"labels are {_name(labels.dtype)} and not whole: expected whole numbers 0..classes-1")
        whole = whole.to(torch.int64)
    if len(whole) and int(whole.min()) < 0:
        raise BadInput(f"labels reach down to {int(whole.min())}: expected whole numbers 0..classes-1")
    return whole


def to_tensor(array: Any, what: str) -> Tensor:
    """A detached tensor from a tensor, an array or nested lists; raises BadInput."""
    if isinstance(array, Tensor):
        return array.detach()
    try:
        found = np.asarray(array)
        if found.dtype.kind in "OSUV":
            raise TypeError(f"array of {found.dtype.name or found.dtype.kind}")
        found = found.astype(found.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(found if found.flags.writeable and _plain(found) else found.copy())
    except (TypeError, ValueError) as problem:
        raise BadInput(f"{what} cannot be read as numbers ({problem}): expected a tensor or an array") from problem


def channels_first(values: Tensor) -> Tensor:
    """Images (N,C,H,W) from (N,H,W), (N,H,W,C) or (N,C,H,W), a view; raises BadInput where it is ambiguous."""
    shape = tuple(values.shape)
    if values.dim() == 3:
        return values[:, None]
    if values.dim() != 4:
        raise BadInput(f"images have shape {shape}; expected (N,H,W), (N,H,W,C) or (N,C,H,W)")
    first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS
    if first and last:
        raise BadInput(f"in shape {shape} the channels may be second or last; store images larger than 3 pixels or as (N,H,W)")
    if not first and not last:
        raise BadInput(f"images have shape {shape}; expected 1 or 3 channels, second or last")
    return values if first else values.permute(0, 3, 1, 2)


def _plain(array: Any) -> bool:
    return all(step >= 0 for step in array.strides)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
