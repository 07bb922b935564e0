"""Files from strangers: nothing is followed, nothing is allocated before its size is known, nothing is run.

Every file of a run folder or a board is read through here. The rooms above say how large a file may be
and what has to be in it.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustkit.errors import BadInput, Missing

Arrays = dict[str, NDArray[Any]]

HEADER = 1 << 20
"""Bytes that the header of a safetensors file may have."""

MEMBERS = 100
"""Arrays that an npz archive may have."""

_BESIDE = 4096
"""Bytes that an array file may have besides its values."""

_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,  # an encrypted member; deep nesting
    ValueError,
    SyntaxError,  # numpy reads a header as Python literals
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
    AttributeError,
)
"""What the libraries below raise for archives that are damaged or made to harm."""


def sha256(raw: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(raw).hexdigest()


def real_folder(folder: Path) -> Path:
    """The folder itself, no link to one; raises BadInput or Missing."""
    try:
        mode = folder.lstat().st_mode
    except (OSError, ValueError) as problem:
        raise Missing(f"{folder} is missing ({getattr(problem, 'strerror', None) or problem})") from problem
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
    try:
        with os.fdopen(opened, "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise BadInput(f"{path} is no regular file")
            if about.st_size > most:
                raise BadInput(f"{path} has {about.st_size:,} bytes: at most {most:,} are read")
            raw = file.read(about.st_size + 1)
    except OSError as problem:
        raise BadInput(f"{path} cannot be read ({problem.strerror})") from problem
    if len(raw) > about.st_size:
        raise BadInput(f"{path} grew while it was read")
    return raw


def read_checked(path: Path, size: int, digest: str, most: int) -> bytes:
    """As `read_file`, and the content must be the one named. Raises BadInput or Missing."""
    raw = read_file(path, most)
    if len(raw) != size:
        raise BadInput(f"{path} has {len(raw)} bytes, the manifest says {size}")
    if sha256(raw) != digest:
        raise BadInput(f"{path} was changed: its sha256 is {sha256(raw)[:16]}..., the manifest says {digest[:16]}...")
    return raw


class Archive:
    """The arrays of an npz file, each unpacked only when it is asked for and its size is known. Nothing is unpickled.

    Raises BadInput, here and in `array`, for what is no such archive.
    """

    def __init__(self, raw: bytes, where: str) -> None:
        self.where = where
        with _told(where):
            if raw[:4] not in (b"PK\x03\x04", b"PK\x05\x06"):
                raise BadInput(f"{where} is no npz archive")
            self._zip = zipfile.ZipFile(io.BytesIO(raw))
            found = self._zip.infolist()
            names = [one.filename.removesuffix(".npy") for one in found]
            if len(names) > MEMBERS or len(set(names)) < len(names):
                raise BadInput(f"{where} holds {len(names)} arrays, or a name twice: at most {MEMBERS} are read")
            if any(one.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for one in found):
                raise BadInput(f"{where} is compressed in another way than npz archives are")  # these would unpack without a limit
        self.names = names

    def length(self, name: str) -> int:
        """Rows of an array with one dimension, as its header says; nothing is unpacked."""
        with _told(self.where), self._zip.open(f"{name}.npy") as file:
            shape, _, _ = _header(file.read(_BESIDE), f"{self.where}: {name}")
        if len(shape) != 1:
            raise BadInput(f"{self.where}: {name} has the shape {shape}: expected one dimension")
        return shape[0]

    def array(self, name: str, kind: str, count: int) -> NDArray[Any]:
        """The array (count,) of a type such as i8, f8, b1."""
        dtype = np.dtype(bool) if kind == "b1" else np.dtype(f"<{kind}")
        most, where = count * dtype.itemsize + _BESIDE, f"{self.where}: {name}"
        with _told(self.where), self._zip.open(f"{name}.npy") as file:
            raw = file.read(most + 1)  # a bomb unpacks no further than this
        if len(raw) > most:
            raise BadInput(f"{where} unpacks to more than {count} values of {dtype}")
        with _told(self.where):
            shape, found, start = _header(raw, where)
        if shape != (count,) or found != dtype:
            raise BadInput(f"{where} is {found} of shape {shape}: expected {dtype} of shape ({count},)")
        if len(raw) - start != count * dtype.itemsize:
            raise BadInput(f"{where} is cut off, or has bytes behind its end")
        if kind == "b1" and bool((np.frombuffer(raw, np.uint8, offset=start) > 1).any()):
            raise BadInput(f"{where} holds values that are neither true nor false")
        return np.frombuffer(raw, dtype=dtype, offset=start).copy()


def _header(raw: bytes, where: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """(shape, dtype, where the values begin) of an array file of version 1.0."""
    stream = io.BytesIO(raw)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise BadInput(f"{where} has the unknown format {version}")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject:
        raise BadInput(f"{where} holds Python objects, whose reading can run code: nothing of it is read")
    if not all(type(size) is int and 0 <= size < 1 << 48 for size in shape):
        raise BadInput(f"{where} says that its shape is {str(shape)[:60]}")
    return shape, dtype, stream.tell()


class _told:
    """Turns whatever a library raises for a hostile archive into one line of BadInput."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, problem: BaseException | None, trace: Any) -> None:
        if isinstance(problem, _UNREADABLE) and not isinstance(problem, BadInput):
            raise BadInput(f"{self.where} cannot be read ({type(problem).__name__}: {_line(problem)})") from problem


def tensors(raw: bytes, where: str) -> Arrays:
    """Every tensor of a safetensors file whose sizes add up; raises BadInput. Nothing is unpickled."""
    import safetensors.numpy

    check_header(raw, where)
    try:
        return dict(safetensors.numpy.load(raw))
    except Exception as problem:  # the library's own error is no ValueError, and types that numpy lacks are a KeyError
        raise BadInput(f"{where} is damaged ({type(problem).__name__}: {_line(problem)})") from problem


def check_header(raw: bytes, where: str, most: int = HEADER) -> None:
    """Raises BadInput unless the bytes begin with the header of a safetensors file that is no longer than `most`."""
    header = int.from_bytes(raw[:8], "little") if len(raw) >= 8 else 0
    if not 2 <= header <= min(most, len(raw) - 8):
        what = "a Python pickle, which can run code when read" if raw[:1] == b"\x80" else "no safetensors file"
        raise BadInput(f"{where} is {what}: nothing of it is read")


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


def _line(problem: BaseException) -> str:
    return " ".join(str(problem).split())[:80]


def _kind(mode: int) -> str:
    tests = (("link", stat.S_ISLNK), ("folder", stat.S_ISDIR), ("pipe", stat.S_ISFIFO), ("socket", stat.S_ISSOCK))
    return next((name for name, test in tests if test(mode)), "device or file of another kind")
