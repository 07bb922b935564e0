"""A run folder that may come from anybody, as files: bounded, nothing followed, nothing run."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustkit.errors import BadInput, Missing
from robustkit.evaluation.judge_witnesses import Arrays
from robustkit.report.runs import load_run

HEADER = 1 << 20
CONTRADICTS = "contradicts itself"
"""What a reader says of columns that are well formed and cannot be true: a disagreement, not a damaged file."""

_TYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8", "U8": "<u1", "BOOL": "?"}
_COLUMNS = {
    **dict.fromkeys(("index", "label", "predicted", "lower_stage", "upper_stage", "adversarial_class"), "i8"),
    **dict.fromkeys(("confidence", "clean_margin", "lower", "lower_statistical", "lower_conditional", "upper"), "f8"),
    "radius_covered": "b1",
}
_SPECIFICATION: dict[str, Any] = {
    "model": dict,
    "data": dict,
    "threat": str,
    "eps": list,
    "goal": str,
    "labels": str,
    "stages": list,
    "seed": int,
}
_SUMMARY: dict[str, Any] = {**dict.fromkeys(("model", "data", "interval95"), dict), **dict.fromkeys(("eps", "stages", "curve"), list)}
_UNIT = re.compile(r"(\d{2,4})-[^/\\]*")


@dataclass(frozen=True)
class RunFiles:
    """One run folder, read. `summary` and `columns` are empty where the run was stopped before its answer."""

    folder: Path
    record: dict[str, Any]
    summary: dict[str, Any]
    columns: Arrays
    contradiction: str = ""
    """Why the columns cannot be those of a run, where their reader found that out: they are left out then."""

    @property
    def specification(self) -> dict[str, Any]:
        return dict(self.record["specification"])

    def witnesses(self) -> Arrays:
        """The tensors of witnesses.safetensors, not yet in memory; {} where there is no such file."""
        path = self.folder / "witnesses.safetensors"
        return mapped(path) if path.exists() or path.is_symlink() else {}

    def units(self) -> Iterator[tuple[int, str, Arrays]]:
        """(stage number, STAGE/FILE, arrays) of every unit, in the order in which the run wrote them; raises BadInput."""
        top = self.folder / "units"
        stages = [path for path in top.iterdir() if _UNIT.fullmatch(path.name)] if _is_folder(top) else []
        for stage in sorted(stages, key=lambda path: (int(path.name.partition("-")[0]), not path.name.endswith("-trial"), path.name)):
            if _is_folder(stage):
                for path in sorted(stage.glob("[0-9]*.safetensors")):
                    yield int(stage.name.partition("-")[0]), f"{stage.name}/{path.name}", mapped(path)


def read_run(folder: Path) -> RunFiles:
    """Read a run folder; raises Missing where there is none, BadInput where it is damaged."""
    if not _is_folder(folder):
        raise Missing(f"no run folder at {folder}: give the folder that robustkit evaluate --out wrote")
    record, summary = _document(folder / "run.json"), {}
    columns: dict[str, Any] = {}
    contradiction = ""
    if (folder / "summary.json").exists():
        summary = _document(folder / "summary.json")  # as it is stored: `load_run` may mend its figures
        try:
            columns = dict(load_run(folder).columns)
            _check_columns(columns, folder / "samples.npz")
        except BadInput as problem:
            if CONTRADICTS not in str(problem):
                raise
            contradiction = str(problem).rpartition(": run the same")[0]
        odd = [key for key, kind in _SUMMARY.items() if not isinstance(summary.get(key), kind)]
        if odd:
            raise BadInput(f"{folder / 'summary.json'} is no answer of a run (wrong or missing: {', '.join(odd)})")
    said = record.get("specification")
    wrong = [key for key, kind in _SPECIFICATION.items() if not isinstance(said, dict) or not isinstance(said.get(key), kind)]
    if wrong or not all(isinstance(stage, dict) for stage in record["specification"]["stages"]):
        raise BadInput(f"{folder / 'run.json'} is no record of a run (wrong or missing: {', '.join(wrong) or 'stages'})")
    return RunFiles(folder, record, summary, columns, contradiction)


def mapped(path: Path) -> Arrays:
    """The tensors of a safetensors file, mapped and not read; raises BadInput for any other file."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise BadInput(f"{path} is no regular file")
        with os.fdopen(os.open(path, flags), "rb") as file:
            total, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(HEADER, total - 8):
                raise BadInput(f"{path} is no safetensors file: nothing of it is read")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            found, end = {}, 0
            for name, about in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                shape, (first, last) = tuple(about["shape"]), about["data_offsets"]
                dtype = np.dtype(_TYPES[about["dtype"]])
                sized = all(type(side) is int and 0 <= side < 1 << 40 for side in shape) and len(shape) <= 8
                if not sized or first != end or last - first != math.prod(shape) * dtype.itemsize:
                    raise BadInput(f"{path}: the sizes of {str(name)[:40]!a} do not add up")
                end = last
                at = 8 + length + first
                mapping: Any = np.memmap(file, dtype=dtype, mode="c", offset=at, shape=shape) if last > first else np.zeros(shape, dtype)
                found[str(name)] = np.asarray(mapping)
            if end != total - 8 - length:
                raise BadInput(f"{path} has {total:,} bytes, its header speaks of {8 + length + end:,}")
            return found
    except BadInput:
        raise
    except FileNotFoundError as problem:
        raise Missing(f"{path} is missing") from problem
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError) as problem:
        raise BadInput(f"{path} cannot be read ({type(problem).__name__}: {str(problem)[:80]})") from problem


def _check_columns(columns: Arrays, path: Path) -> None:
    count = len(columns["label"])
    for name, kind in _COLUMNS.items():
        if name not in columns or columns[name].shape != (count,) or columns[name].dtype != np.dtype(kind):
            raise BadInput(f"{path}: the column {name} is missing or no {np.dtype(kind)} of length {count}: run the same command again")


def _document(path: Path) -> dict[str, Any]:
    try:
        if not stat.S_ISREG(path.lstat().st_mode) or path.stat().st_size > 1 << 24:
            raise BadInput(f"{path} is no regular file of at most 16 MiB")
        found = json.loads(path.read_bytes())
    except FileNotFoundError as problem:
        raise Missing(f"{path} is missing: give the folder that robustkit evaluate --out wrote") from problem
    except (OSError, ValueError, RecursionError) as problem:
        if isinstance(problem, BadInput):
            raise
        raise BadInput(f"{path} cannot be read ({type(problem).__name__}: {str(problem)[:80]})") from problem
    if not isinstance(found, dict):
        raise BadInput(f"{path} holds no JSON object")
    return found


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
