"""What a file really is, by its first bytes: names lie, and a failed download is an HTML page."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from robustkit.errors import BadInput

DESCRIBED = {
    "empty": "is empty (0 bytes)",
    "html": "is an HTML page, no data: the download went wrong, fetch it again",
    "lfs": "is a Git LFS pointer, not the file itself: run `git lfs pull`",
    "pickle": "is a Python pickle, which can run code when read",
    "torch": "is a pickled PyTorch checkpoint, which can run code when read",
    "torchscript": "is a TorchScript archive",
    "exported": "is a torch.export archive",
    "safetensors": "is a safetensors file",
    "numpy": "is a NumPy array",
    "zip": "is a zip archive",
    "gzip": "is gzip-compressed",
    "other": "has unknown content",
}
"""content -> what is said of it in messages."""

_MAGIC = (
    (b"version https://git-lfs", "lfs"),
    (b"\x93NUMPY", "numpy"),
    (b"\x1f\x8b", "gzip"),
    *((bytes([0x80, k]), "pickle") for k in range(2, 6)),
)


def existing(text: str) -> Path | None:
    """The file or folder that a text names, None where there is none (or it can be no path at all)."""
    path = os.path.expanduser(text)
    return Path(path) if text and os.path.exists(path) else None


def content(path: Path) -> str:
    """The kind of a file, a key of DESCRIBED. Reads a few bytes and runs nothing; raises BadInput."""
    try:
        if not path.is_file():  # a pipe or a device would wait for ever
            raise BadInput(f"{path} is no regular file: expected a file that can be read from its beginning to its end")
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as problem:
        raise BadInput(f"{path} cannot be read: {problem.strerror or problem}") from problem
    if not start:
        return "empty"
    if start[4:9] == b"\0\0\0\0{":  # the length of a header (8 bytes, little endian), then the header
        return "safetensors"
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "html"
    if start[:2] == b"PK":
        return _archive(path)
    return next((kind for magic, kind in _MAGIC if start.startswith(magic)), "other")


def _archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = ["/".join(name.split("/")[1:]) for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        return "zip"
    if any(name.startswith("code/") for name in names) and "constants.pkl" in names:
        return "torchscript"
    if any(name.startswith(("models/", "serialized_exported_program")) for name in names):
        return "exported"
    return "torch" if "data.pkl" in names else "zip"
