"""The Store: whole files or none, damaged units count as missing, one specification a folder."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from robustkit.errors import BadInput
from robustkit.store import UNIT, Arrays, Store, canonical_json, write_atomic, write_rows

SPECIFICATION = {"model": {"spec": "zoo:a", "sha256": "1"}, "eps": ["0.1"], "seed": 0}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(tmp_path / "run")
    found.bind(SPECIFICATION, {"status": "running"})
    return found


def unit(count: int = 3) -> Arrays:
    return {"position": np.arange(count), "size": np.linspace(0, 1, count), "parameters": np.ones((count, 1, 2, 2), dtype=np.float32)}


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# ---- atomic files


def test_a_file_is_written_whole_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["deep/er/file"]


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if where == "fsync" else Path, where, full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_the_content_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(handle: int) -> None:
        order.append("fsync")
        fsync(handle)

    def noted_replace(self: Path, target: Path) -> Path:
        order.append("replace")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_atomic(tmp_path / "file", b"x")
    assert order == ["fsync", "replace"]


# ---- units


def test_units_come_back_as_they_were(store: Store) -> None:
    store.write_unit("01-pgd", 2, unit())
    found = store.read_unit("01-pgd", 2)
    assert found is not None
    for name, array in unit().items():
        assert np.array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert store.unit_path("01-pgd", 2).name == f"{2 * UNIT:07d}-{3 * UNIT:07d}.safetensors"
    assert store.read_unit("01-pgd", 3) is None
    assert store.read_unit("02-pgd", 2) is None


def test_empty_arrays_come_back(store: Store) -> None:
    store.write_unit("01-pgd", 0, {"position": np.arange(0), "parameters": np.zeros((0, 1, 2, 2), dtype=np.float32)})
    found = store.read_unit("01-pgd", 0)
    assert found is not None
    assert found["parameters"].shape == (0, 1, 2, 2)


@pytest.mark.parametrize("damage", ["cut", "cut-header", "empty", "garbage", "html"])
def test_a_damaged_unit_counts_as_missing(store: Store, damage: str) -> None:
    store.write_unit("01-pgd", 0, unit())
    path = store.unit_path("01-pgd", 0)
    whole = path.read_bytes()
    changed = {"cut": whole[:-5], "cut-header": whole[:20], "empty": b"", "garbage": os.urandom(300), "html": b"<html>" + whole}
    path.write_bytes(changed[damage])
    assert store.read_unit("01-pgd", 0) is None
    store.write_unit("01-pgd", 0, unit())
    assert path.read_bytes() == whole


def test_a_turned_bit_anywhere_counts_as_missing_or_changes_nothing(store: Store) -> None:
    store.write_unit("01-pgd", 0, unit())
    path = store.unit_path("01-pgd", 0)
    whole, lost = path.read_bytes(), 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        found = store.read_unit("01-pgd", 0)
        lost += found is None
        assert found is None or all(np.array_equal(found[name], array) for name, array in unit().items())
    assert lost > 0.9 * len(whole)


def test_a_unit_without_a_checksum_or_of_another_place_counts_as_missing(store: Store, tmp_path: Path) -> None:
    store.write_unit("01-pgd", 0, unit())
    whole = store.unit_path("01-pgd", 0).read_bytes()
    store.unit_path("01-pgd", 1).write_bytes(whole)
    assert store.read_unit("01-pgd", 1) is None
    other = Store(tmp_path / "other")
    other.bind(SPECIFICATION | {"seed": 1}, {})
    other.write_unit("01-pgd", 0, unit())
    other.unit_path("01-pgd", 0).write_bytes(whole)
    assert other.read_unit("01-pgd", 0) is None
    store.unit_path("01-pgd", 0).write_bytes(safetensors.numpy.save(unit()))
    assert store.read_unit("01-pgd", 0) is None


def test_what_a_run_keeps_for_itself_has_a_checksum(store: Store) -> None:
    held = [{"check": "eval mode", "status": "pass", "message": "ü", "cure": ""}]
    store.write_json("diagnostics.json", held)
    assert store.read_json("diagnostics.json") == held
    path = store.path("diagnostics.json")
    whole = path.read_bytes()
    for changed in (whole.replace(b'"pass"', b'"warn"'), json.dumps(held).encode(), whole[:-9], b"[" * 10_000):
        path.write_bytes(changed)
        assert store.read_json("diagnostics.json") is None


def test_half_written_files_of_dead_processes_are_swept(store: Store) -> None:
    store.write_unit("01-pgd", 0, unit())
    dead, alive = subprocess.Popen(["true"]), os.getppid()
    dead.wait()
    left = [f"units/01-pgd/.0000000-0000128.safetensors.{dead.pid}.tmp", f".summary.json.{dead.pid}.tmp"]
    kept = [f".report.html.{alive}.tmp", ".notes.tmp", "notes.tmp"]
    for name in (*left, *kept):
        (store.folder / name).write_bytes(b"half")
    Store(store.folder).bind(SPECIFICATION, {})
    assert not any((store.folder / name).exists() for name in left)
    assert all((store.folder / name).exists() for name in kept)


# ---- binding


def test_the_same_specification_resumes(store: Store) -> None:
    store.bind(json.loads(json.dumps(SPECIFICATION)), {"status": "complete"})
    held = store.read_json("run.json")
    assert held["status"] == "complete"
    assert held["specification"] == SPECIFICATION
    assert held["schema_version"] == 1


def test_another_specification_is_refused_naming_the_fields(store: Store) -> None:
    before = (store.folder / "run.json").read_bytes()
    with pytest.raises(BadInput) as caught:
        store.bind(SPECIFICATION | {"eps": ["0.1", "0.2"], "goal": "targeted:next"}, {})
    told = str(caught.value)
    assert '["0.1"] there, ["0.1","0.2"] asked for' in told
    assert 'goal: null there, "targeted:next" asked for' in told
    assert "--out" in told
    assert "seed" not in told
    assert "\n" not in told
    assert (store.folder / "run.json").read_bytes() == before


def test_a_run_of_an_older_rule_is_refused_in_one_clear_line(store: Store) -> None:
    with pytest.raises(BadInput, match="older rule") as caught:
        Store(store.folder).bind(SPECIFICATION | {"judge": 2}, {})
    assert "--out" in str(caught.value)
    assert "there," not in str(caught.value)


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("ten years")
    with pytest.raises(BadInput, match="not empty"):
        Store(tmp_path).bind(SPECIFICATION, {})
    assert names(tmp_path) == ["thesis.tex"]


def test_what_a_killed_run_leaves_is_no_foreign_folder(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    with store.locked():
        (store.folder / ".run.json.4711.tmp").write_text('{"half')
        store.bind(SPECIFICATION, {})
    assert store.read_json("run.json")["specification"] == SPECIFICATION


@pytest.mark.parametrize("content", ['{"digest": "ab', "", "[1]", '"text"', "\x00\xff"])
def test_a_damaged_run_file_is_told(store: Store, content: str) -> None:
    (store.folder / "run.json").write_text(content)
    with pytest.raises(BadInput, match=r"run\.json is damaged"):
        store.bind(SPECIFICATION, {})


def test_json_has_no_room_for_nan(store: Store) -> None:
    with pytest.raises(ValueError, match="JSON"):
        store.write_json("summary.json", {"a": float("nan")})
    assert store.read_json("summary.json") is None
    store.write_json("summary.json", {"a": 1.5})
    assert store.read_json("summary.json") == {"a": 1.5}


def test_canonical_json_is_one_text() -> None:
    assert canonical_json({"b": [1, 2], "a": "ü"}) == canonical_json({"a": "ü", "b": (1, 2)}) == '{"a":"\\u00fc","b":[1,2]}'


# ---- locking


def test_a_second_process_is_refused(store: Store) -> None:
    with store.locked(), pytest.raises(BadInput, match="another process"), Store(store.folder).locked():
        pass
    with Store(store.folder).locked():
        pass


def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(BadInput, match="run folder"), Store(place).locked():
            pass


# ---- files written row by row


def test_rows_are_readable_by_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "rows.safetensors"
    rng = np.random.default_rng(0)
    whole: Arrays = {
        "index": np.arange(7),
        "size": rng.random(7),
        "image": rng.random((7, 1, 3, 3), dtype=np.float32),
    }

    def parts() -> Iterator[Arrays]:
        for first, last in ((0, 3), (3, 4), (4, 7)):
            yield {name: array[first:last] for name, array in whole.items()}

    shapes = {"index": ((7,), "I64"), "size": ((7,), "F64"), "image": ((7, 1, 3, 3), "F32")}
    write_rows(path, shapes, parts())
    found = safetensors.numpy.load_file(path)
    assert found.keys() == whole.keys()
    for name, array in whole.items():
        assert np.array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert names(tmp_path) == ["rows.safetensors"]


def test_rows_that_do_not_fill_the_shape_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.safetensors"
    with pytest.raises(ValueError, match="index has 16 bytes, its shape needs 24"):
        write_rows(path, {"index": ((3,), "I64")}, iter([{"index": np.arange(2)}]))
    assert names(tmp_path) == []
