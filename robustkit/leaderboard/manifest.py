"""What a submission is: a manifest with size and sha256 of every file. Its own sha256 is the entry's identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from robustkit.errors import BadInput
from robustkit.leaderboard.definition import Definition
from robustkit.leaderboard.documents import canonical, check, is_short_text, parse, parse_canonical, sha256
from robustkit.leaderboard.files import Arrays, columns, read_checked, read_file, real_folder, tensors
from robustkit.report.older import upgraded

SCHEMA = 1
FILE = "manifest.json"
ID = 32
"""Hexadecimal digits of the manifest's sha256 that name a folder."""

MODEL = "model.safetensors"
REQUIRED = ("run.json", "samples.npz", "summary.json")
OPTIONAL = (MODEL, "witnesses.safetensors")
_SMALL, _MODEL = 1 << 24, 1 << 32

UNCHECKED = ("simultaneous", "certified_radius")
"""What a summary may say besides, and nothing of a submission bears out: it is left out."""


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
        check(found, "manifest", str(path))
        self._meaning(found, str(path))
        return found

    def _meaning(self, found: Mapping[str, Any], path: str) -> None:
        if found["board"] != {"title": self.definition.title, "definition": self.definition.digest}:
            raise BadInput(f"{path} is a submission to another board, or to another version of this one")
        names = [one["path"] for one in found["files"]]
        if names != sorted(set(names)) or not set(REQUIRED) <= set(names) <= {*REQUIRED, *OPTIONAL}:
            raise BadInput(f"{path} lists the files {', '.join(map(repr, names))[:300]}: expected {', '.join((*REQUIRED, *OPTIONAL))}")
        for one in found["files"]:
            if one["size"] > self.most(one["path"]):
                raise BadInput(f"{path}: {one['path']} has a size that cannot be meant")
        for key in ("name", "paper", "training_data"):
            if not is_short_text(found[key]):
                raise BadInput(f"{path}: {key} is too long or holds signs that are not printed")
        if not found["name"]:
            raise BadInput(f"{path}: the name is empty")
        model, weights = found["model"], {one["path"]: one["sha256"] for one in found["files"]}.get(MODEL)
        if model["file"] != (None if weights is None else MODEL) or (weights is not None and weights != model["sha256"]):
            raise BadInput(f"{path}: the model's sha256 is not that of {MODEL}")

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
        check(found, "run", f"{self.folder.name}/run.json")
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
    """The summary in the form of version 2, less what nothing of a submission bears out; raises BadInput for any other form."""
    check(found, "summary", where)
    found = upgraded(found) if found["schema_version"] == 1 else found
    return {key: value for key, value in found.items() if key not in UNCHECKED}
