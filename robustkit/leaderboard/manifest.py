"""What a submission is: a manifest with size and sha256 of every file. Its own sha256 is the entry's identity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from robustkit.errors import BadInput
from robustkit.leaderboard.definition import Definition
from robustkit.leaderboard.documents import canonical, check, exactly, is_short_text, parse, parse_canonical, sha256
from robustkit.leaderboard.files import Arrays, columns, is_hex, read_checked, read_file, real_folder, tensors
from robustkit.report.older import upgraded

SCHEMA = 1
FILE = "manifest.json"
ID = 32
"""Hexadecimal digits of the manifest's sha256 that name a folder."""

MODEL = "model.safetensors"
REQUIRED = ("run.json", "samples.npz", "summary.json")
OPTIONAL = (MODEL, "witnesses.safetensors")
_SMALL, _MODEL = 1 << 24, 1 << 32

_FORM: Mapping[str, Any] = {
    "schema_version": int,
    "board": {"title": str, "definition": str},
    "name": str,
    "paper": str,
    "training_data": str,
    "claimed": (float, type(None)),
    "model": {"spec": str, "sha256": str, "identity": str, "file": (str, type(None))},
    "files": [{"path": str, "size": int, "sha256": str}],
}
_STAGE = {
    "name": str, "spec": str, "kind": str, "eps": str, "received": int, "settled": int, "robust_accuracy": (float, type(None)),
    "robust_accuracy_at_most?": (float, type(None)),
    "certified_accuracy": (float, type(None)), "seconds": float, "forwards": int, "backwards": int, "queries": int, "complete": bool,
    "note": str, "guarantee?": str, "proven?": int,
}  # fmt: skip
_SHARES = ("clean_accuracy", "certified_accuracy", "certified_statistical", "certified_conditional")
_MAYBE = ("robust_accuracy", "open")
"""Shares that are null where robust accuracy is not established."""
_ACCURACIES = ("clean_accuracy", "robust_accuracy", "certified_accuracy")
SUMMARY: Mapping[str, Any] = {
    "schema_version": int,
    "model": {"spec": str, "sha256": (str, type(None)), "parameters": int, "surface?": str},
    "data": {"spec": str, "sha256": str, "n": int, "digest": str, "class_names": [str]},
    "threat": str,
    "eps": [str],
    "goal": str,
    "labels": str,
    "seed": int,
    **dict.fromkeys(_SHARES, float),
    **dict.fromkeys(_MAYBE, (float, type(None))),
    "robust_accuracy_at_most?": float,
    "checked?": bool,
    "not_established?": str,
    "interval95": {},
    "population95": [float],
    "curve": [
        {
            "eps": float,
            "robust_accuracy": (float, type(None)),
            "robust_accuracy_at_most?": (float, type(None)),
            "certified_accuracy": (float, type(None)),
        }
    ],
    "eight_bit": (float, type(None)),
    "stages": [_STAGE],
    "diagnostics": [{"check": str, "status": str, "message": str, "cure": str}],
    "environment": {},
    "run": str,
}
UNCHECKED = ("simultaneous", "certified_radius")
"""What a summary may say besides, and nothing of a submission bears out: it is left out."""
RUN: Mapping[str, Any] = {
    "schema_version": int,
    "digest": str,
    "specification": {
        "model": {"spec": str, "sha256": (str, type(None))},
        "data": {"spec": str, "digest": str},
        "threat": str,
        "eps": [str],
        "goal": str,
        "labels": str,
        "stages": [{"method": str, "version": int, "mode": str, "eps": str}],
        "seed": int,
    },
    "status": str,
    "environment": {},
}


def make_manifest(definition: Definition, about: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    """The bytes of a manifest of the given files."""
    listed = [{"path": path, "size": len(raw), "sha256": sha256(raw)} for path, raw in sorted(files.items())]
    board = {"title": definition.title, "definition": definition.digest}
    return canonical({"schema_version": SCHEMA, "board": board, **about, "files": listed})


def entry_id(manifest: bytes) -> str:
    """The folder name of the entry with these manifest bytes."""
    return sha256(manifest)[:ID]


@dataclass(frozen=True)
class Entry:
    """One submission on disk. Whatever is read is compared with the manifest first."""

    folder: Path
    definition: Definition
    digest: str
    """sha256 of the manifest, as the ledger has it."""
    name: str
    """As the ledger has it."""

    @property
    def id(self) -> str:
        return self.folder.name

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest, checked; raises BadInput or Missing."""
        path = real_folder(self.folder) / FILE
        raw = read_file(path, 1 << 20)
        if sha256(raw) != self.digest or entry_id(raw) != self.id:
            raise BadInput(f"{path} was changed: its sha256 is not the one in the ledger")
        found = parse_canonical(raw, str(path))
        exactly(found, _FORM, str(path))
        exactly(found["model"], _FORM["model"], f"{path}.model")
        self._meaning(found, str(path))
        return found

    def _meaning(self, found: Mapping[str, Any], path: str) -> None:
        if found["schema_version"] != SCHEMA:
            raise BadInput(f"{path} has another schema_version: this robustkit reads {SCHEMA}")
        if found["board"] != {"title": self.definition.title, "definition": self.definition.digest}:
            raise BadInput(f"{path} is a submission to another board, or to another version of this one")
        names = [one["path"] for one in found["files"]]
        if names != sorted(set(names)) or not set(REQUIRED) <= set(names) <= {*REQUIRED, *OPTIONAL}:
            raise BadInput(f"{path} lists the files {', '.join(map(repr, names))[:300]}: expected {', '.join((*REQUIRED, *OPTIONAL))}")
        for one in found["files"]:
            exactly(one, _FORM["files"][0], path)
            if not 0 <= one["size"] <= self.most(one["path"]) or not is_hex(one["sha256"], 64):
                raise BadInput(f"{path}: {one['path']} has a size or digest that cannot be meant")
        for key in ("name", "paper", "training_data"):
            if not is_short_text(found[key]):
                raise BadInput(f"{path}: {key} is too long or holds signs that are not printed")
        if not found["name"] or not (found["claimed"] is None or 0 <= found["claimed"] <= 1):
            raise BadInput(f"{path}: the name is empty, or the claim is no share from 0 to 1")
        model, weights = found["model"], {one["path"]: one["sha256"] for one in found["files"]}.get(MODEL)
        if model["file"] != (None if weights is None else MODEL) or (weights is not None and weights != model["sha256"]):
            raise BadInput(f"{path}: the model's sha256 is not that of {MODEL}")
        if not is_hex(model["sha256"], 64):
            raise BadInput(f"{path}: the model's sha256 is no digest")

    def most(self, name: str) -> int:
        """Bytes that a file may have."""
        held = {MODEL: _MODEL, "witnesses.safetensors": self.definition.most_witnesses}
        return held.get(name, _SMALL + 128 * self.definition.n)

    def has(self, name: str) -> bool:
        return any(one["path"] == name for one in self.manifest["files"])

    def read(self, name: str) -> bytes:
        """A file of the entry, the one that was submitted; raises BadInput or Missing."""
        one = next((one for one in self.manifest["files"] if one["path"] == name), None)
        if one is None:
            raise BadInput(f"{self.folder} has no {name}")
        return read_checked(self.folder / name, one["size"], one["sha256"], self.most(name))

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json, its form checked."""
        return checked_summary(parse(self.read("summary.json"), f"{self.folder.name}/summary.json"), f"{self.folder.name}/summary.json")

    @cached_property
    def record(self) -> dict[str, Any]:
        """run.json, its form checked."""
        found = parse(self.read("run.json"), f"{self.folder.name}/run.json")
        check(found, RUN, f"{self.folder.name}/run.json")
        return found

    @cached_property
    def columns(self) -> Arrays:
        """samples.npz."""
        return columns(self.read("samples.npz"), self.definition.n, f"{self.folder.name}/samples.npz")

    def witnesses(self) -> Arrays:
        """witnesses.safetensors, {} where nothing was broken."""
        return (
            tensors(self.read("witnesses.safetensors"), f"{self.folder.name}/witnesses.safetensors")
            if self.has("witnesses.safetensors")
            else {}
        )


def checked_summary(found: dict[str, Any], where: str) -> dict[str, Any]:
    """The summary itself; raises BadInput unless it has the documented form and its shares are shares."""
    check(found, SUMMARY, where)
    found = {key: value for key, value in found.items() if key not in UNCHECKED}
    if found["schema_version"] not in (1, 2):
        raise BadInput(f"{where} has schema_version {found['schema_version']}: this robustkit reads 1 and 2")
    reaches = {name: found["interval95"].get(name) for name in _ACCURACIES}
    for name, reach in reaches.items():
        check({name: [] if reach is None and name == "robust_accuracy" else reach}, {name: [float]}, f"{where}: interval95")
    if found["schema_version"] == 1:
        found = upgraded(found)
    absent = [key for key in ("robust_accuracy_at_most", "checked", "not_established") if key not in found]
    if absent:
        raise BadInput(f"{where} lacks {', '.join(absent)}")
    shares = [found[key] for key in (*_SHARES, *_MAYBE, "robust_accuracy_at_most") if found[key] is not None] + found["population95"]
    shares += [value for reach in reaches.values() for value in reach or ()]
    shares += [told[key] for told in found["curve"] + found["stages"] for key in told if key.endswith("accuracy") and told[key] is not None]
    if not all(-1e-9 <= value <= 1 + 1e-9 for value in shares) or not found["eps"]:
        raise BadInput(f"{where} holds shares outside [0, 1], or no budget")
    if any(len(reach) != 2 for reach in reaches.values() if reach is not None) or len(found["population95"]) != 2:
        raise BadInput(f"{where}: an interval has not two ends")
    counts = [stage[key] for stage in found["stages"] for key in ("received", "settled", "forwards", "backwards", "queries", "seconds")]
    if any(not 0 <= value < 1e18 or not math.isfinite(value) for value in counts) or len(found["stages"]) > 1000:
        raise BadInput(f"{where}: the stages hold counts that cannot be meant")
    return found
