"""Files that robustkit writes: whole or not at all, and nothing half written stays behind."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A temporary file to write to; at the end it is on disk and takes the place of `path` in one step, or is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes) -> None:
    """The whole file or none of it, also after a power cut."""
    with replacing(path) as file:
        file.write(content)


def is_temporary(name: str) -> bool:
    """Whether a file of that name is one of `replacing`."""
    return _TEMPORARY.fullmatch(name) is not None


def sweep(folder: Path, pattern: str = ".*.tmp") -> None:
    """Remove temporary files of `replacing` in a folder whose process has ended. For the only one who writes there."""
    for path in folder.glob(pattern):
        found = _TEMPORARY.fullmatch(path.name)
        if found is not None and not path.is_dir() and not _alive(int(found.group(1))):
            with contextlib.suppress(OSError):
                path.unlink()


def _alive(process: int) -> bool:
    """Whether another process with this number runs; what this one had begun it has ended."""
    if process == os.getpid() or process > 1 << 31:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # it runs, for somebody else
    return True
