"""Run folders that are damaged, edited or made to harm: one clear line, or the figures that the columns give."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import damages
from synthetic_run import edit_summary, synthetic_run

from robustkit.cli import main
from robustkit.core.untrusted_files import read_file
from robustkit.core.untrusted_json import DEEPEST, parse, schema
from robustkit.errors import BadInput, Missing
from robustkit.report.runs import load_run

TRIES = 150
FILES = ("summary.json", "run.json", "samples.npz", "gallery.safetensors")


@pytest.mark.parametrize("command", ["show", "compare", "report"])
def test_damage_never_ends_in_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    sources = [
        synthetic_run(tmp_path / "a", n=40),
        synthetic_run(tmp_path / "b", n=30, curve=True),
        synthetic_run(tmp_path / "c", n=20, judge=1),
    ]
    draw, codes = random.Random(command), set()
    for _ in range(TRIES if command != "report" else TRIES // 3):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        source = draw.choice(sources)
        shutil.copytree(source, folder)
        path = folder / draw.choice(FILES)
        draw.choice(damages(path))(path, draw)
        more = {"compare": [str(source)], "report": ["--html", str(tmp_path / "page.html")]}.get(command, [])
        codes.add(main([command, str(folder), *more]))
        told = capsys.readouterr().err
        assert told.count("\n") <= 7
    assert codes <= {0, 2, 3}
    assert 2 in codes


# ---- what harms


def bomb(method: int) -> bytes:
    """An archive whose first column claims to be small and unpacks to much."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (20,), }"
        whole = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header.ljust(117) + b"\n"
        archive.writestr("index.npy", whole + bytes(60_000_000))
    return buffer.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_bomb_is_not_unpacked(tmp_path: Path, method: int) -> None:
    folder = synthetic_run(tmp_path / "run", n=20)
    with zipfile.ZipFile(folder / "samples.npz") as whole:
        rest = {name: whole.read(name) for name in whole.namelist() if name != "index.npy"}
    (folder / "samples.npz").write_bytes(bomb(method))
    with zipfile.ZipFile(folder / "samples.npz", "a", method) as archive:
        for name, content in rest.items():
            archive.writestr(name, content)
    with pytest.raises(BadInput, match=r"samples\.npz.*(unpacks to more|compressed in another way)"):
        load_run(folder)


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    def made(kind: str) -> Path:
        path = tmp_path / kind
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to("/dev/zero")
        elif kind == "folder":
            path.mkdir()
        else:
            with path.open("wb") as file:
                file.truncate(1 << 40)
        return path

    for kind in ("pipe", "link", "folder", "sparse"):
        with pytest.raises(BadInput, match=kind if kind != "sparse" else "at most"):
            read_file(made(kind), 1 << 20)
    with pytest.raises(Missing):
        read_file(tmp_path / "nothing", 1)


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 100_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"a": ' + b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1) + b"}",
        b'{"a": NaN}',
        b'{"a": 1e400}',
        b'{"a": 1, "a": 2}',
        b'{"a": "\\ud800"}',
        b'{"a": ' + b"1" * 5000 + b"}",
        b"\xff\xfe",
        b"[1]",
        b"",
    ],
)
def test_json_that_is_not_read(raw: bytes) -> None:
    with pytest.raises(BadInput, match="it"):
        parse(raw, "it")


# ---- schemas


@pytest.mark.parametrize("form", ["run", "summary", "board", "manifest", "challenge", "ledger"])
def test_the_published_schemas_are_schemas(form: str) -> None:
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(schema(form))
    assert schema(form)["$id"] == f"robustkit/{form}.json"


def drop(*keys: str) -> Callable[[Path], None]:
    return edit_summary(lambda summary: [summary.pop(key) for key in keys] and None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drop("robust_accuracy_at_most"), "robust_accuracy_at_most is missing"),
        (drop("checked"), "checked is missing"),
        (edit_summary(lambda s: s.update(clean_accuracy=1.5)), "clean_accuracy: found 1.5"),
        (edit_summary(lambda s: s.update(clean_accuracy="0.9")), "expected a number"),
        (edit_summary(lambda s: s["stages"][0].update(received=True)), r"stages\[0\]\.received: found true"),
        (edit_summary(lambda s: s.update(eps=["1e300"])), "budgets reach"),
        (edit_summary(lambda s: s.update(curve=s["curve"] * 2000)), "too long"),
        (edit_summary(lambda s: s.update(schema_version=1.0)), "schema_version 1.0"),
    ],
)
def test_a_summary_of_another_form_is_told(tmp_path: Path, change: Callable[[Path], None], told: str) -> None:
    folder = synthetic_run(tmp_path / "run", n=20)
    change(folder)
    with pytest.raises(BadInput, match=told):
        load_run(folder)


# ---- figures


def test_a_forged_summary_is_told_and_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = synthetic_run(tmp_path / "run", n=50)
    true = load_run(folder).summary
    forged = {"robust_accuracy": 0.999, "robust_accuracy_at_most": 0.999, "certified_accuracy": 0.9, "open": 0.099}
    edit_summary(lambda summary: summary.update(forged))(folder)
    run = load_run(folder)
    assert all(run.summary[key] == true[key] for key in (*forged, "interval95", "curve"))
    assert any("robust_accuracy is 0.999, the columns give" in text for text in run.disagreements())
    assert main(["show", "--json", str(folder)]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["robust_accuracy"] == true["robust_accuracy"]
    assert "robust_accuracy is 0.999" in shown.err
    assert "contradicts itself" not in (main(["show", str(synthetic_run(tmp_path / "other", n=50))]), capsys.readouterr().err)[1]


@pytest.mark.parametrize("key", ["clean_accuracy", "certified_statistical", "population95", "stages", "curve", "n"])
def test_every_figure_is_read_off_the_columns(tmp_path: Path, key: str) -> None:
    folder = synthetic_run(tmp_path / "run", n=50)
    true = load_run(folder)
    assert true.disagreements() == []

    def forge(summary: dict[str, Any]) -> None:
        if key == "n":
            summary["data"]["n"] = 10_000
        elif key == "population95":
            summary[key][1] = 0.9999
        elif key in ("stages", "curve"):
            summary[key][-1]["robust_accuracy_at_most"] = summary[key][-1]["robust_accuracy"] = 0.9999
        else:
            summary[key] = 0.7777

    edit_summary(forge)(folder)
    run = load_run(folder)
    assert run.disagreements()
    assert run.summary == true.summary


def test_columns_that_no_run_writes_are_refused(tmp_path: Path) -> None:
    folder = synthetic_run(tmp_path / "run", n=50)
    whole = dict(np.load(folder / "samples.npz"))
    for name, value in [
        ("upper", np.nan),
        ("lower", 1e9 + 1),
        ("lower", np.inf),
        ("upper", -1.0),
        ("label", -7),
        ("lower_statistical", np.nan),
    ]:
        changed = {key: column.copy() for key, column in whole.items()}
        changed[name][np.flatnonzero(whole["upper"] > 0)[0]] = value
        np.savez(folder / "samples.npz", **changed)
        with pytest.raises(BadInput, match="row"):
            load_run(folder)


# ---- runs of an older rule


def test_a_run_of_the_old_rule_shows_what_its_attacks_left_as_a_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = synthetic_run(tmp_path / "old", n=50, judge=1), synthetic_run(tmp_path / "new", n=50)
    left = load_run(new).summary["robust_accuracy"]
    run = load_run(old)
    assert run.summary["robust_accuracy"] is None
    assert run.summary["robust_accuracy_at_most"] == left
    assert run.disagreements() == []
    for command in (["show", str(old)], ["compare", str(old), str(new)]):
        assert main(command) == 0
        assert "judged by the old rule" in " ".join(capsys.readouterr().out.split())
    assert main(["report", str(old), "--html", str(tmp_path / "page.html")]) == 0
    assert "judged by the old rule" in (tmp_path / "page.html").read_text()


def test_a_summary_of_version_1_is_read(tmp_path: Path) -> None:
    folder = synthetic_run(tmp_path / "run", n=50, judge=1)

    def older(summary: dict[str, Any]) -> None:
        summary["schema_version"] = 1
        for one in (summary, *summary["curve"], *summary["stages"]):
            one.pop("robust_accuracy_at_most")
        del summary["checked"], summary["not_established"]

    edit_summary(older)(folder)
    run = load_run(folder)
    assert run.disagreements() == []
    assert "old rule" in run.summary["not_established"]
    assert isinstance(run.summary["robust_accuracy_at_most"], float)
