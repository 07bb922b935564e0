"""Checkpoints: safetensors files that say what network they belong to.

Metadata: `architecture` (see models/architecture.py, or zoo-arch:NAME), `input` ("1x28x28 in [0,1]"),
`classes`, `mean` and `std` (comma-separated, one value per channel or one for all), and anything
else as text. Reading runs no code.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor, nn

from robustkit.core.files import sweep, write_atomic
from robustkit.core.untrusted_files import check_header, read_file
from robustkit.core.untrusted_json import parse
from robustkit.errors import BadInput
from robustkit.filetypes import DESCRIBED, content
from robustkit.models.architecture import output_shape, skeleton

_CONVERT = (
    "convert it where you trust it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors', "
    "metadata={'architecture': ..., 'input': '1x28x28 in [0,1]'})"
)


LONGEST_HEADER = 1 << 25
"""Bytes that the header of a model file may have: enough for 100,000 tensors."""


def _memory() -> int:
    """Bytes of memory that this machine has: no larger file is read."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 40


@dataclass(frozen=True)
class Checkpoint:
    """A safetensors file as read."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    sha256: str
    """Of the very bytes that were read, taken before they were looked into."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a safetensors file; raises BadInput for anything else, in words."""
    found = content(path)
    if found in ("torch", "pickle"):
        raise BadInput(f"{path} {DESCRIBED[found]}: robustkit does not read it; {_CONVERT}")
    if found not in ("safetensors", "other"):
        raise BadInput(f"{path} {DESCRIBED[found]}: expected a safetensors file")
    raw = read_file(path.resolve(), _memory())
    sha256 = hashlib.sha256(raw).hexdigest()
    try:
        check_header(raw, str(path), LONGEST_HEADER)
        tensors = read_tensors(raw)
        header = parse(raw[8 : 8 + int.from_bytes(raw[:8], "little")], "its header")
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError, MemoryError) as problem:
        raise BadInput(f"{path} is truncated, damaged or no safetensors file ({problem}): fetch or save it again") from problem
    return Checkpoint(tensors, dict(header.get("__metadata__") or {}), sha256)


def fill(net: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Put weights into a network (float32, on the CPU), on the meta device or not; raises BadInput where they do not fit."""
    wanted = net.state_dict()
    optional = {f"{name}.{key}".lstrip(".") for name, part in net.named_modules() for key in getattr(part, "optional", ())}
    optional |= {key for key in wanted if key.endswith("num_batches_tracked")}
    missing = [key for key in wanted if key not in tensors and key not in optional]
    extra = sorted(key for key in tensors if key not in wanted)
    if missing or extra:
        parts = [
            f"{word} {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
            for word, keys in (("missing", missing), ("unexpected", extra))
            if keys
        ]
        raise BadInput(f"{where}: the weights do not fit the architecture: {'; '.join(parts)}")
    ready = {}
    for key, given in tensors.items():
        target = wanted[key]
        if given.shape != target.shape:
            raise BadInput(f"{where}: {key} has shape {tuple(given.shape)}, the architecture needs {tuple(target.shape)}")
        ready[key] = given.to(torch.float32 if target.is_floating_point() else target.dtype)
    net.load_state_dict(ready, assign=True)


def save_model(
    module: nn.Module,
    path: str | Path,
    *,
    architecture: str,
    input_shape: tuple[int, int, int],
    classes: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    extra: Mapping[str, str] | None = None,
) -> str:
    """Write weights and what they belong to, atomically; the same model gives the same bytes.

    Args:
        module: its state dict must fit `architecture` (grammar text), which must map images
            (C,H,W) to K logits.
        mean, std: per channel, applied to images in [0,1] before the network.
        extra: more metadata (recipe, seed, figures).

    Returns:
        sha256 of the file.

    Raises:
        BadInput: what would not load again, or a path that cannot be written.
    """
    path = Path(path)
    found = output_shape(architecture, input_shape)
    if found != (classes,):
        raise BadInput(f"architecture {architecture!r} gives outputs {found} for one image, expected ({classes},)")
    tensors = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in module.state_dict().items()}
    fill(skeleton(architecture), tensors, str(path))
    metadata = {
        **dict(extra or {}),
        "architecture": architecture,
        "input": f"{'x'.join(map(str, input_shape))} in [0,1]",
        "classes": str(classes),
    }
    for key, values in (("mean", mean), ("std", std)):
        if values is not None:
            metadata[key] = ",".join(repr(float(v)) for v in values)
    raw = pack(tensors, metadata)
    _write(path, raw)
    return hashlib.sha256(raw).hexdigest()


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file, metadata in sorted order (the library's own order is random)."""
    raw = write_tensors(dict(tensors), metadata={key: str(value) for key, value in metadata.items()})
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + raw[8 + size :]


def state_digest(module: nn.Module) -> str:
    """sha256 over names, types, shapes and values of a module's parameters and buffers."""
    made = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous()
            made.update(f"{key} {plain.dtype} {tuple(plain.shape)}\n".encode())
            made.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return made.hexdigest()


def _write(path: Path, raw: bytes) -> None:
    """All or nothing, as `core.files` writes; raises BadInput."""
    try:
        sweep(path.parent, f".{glob.escape(path.name)}.*.tmp")
        write_atomic(path, raw)
    except OSError as problem:
        raise BadInput(f"cannot write {path}: {problem.strerror or problem}") from problem
