"""Images that come as arrays: npz files, the user's own (x, y), arrays passed in Python."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustkit.data.checks import channels_first, check_labels, check_values, to_tensor
from robustkit.data.dataset import Data, hash_arrays
from robustkit.data.source import Selection, Source, array_reader, pick_split
from robustkit.errors import BadInput
from robustkit.filetypes import DESCRIBED, content
from robustkit.spec import Spec

_PAIRS = (("x", "y"), ("images", "labels"))
_SPLITS = ("test", "train")


def npz(path: Path, chosen: Selection, default: str) -> Source:
    """An npz file with arrays x and y (or images and labels, or x_test, y_test, x_train, y_train).

    Images are uint8 or floats in [0,1]; (N,H,W), (N,H,W,C) or (N,C,H,W). An optional text array
    class_names names the classes. Pickled arrays are refused. Raises BadInput.
    """
    head = Spec("npz", (str(path),))
    found = content(path)
    if found == "numpy":
        raise BadInput(f"{path} holds a single array: expected an npz file with arrays x and y, written with np.savez")
    if found != "zip":
        raise BadInput(f"{path} {DESCRIBED[found]}: expected an npz file with arrays x and y, written with np.savez")
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            keys, split = _keys(file.files, chosen, default, path)
            x, y = file[keys[0]], file[keys[1]]
            names = tuple(map(str, file["class_names"].tolist())) if "class_names" in file.files else None
    except BadInput:
        raise
    except ValueError as problem:
        if "pickle" in str(problem).lower():
            raise BadInput(
                f"{path} holds pickled objects, which can run code: save plain arrays with np.savez(file, x=x, y=y)"
            ) from problem
        raise BadInput(f"{path} cannot be read ({problem}): expected an npz file with arrays x and y") from problem
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError, NotImplementedError, TypeError, MemoryError) as problem:
        raise BadInput(f"{path} is damaged or no npz file ({type(problem).__name__}: {problem}): write it again with np.savez") from problem
    return from_arrays(x, y, name="npz", head=head, origin="npz" if split is None else f"npz/{split}", split=split, class_names=names)


def from_arrays(
    x: Any,
    y: Any,
    *,
    name: str = "arrays",
    head: Spec | None = None,
    origin: str | None = None,
    split: str | None = None,
    class_names: tuple[str, ...] | None = None,
    find_channels: bool = True,
) -> Source:
    """A Source from images and labels (N,); raises BadInput.

    Args:
        x: (N,H,W), (N,H,W,C) or (N,C,H,W); (N,C,H,W) as it is where find_channels is false.
    """
    try:
        stored = to_tensor(x, "images").cpu()
        values, scale = check_values(channels_first(stored) if find_channels else stored)
        labels = check_labels(to_tensor(y, "labels").cpu(), len(values))
    except BadInput as problem:
        raise BadInput(f"{head or name}: {problem}") from problem
    values = values if values.dtype == torch.uint8 else values.contiguous()
    classes = int(labels.max()) + 1
    if class_names is not None and len(class_names) < classes:
        raise BadInput(f"{head or name}: labels reach {classes - 1} but class_names has {len(class_names)} names")
    return Source(
        name=name,
        head=head or Spec(name),
        origin=origin or name,
        split=split,
        sha256=hash_arrays(values, labels),
        class_names=class_names or tuple(str(k) for k in range(classes)),
        index=torch.arange(len(values)),
        y=labels,
        read=array_reader(values),
        scale=scale,
    )


def as_data(x: Any, y: Any, name: str = "arrays") -> Data:
    """Data from images (N,C,H,W) and labels (N,) passed in Python; raises BadInput.

    Unlike in files, the channels are always second, so any number of them is taken.
    """
    images = to_tensor(x, "images")
    if images.dim() != 4:
        raise BadInput(f"{name}: images have shape {tuple(images.shape)}: expected (N,C,H,W)")
    return from_arrays(images, y, name=name, find_channels=False).select(Selection())


def returned(value: Any, name: str, chosen: Selection) -> Data:
    """Data from what the user's `module:callable` returned: (x, y) or Data. Raises BadInput."""
    if chosen.split is not None:
        raise BadInput(f"{name} has no splits: leave split= out and let the callable return the samples you mean")
    module, _, attribute = name.partition(":")
    head = Spec(module, (attribute,))
    if isinstance(value, Data):
        source = Source(
            name=value.name,
            head=head,
            origin=value.origin,
            split=None,
            sha256=value.sha256,
            class_names=value.class_names,
            index=value.index,
            y=value.y,
            read=array_reader(value.values),
            scale=value.scale,
            note=value.note,
        )
    elif isinstance(value, (tuple, list)) and len(value) == 2:
        source = from_arrays(value[0], value[1], name=name, head=head)
    else:
        raise BadInput(f"{name}() returned {_describe(value)}: expected (x, y), images and labels")
    return source.select(chosen)


def _keys(files: list[str], chosen: Selection, default: str, path: Path) -> tuple[tuple[str, str], str | None]:
    """The names of the two arrays and the split they are, None for a single set."""
    single = next((pair for pair in _PAIRS if set(pair) <= set(files)), None)
    if single is not None:
        if chosen.split is not None:
            raise BadInput(f"{path} is a single set ({single[0]}, {single[1]}) without splits: leave split= out")
        return single, None
    known = tuple(split for split in _SPLITS if {f"x_{split}", f"y_{split}"} <= set(files))
    if not known:
        raise BadInput(f"{path} holds {', '.join(files) or 'no arrays'}: expected x and y, images and labels, or x_test and y_test")
    split = pick_split(chosen.split, default, known, str(path))
    return (f"x_{split}", f"y_{split}"), split


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{len(value)} values" if isinstance(value, (tuple, list)) else type(value).__name__
