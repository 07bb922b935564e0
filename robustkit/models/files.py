"""Models that are files: safetensors, and with --allow-code torch.export and TorchScript archives."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path

import torch

from robustkit.classifier import Classifier
from robustkit.core.untrusted_files import read_file
from robustkit.errors import BadInput, first_line
from robustkit.filetypes import content
from robustkit.models.architecture import output_shape, skeleton
from robustkit.models.architectures import Shape, from_metadata
from robustkit.models.archives import exported, torchscript
from robustkit.models.weights import Checkpoint, fill, read_checkpoint

SUFFIXES = (".safetensors", ".pt2", ".pt", ".pth", ".ts", ".bin", ".ckpt", ".pkl", ".onnx", ".h5")
_LONGEST = 100_000
"""Characters of mean and std."""

_INPUT = re.compile(r"\s*(\d{1,6})x(\d{1,6})x(\d{1,6})(\s+in\s+\[0(?:\.0)?,\s*1(?:\.0)?\])?\s*")


def file_model(path: Path, spec: str, device: str | torch.device, allow_code: bool) -> Classifier:
    """The Classifier in a file; raises BadInput for what it is not, in words."""
    if path.is_dir():
        raise BadInput(f"{path} is a folder: expected a model file such as model.safetensors")
    kind = content(path)
    if kind not in ("torchscript", "exported"):
        return checkpoint_model(read_checkpoint(path), spec, str(path), device)
    what = "TorchScript" if kind == "torchscript" else "torch.export"
    if not allow_code:
        raise BadInput(f"{path} is a {what} archive, whose loader can run code: give --allow-code (allow_code=True) if you trust it")
    raw = read_file(path.resolve(), 1 << 40)
    sha256 = hashlib.sha256(raw).hexdigest()
    load = torchscript if kind == "torchscript" else exported
    try:
        module, shape = load(raw, device)
    except BadInput:
        raise
    except Exception as problem:
        line = first_line(problem)
        raise BadInput(
            f"{path}: the {what} archive cannot be loaded ({type(problem).__name__}: {line}): save it with this torch"
        ) from problem
    return Classifier(module, input_shape=shape, device=device, spec=spec, sha256=sha256, metadata={"format": what})


def checkpoint_model(checkpoint: Checkpoint, spec: str, where: str, device: str | torch.device) -> Classifier:
    """A Classifier from weights and their metadata; raises BadInput where they do not belong together."""
    metadata = checkpoint.metadata
    text = metadata.get("architecture")
    if not text:
        raise BadInput(
            f"{where} has no `architecture` in its metadata: save it with robustkit.models.save_model, "
            "or build the network in your own module:callable"
        )
    try:
        shape = _input_shape(metadata.get("input"))
        text = from_metadata(text, shape)
        net = skeleton(text).eval()
        classes = _classes(text, shape, metadata.get("classes"))
        mean, std = (_numbers(metadata.get(key), key, shape) for key in ("mean", "std"))
    except BadInput as problem:
        raise BadInput(f"{where}: {problem}") from problem
    fill(net, checkpoint.tensors, where)
    return Classifier(
        net, mean=mean, std=std, classes=classes, input_shape=shape, device=device, spec=spec, sha256=checkpoint.sha256, metadata=metadata
    )


def _input_shape(text: str | None) -> Shape | None:
    if text is None:
        return None
    found = _INPUT.fullmatch(text)
    if not found:
        raise BadInput(
            f"input = {text[:80]!r}: expected CxHxW in [0,1], for example '1x28x28 in [0,1]'; put other ranges into mean and std"
        )
    channels, height, width = (int(found.group(k)) for k in (1, 2, 3))
    return channels, height, width


def _classes(text: str, shape: Shape | None, said: str | None) -> int | None:
    """Number of logits, from the architecture where the input is known, checked against the metadata."""
    found = None
    if shape is not None:
        out = output_shape(text, shape)
        if len(out) != 1 or out[0] < 2:
            raise BadInput(f"architecture {text!r} gives outputs {out} for one image: expected at least 2 logits")
        found = out[0]
    if said is None:
        return found
    text = said.strip()
    if not (text.isascii() and text.isdecimal() and len(text) <= 6 and int(text) >= 2):
        raise BadInput(f"classes = {said[:40]!r}: expected a whole number from 2 to 999999")
    if found is not None and int(text) != found:
        raise BadInput(f"classes = {text!r} but the architecture has {found} outputs")
    return int(text)


def _numbers(text: str | None, key: str, shape: Shape | None) -> list[float] | None:
    """mean or std: one finite value, or one per channel; std above 0."""
    if text is None:
        return None
    if len(text) > _LONGEST:
        raise BadInput(f"{key} has {len(text)} characters: expected one number, or one per channel")
    try:
        values = [float(part) for part in text.strip().strip("[]()").split(",")]
    except ValueError as problem:
        raise BadInput(f"{key} = {text!r}: expected numbers separated by commas") from problem
    if not all(math.isfinite(v) and (key == "mean" or v > 0) for v in values):
        raise BadInput(f"{key} = {text!r}: expected finite numbers{' above 0' if key == 'std' else ''}")
    if shape is not None and len(values) not in (1, shape[0]):
        raise BadInput(f"{key} has {len(values)} values, the input {shape[0]} channels: expected one per channel")
    return values
