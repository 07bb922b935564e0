"""The Store: a run folder of atomic units, bound to one specification.

A unit is a fixed range of sample positions x a stage, written once (temporary file, fsync,
rename) with a checksum of its arrays: a damaged one is computed again. Whatever kills the process,
the same command finds the finished units and goes on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from robustkit.core.files import is_temporary, replacing, sweep
from robustkit.core.files import write_atomic as write_atomic
from robustkit.core.untrusted_files import read_file, tensors
from robustkit.core.untrusted_json import MOST, parse, parse_any
from robustkit.errors import BadInput, Missing
from robustkit.spec import digest

UNIT = 128
"""Samples per unit."""

Arrays = dict[str, NDArray[Any]]

_LARGEST = 1 << 35
"""Bytes of a unit that are read."""


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _own(name: str) -> bool:
    """Files that a run leaves when it is killed before its first word: the lock, and what was half written."""
    return name == ".lock" or is_temporary(name)


_PLAIN = ("run.json", "summary.json")
"""Documents for everybody. Other JSON files a run keeps for itself, with a checksum: what is damaged is computed again."""


class Store:
    """One run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.digest = ""
        """Of the specification that it is bound to: part of every checksum, so that no unit is read back for another run."""
        self.swept = False

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
            old, new = held.get("specification"), json.loads(canonical_json(specification))
            old = old if isinstance(old, dict) else {}
            if old.get("judge", 1) != new.get("judge", 1):
                whose = "an older" if old.get("judge", 1) < new.get("judge", 1) else "a newer"
                raise BadInput(
                    f"{self.folder} was judged by {whose} rule of what is wrong, so it is not resumed: choose another folder with --out "
                    "(show, report and compare still read this one)"
                )
            fields = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
            shown = "; ".join(f"{k}: {canonical_json(old.get(k))} there, {canonical_json(new.get(k))} asked for" for k in fields)
            raise BadInput(f"{self.folder} belongs to another specification ({shown}): choose another folder with --out")
        self.digest = name
        if not self.swept:
            self.swept = True
            for folder in (self.folder, *self.path("units").glob("*")):
                sweep(folder)
        self.write_json("run.json", {"schema_version": 1, "digest": name, "specification": specification, **extra})

    def read_json(self, name: str) -> Any:
        """The parsed file, None where there is none; raises BadInput when it is damaged.

        What a run keeps for itself counts as missing where its checksum does not fit, or where it has none.
        """
        path = self.path(name)
        try:
            found = parse_any(read_file(path, MOST), str(path))
        except Missing:
            return None
        except BadInput as problem:
            if name not in _PLAIN:
                return None
            raise BadInput(f"{path} is damaged ({problem}): remove the folder or choose another with --out") from problem
        if name in _PLAIN:
            return found
        whole = isinstance(found, dict) and found.get("sha256") == self._seal(name, canonical_json(found.get("content")).encode())
        return found["content"] if whole else None

    def write_json(self, name: str, value: Any) -> None:
        if name not in _PLAIN:
            value = {"sha256": self._seal(name, canonical_json(value).encode()), "content": value}
        write_atomic(self.path(name), (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())

    def unit_path(self, stage: str, number: int) -> Path:
        return self.path(f"units/{stage}/{number * UNIT:07d}-{(number + 1) * UNIT:07d}.safetensors")

    def read_unit(self, stage: str, number: int) -> Arrays | None:
        """A finished unit, None where it is missing, damaged, or without the checksum of its arrays."""
        path = self.unit_path(stage, number)
        try:
            raw = read_file(path, _LARGEST)
            found = tensors(raw, str(path))
            header = parse(raw[8 : 8 + int.from_bytes(raw[:8], "little")], str(path))
        except (BadInput, Missing):
            return None
        seal = (header.get("__metadata__") or {}).get("sha256")
        return found if seal == self._unit_seal(stage, number, found) else None

    def write_unit(self, stage: str, number: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        plain = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
        metadata = {"sha256": self._unit_seal(stage, number, plain)}
        write_atomic(self.unit_path(stage, number), safetensors.numpy.save(plain, metadata))

    def _unit_seal(self, stage: str, number: int, arrays: Arrays) -> str:
        return self._seal(f"{stage} {number}", *(part for name in sorted(arrays) for part in _described(name, arrays[name])))

    def _seal(self, name: str, *parts: bytes | memoryview) -> str:
        """sha256 of something that the run keeps, of its name, and of the run's specification."""
        if not self.digest:  # a finished folder, opened to read its units
            held = self.read_json("run.json")
            self.digest = str(held.get("digest", "")) if isinstance(held, dict) else ""
        made = hashlib.sha256(f"{self.digest} {name}\n".encode())
        for part in parts:
            made.update(part)
        return made.hexdigest()

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _described(name: str, array: NDArray[Any]) -> tuple[bytes, memoryview]:
    return f"{name} {array.dtype.str} {array.shape}\n".encode(), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


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
    done = dict.fromkeys(shapes, 0)
    with replacing(path) as file:
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
