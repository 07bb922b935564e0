"""What a name in somebody else's folder may open here, and what it may not.

A folder from elsewhere names its model, its data and its threat. Such a name opens nothing but what comes with
robustkit (`zoo:` models, the known data sets by name) and files inside that very folder. Code needs
`allow_code`. Every other path is opened only where the user names it, with --model or --data.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch
from torch import nn

from robustkit.classifier import Classifier, pick_device
from robustkit.data import Data, load_data
from robustkit.data.load import is_known
from robustkit.errors import BadInput, Missing, first_line
from robustkit.models import load_model, zoo_names
from robustkit.models.architecture import skeleton
from robustkit.models.architectures import from_metadata
from robustkit.models.files import checkpoint_model
from robustkit.models.load import from_user
from robustkit.models.smoothed import smooth_options, smoothed
from robustkit.models.weights import read_checkpoint
from robustkit.models.wrapped import is_wrapper, split, wrapped_model
from robustkit.spec import Spec, Value, parse
from robustkit.usercode import import_named, is_named

MODEL = "model.safetensors"
"""What a model file inside a folder may be called, whatever it was called when it was evaluated."""

HEADER = 1 << 20
"""Bytes that the header of a safetensors file may have."""

MOST_VOTES = 100_000
"""Draws that a smoothed model may ask for to answer one image."""

LARGEST = 1 << 32
"""Bytes that a model file may have."""

ACTIVATIONS = 1 << 27
"""Values that the layers of a submitted network may produce for one image."""


def open_model(spec: str, folder: Path | None, *, device: str = "auto", allow_code: bool = False) -> Classifier:
    """The model that somebody else's folder names.

    Args:
        spec: as the folder has it.
        folder: where a file that it names may lie; None for nowhere.
        allow_code: the user trusts the code that it names.

    Raises:
        Missing: it is code and that is not allowed, or a file elsewhere: the message says what to give.
        BadInput: it is no model, or a damaged one.
    """
    text = spec.strip()
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "zoo":
        return load_model(text, device=pick_device(device))
    if colon and scheme == "smooth":
        inner, smoothing = smooth_options(rest.strip())
        if smoothing.votes > MOST_VOTES:
            raise BadInput(f"the model {_shown(spec)} asks for {smoothing.votes:,} votes an image: at most {MOST_VOTES:,} are counted here")
        return smoothed(open_model(inner, folder, device=device, allow_code=allow_code), smoothing)
    if colon and (is_wrapper(scheme) or is_named(text)):
        if not allow_code:
            raise Missing(f"the model is only named ({_shown(spec)}): give --allow-code if you trust what this name stands for here")
        if not is_wrapper(scheme):
            return from_user(import_named(text, "model"), pick_device(device))
        _, options = split(scheme, rest.strip())
        if any(sign in str(options) for sign in ("/", "\\", "~", "npz", "folder")):
            raise Missing(f"the model {_shown(spec)} names a file: give the whole model with --model")
        return wrapped_model(scheme, rest.strip(), lambda one: open_model(one, folder, device=device, allow_code=True))
    if colon and scheme == "torchvision" and allow_code and "weights" not in rest:
        return load_model(text, device=pick_device(device))
    a_path = not colon or bool(PureWindowsPath(text).drive)
    path = inside(folder, text, PureWindowsPath(text).name, MODEL) if folder is not None and a_path else None
    if path is not None:
        return model_of_bytes(_content(path), text, device)
    raise Missing(f"the model {_shown(spec)} does not come with robustkit and is no file in the folder: give it with --model")


def open_data(spec: str, folder: Path | None, root: str | Path | None, *, allow_code: bool = False) -> Data:
    """The images that somebody else's folder names; arguments and errors as in `open_model`."""
    text = spec.strip()
    scheme, colon, _ = text.partition(":")
    if is_known(scheme):
        return load_data(text, root)
    if colon and scheme == "npz" and folder is not None:
        told = parse(text)
        name = told.items[0] if len(told.items) == 1 else None
        path = inside(folder, name) if isinstance(name, str) else None
        if path is not None:
            return load_data(str(Spec("npz", (str(path.absolute()),), told.options)), root)
    if colon and scheme not in ("npz", "folder") and is_named(text.partition(",")[0]):
        if not allow_code:
            raise Missing(f"the data {_shown(spec)} is made by code: give --allow-code if you trust it")
        return load_data(text, root)
    raise Missing(f"the data {_shown(spec)} does not come with robustkit and is no file in the folder: give it with --data")


def inside(folder: Path, *names: str) -> Path | None:
    """The first of these names that is a regular file inside the folder, None where none is.

    A name is relative and leads down; links, pipes and devices are no files.
    """
    for name in names:
        posix, windows = PurePosixPath(name), PureWindowsPath(name)
        if not name or "\0" in name or posix.is_absolute() or windows.anchor or ".." in (*posix.parts, *windows.parts):
            continue
        path = folder
        for part in Path(name).parts:
            path = path / part
            try:
                mode = path.lstat().st_mode
            except (OSError, ValueError):
                break
            if stat.S_ISLNK(mode):
                break
        else:
            if stat.S_ISREG(mode):
                return path
    return None


def code_in(spec: Spec) -> str:
    """The first text in a method's specification, at any depth, that is no plain word, number or bundled model; "" for none.

    A method that somebody else names may take models or files as options, as transfer:[(os:abort)] would.
    """
    for value in (*spec.items, *spec.options.values()):
        found = _code_in(value)
        if found:
            return found
    return ""


def _code_in(value: Value) -> str:
    if isinstance(value, tuple):
        return next((found for one in value if (found := _code_in(one))), "")
    if isinstance(value, Spec):
        inner = code_in(value)
        return inner or (str(value) if value.name != "zoo" and is_named(str(value)) else "")
    if isinstance(value, str) and value not in zoo_names() and not value.startswith("zoo:"):
        return value if any(sign in value for sign in ":/\\") or os.path.exists(value) else ""
    return ""


def _content(path: Path) -> bytes:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode) or about.st_size > LARGEST:
                raise BadInput(f"{path} is no regular file of at most {LARGEST:,} bytes")
            return file.read(LARGEST + 1)
    except OSError as problem:
        raise BadInput(f"{path} cannot be read ({problem.strerror})") from problem


def affordable(metadata: dict[str, str]) -> None:
    """Raises BadInput where a few small weights ask for enormous intermediate results."""
    text, said = metadata.get("architecture"), metadata.get("input", "")
    shape = [int(part) for part in said.partition(" ")[0].split("x") if part.isdecimal() and len(part) < 7]
    if not text or len(shape) != 3:
        raise BadInput("its metadata lack the architecture or the input, for example '1x28x28 in [0,1]'")
    net, total = skeleton(from_metadata(text, (shape[0], shape[1], shape[2]))).eval(), 0

    def count(_: nn.Module, __: object, out: torch.Tensor) -> None:
        nonlocal total
        total += out.numel()
        if total > ACTIVATIONS:
            raise BadInput(f"it produces more than {ACTIVATIONS:,} intermediate values for one image: too large to be judged")

    for layer in net.modules():
        if not list(layer.children()):
            layer.register_forward_hook(count)
    with torch.no_grad():
        net(torch.empty(1, *shape, device="meta"))


def model_of_bytes(raw: bytes, spec: str, device: str, allowed: Callable[[dict[str, str]], None] = affordable) -> Classifier:
    """A Classifier from the bytes of a safetensors file that a stranger may have made; raises BadInput.

    `allowed` is given the file's metadata before the network is asked anything, and raises where it would cost too much.
    """
    header = int.from_bytes(raw[:8], "little") if len(raw) >= 8 else 0
    if not 2 <= header <= min(HEADER, len(raw) - 8):
        what = "is a Python pickle, which can run code when read" if raw[:1] == b"\x80" else "is no safetensors file"
        raise BadInput(f"the submitted model {what}: nothing of it is read")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL
        path.write_bytes(raw)
        try:
            checkpoint = read_checkpoint(path)
            classifier = checkpoint_model(checkpoint, spec, spec, pick_device(device))  # no larger than its file, and not asked yet
            allowed(checkpoint.metadata)
        except BadInput as problem:
            raise BadInput(f"the submitted model: {str(problem).replace(str(path), MODEL)}") from problem
        except (RuntimeError, TypeError, ValueError, OverflowError, MemoryError, RecursionError) as problem:
            line = first_line(problem)[:120]
            raise BadInput(f"the submitted model cannot be built ({type(problem).__name__}: {line})") from problem
    return classifier


def _shown(text: str) -> str:
    """A name as it can be printed anywhere."""
    return text[:80] if text.isprintable() else ascii(text)[:80]
