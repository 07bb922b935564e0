"""Files from strangers: nothing is followed, nothing is allocated before its size is known, nothing is run."""

from __future__ import annotations

import io
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from robustkit.errors import BadInput, Missing
from robustkit.leaderboard.documents import sha256

Arrays = dict[str, NDArray[Any]]

HEADER = 1 << 20
"""Bytes that the header of a safetensors file may have."""

COLUMNS: dict[str, str] = {
    "index": "i8",
    "label": "i8",
    "predicted": "i8",
    "confidence": "f8",
    "clean_margin": "f8",
    "lower": "f8",
    "lower_statistical": "f8",
    "lower_conditional": "f8",
    "upper": "f8",
    "lower_stage": "i8",
    "upper_stage": "i8",
    "adversarial_class": "i8",
    "radius_covered": "b1",
}
"""Columns of samples.npz and their types."""

UNCHECKED = ("lower_simultaneous",)
"""Columns that a run may have besides: nothing of a submission bears them out, so they are left out."""


def real_folder(folder: Path) -> Path:
    """The folder itself, no link to one; raises BadInput or Missing."""
    try:
        mode = folder.lstat().st_mode
    except OSError as problem:
        raise Missing(f"{folder} is missing ({problem.strerror})") from problem
    if not stat.S_ISDIR(mode):
        raise BadInput(f"{folder} is no folder but a {_kind(mode)}")
    return folder


def read_file(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes; links, pipes and devices are refused. Raises BadInput or Missing."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise BadInput(f"{path} is no regular file but a {_kind(mode)}")
        opened = os.open(path, flags)
    except FileNotFoundError as problem:
        raise Missing(f"{path} is missing") from problem
    except OSError as problem:
        raise BadInput(f"{path} cannot be read ({problem.strerror})") from problem
    with os.fdopen(opened, "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise BadInput(f"{path} is no regular file")
        if about.st_size > most:
            raise BadInput(f"{path} has {about.st_size:,} bytes: at most {most:,} are read")
        return file.read(most + 1)


def read_checked(path: Path, size: int, digest: str, most: int) -> bytes:
    """As `read_file`, and the content must be the one named. Raises BadInput or Missing."""
    raw = read_file(path, most)
    if len(raw) != size:
        raise BadInput(f"{path} has {len(raw)} bytes, the manifest says {size}")
    if sha256(raw) != digest:
        raise BadInput(f"{path} was changed: its sha256 is {sha256(raw)[:16]}..., the manifest says {digest[:16]}...")
    return raw


def columns(raw: bytes, count: int, where: str) -> Arrays:
    """The columns of samples.npz, each (count,); raises BadInput for anything else. Nothing is unpickled."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            names = archive.namelist()
            wanted = [f"{name}.npy" for name in COLUMNS]
            if sorted(name for name in names if name.removesuffix(".npy") not in UNCHECKED) != sorted(wanted):
                odd = sorted(set(names) ^ set(wanted)) or ["a name twice"]
                raise BadInput(f"{where}: expected the columns {', '.join(COLUMNS)}; missing or unknown: {', '.join(odd)[:200]}")
            return {name: _column(archive, name, kind, count, where) for name, kind in COLUMNS.items()}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError, OverflowError) as problem:
        if isinstance(problem, BadInput):
            raise
        raise BadInput(f"{where} cannot be read ({type(problem).__name__}: {str(problem)[:80]})") from problem


def _column(archive: zipfile.ZipFile, name: str, kind: str, count: int, where: str) -> NDArray[Any]:
    dtype = np.dtype(f"<{kind}") if kind != "b1" else np.dtype(bool)
    most = count * dtype.itemsize + 4096
    with archive.open(f"{name}.npy") as file:
        raw = file.read(most + 1)  # a bomb unpacks no further than this
    if len(raw) > most:
        raise BadInput(f"{where}: column {name} unpacks to more than {count} values of {dtype}")
    stream = io.BytesIO(raw)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise BadInput(f"{where}: column {name} has the unknown format {version}")
    shape, _, found = np.lib.format.read_array_header_1_0(stream)
    if shape != (count,) or found != dtype:
        raise BadInput(f"{where}: column {name} is {found} of shape {shape}: expected {dtype} of shape ({count},)")
    if len(raw) - stream.tell() != count * dtype.itemsize:
        raise BadInput(f"{where}: column {name} is cut off")
    values = np.frombuffer(raw, dtype=dtype, offset=stream.tell()).copy()
    if dtype.kind == "f" and bool(np.isnan(values).any()):
        raise BadInput(f"{where}: column {name} holds NaN at position {int(np.isnan(values).argmax())}")
    return values


def tensors(raw: bytes, where: str) -> Arrays:
    """Every tensor of a safetensors file whose sizes add up; raises BadInput. Nothing is unpickled."""
    header = int.from_bytes(raw[:8], "little") if len(raw) >= 8 else 0
    if not 2 <= header <= min(HEADER, len(raw) - 8):
        what = "a Python pickle, which can run code when read" if raw[:1] == b"\x80" else "no safetensors file"
        raise BadInput(f"{where} is {what}: nothing of it is read")
    try:
        return dict(safetensors.numpy.load(raw))
    except (SafetensorError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as problem:
        raise BadInput(f"{where} is damaged ({type(problem).__name__}: {str(problem)[:80]})") from problem


def typed(found: Arrays, name: str, kind: str, shape: tuple[int | None, ...], where: str) -> NDArray[Any]:
    """One array of a file, its type and shape checked (None: any length); raises BadInput."""
    if name not in found:
        raise BadInput(f"{where} lacks {name}")
    array = found[name]
    fits = len(array.shape) == len(shape) and all(want is None or want == have for want, have in zip(shape, array.shape))
    if array.dtype != np.dtype(kind) or not fits:
        expected = "x".join("any" if size is None else str(size) for size in shape)
        raise BadInput(f"{where}: {name} is {array.dtype} of shape {array.shape}: expected {kind} of shape {expected}")
    return array


def columns_bytes(values: Mapping[str, NDArray[Any]]) -> bytes:
    """samples.npz of columns, the same columns always as the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, kind in COLUMNS.items():
            inner = io.BytesIO()
            np.lib.format.write_array(inner, np.ascontiguousarray(values[name], dtype=f"<{kind}" if kind != "b1" else bool), version=(1, 0))
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, inner.getvalue())
    return buffer.getvalue()


def is_hex(text: str, length: int) -> bool:
    """Whether a text is a lower-case hexadecimal digest of that length."""
    return re.fullmatch(rf"[0-9a-f]{{{length}}}", text) is not None


def _kind(mode: int) -> str:
    tests = (("link", stat.S_ISLNK), ("folder", stat.S_ISDIR), ("pipe", stat.S_ISFIFO), ("socket", stat.S_ISSOCK))
    return next((name for name, test in tests if test(mode)), "device or file of another kind")
