"""The Store: a run folder of atomic units, bound to one specification.

A unit is a fixed range of sample positions x a stage, written once (temporary file, fsync,
rename). Whatever kills the process, the same command finds the finished units and goes on.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from robustkit.errors import BadInput
from robustkit.spec import digest

UNIT = 128
"""Samples per unit."""

Arrays = dict[str, NDArray[Any]]


def write_atomic(path: Path, content: bytes) -> None:
    """The whole file or none of it, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _own(name: str) -> bool:
    """Files that a run leaves when it is killed before its first word: the lock, and what was half written."""
    return name == ".lock" or (name.startswith(".") and name.endswith(".tmp"))


class Store:
    """One run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        return self.folder / name

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process works on a run folder; raises BadInput when another does, or it cannot be written."""
        lock = filelock.FileLock(self.path(".lock"), timeout=0)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except filelock.Timeout as problem:
            raise BadInput(f"another process is working on {self.folder}: wait for it, or choose another folder with --out") from problem
        except OSError as problem:
            why = problem.strerror or problem
            raise BadInput(f"{self.folder} cannot be used as a run folder ({why}): choose another with --out") from problem
        try:
            yield
        finally:
            lock.release()

    def bind(self, specification: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        """Tie the folder to a resolved specification; raises BadInput, naming the fields that differ."""
        name = digest(canonical_json(specification), 32)
        held = self.read_json("run.json")
        if held is not None and not isinstance(held, dict):
            raise BadInput(f"{self.path('run.json')} is damaged: remove the folder or choose another with --out")
        if held is None and self.folder.exists() and not all(_own(p.name) for p in self.folder.iterdir()):
            raise BadInput(f"{self.folder} is not empty and no run folder: choose another folder with --out")
        if held is not None and held.get("digest") != name:
            old, new = held.get("specification", {}), json.loads(canonical_json(specification))
            fields = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
            shown = "; ".join(f"{k}: {canonical_json(old.get(k))} there, {canonical_json(new.get(k))} asked for" for k in fields)
            raise BadInput(f"{self.folder} belongs to another specification ({shown}): choose another folder with --out")
        self.write_json("run.json", {"schema_version": 1, "digest": name, "specification": specification, **extra})

    def read_json(self, name: str) -> Any:
        """The parsed file, None where there is none; raises BadInput when it is damaged."""
        path = self.path(name)
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text())
        except (ValueError, OSError) as problem:
            raise BadInput(f"{path} is damaged ({problem}): remove the folder or choose another with --out") from problem

    def write_json(self, name: str, value: Any) -> None:
        write_atomic(self.path(name), (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())

    def unit_path(self, stage: str, number: int) -> Path:
        return self.path(f"units/{stage}/{number * UNIT:07d}-{(number + 1) * UNIT:07d}.safetensors")

    def read_unit(self, stage: str, number: int) -> Arrays | None:
        """A finished unit, None where it is missing or does not read."""
        path = self.unit_path(stage, number)
        try:
            return dict(safetensors.numpy.load_file(path))
        except (FileNotFoundError, SafetensorError):
            return None

    def write_unit(self, stage: str, number: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        write_atomic(self.unit_path(stage, number), safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in arrays.items()}))

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def write_rows(path: Path, shapes: Mapping[str, tuple[tuple[int, ...], str]], parts: Iterator[Arrays]) -> None:
    """A safetensors file written part by part, so that memory does not grow with the number of rows.

    Args:
        shapes: name -> (full shape, safetensors dtype such as F32 or I64).
        parts: arrays of consecutive rows for every name.
    """
    sizes = {"F32": 4, "F64": 8, "I64": 8}
    header: dict[str, dict[str, Any]] = {}
    at = 0
    for name, (shape, kind) in shapes.items():
        size = sizes[kind] * int(np.prod(shape))
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = canonical_json(header).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.tmp")
    done = dict.fromkeys(shapes, 0)
    try:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)
            for part in parts:
                for name, array in part.items():
                    file.seek(8 + len(text) + header[name]["data_offsets"][0] + done[name])
                    done[name] += file.write(np.ascontiguousarray(array).tobytes())
            for name, size in done.items():
                first, last = header[name]["data_offsets"]
                if size != last - first:
                    raise ValueError(f"{path}: {name} has {size} bytes, its shape needs {last - first}")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
