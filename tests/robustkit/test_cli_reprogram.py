"""`robustkit reprogram` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustkit.cli import main
from robustkit.models import build, save_model

TEXT = "conv(1,4,3,s2,p1)-relu-flatten-linear(256,10)"
KEYS = {
    *("schema_version", "victim", "task", "accuracy", "interval95", "training_accuracy", "control_accuracy", "grey_accuracy"),
    *("largest_class", "labels", "program_values", "settings", "seed", "seconds", "program", "picture"),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a 16 x 16 victim, as the current one."""
    save_model(build(TEXT), tmp_path / "victim.safetensors", architecture=TEXT, input_shape=(1, 16, 16), classes=10)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROBUSTKIT_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


RUN = "reprogram victim.safetensors --task digits:n=200 --settings epochs=2 --out program.safetensors"


def test_json_is_one_document(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN.split(), "--json"]) == 0
    told = capsys.readouterr()
    answer = json.loads(told.out)
    assert set(answer) == KEYS
    assert answer["task"]["n"] == 200 and answer["task"]["held_back"] == 355
    assert answer["program_values"] == 16 * 16 - 8 * 8
    assert 0 <= answer["accuracy"] <= 1 and 0 <= answer["control_accuracy"] <= 1
    assert (place / "program.safetensors").is_file() and (place / "program.png").is_file()
    assert main([*RUN.replace("program.s", "again.s").split(), "--json"]) == 0
    assert (place / "again.safetensors").read_bytes() == (place / "program.safetensors").read_bytes(), "the same command, the same file"


def test_a_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN.split(), "--no-control"]) == 0
    told = capsys.readouterr().out
    assert "355 held-back images" in told
    assert "left out" in told
    assert "program.png" in told


BAD = [
    ("reprogram victim.safetensors --out p.safetensors", 2, "--task"),
    ("reprogram victim.safetensors --task digits", 2, "--out"),
    ("reprogram nothing.safetensors --task digits --out p.safetensors", 3, "no such file"),
    ("reprogram victim.safetensors --task digts --out p.safetensors", 2, "did you mean 'digits'"),
    ("reprogram victim.safetensors --task mnist --out p.safetensors", 3, "looked for"),
    ("reprogram victim.safetensors --task digits --out p.bin", 2, ".safetensors"),
    ("reprogram victim.safetensors --task digits --out p.safetensors --settings epochs=0", 2, "at least 1"),
    ("reprogram victim.safetensors --task digits --out p.safetensors --settings steps=3", 2, "unknown option"),
    ("reprogram victim.safetensors --task digits --out p.safetensors --settings scale=2", 2, "no room"),
    ("reprogram zoo:digits-standard --task digits --out p.safetensors", 2, "no room"),
    ("reprogram victim.safetensors --task counting-squares:cell=5 --out p.safetensors", 2, "no room"),
    ("reprogram victim.safetensors --task counting-squares:n=0 --out p.safetensors", 2, "at least 1"),
    ("reprogram victim.safetensors --task digits --out victim.safetensors/p.safetensors --settings epochs=1", 2, "cannot"),
    ("reprogram victim.safetensors --task digits --out p.safetensors --device tpu", 2, "device"),
]


@pytest.mark.parametrize(("command", "code", "says"), BAD, ids=[case[0] for case in BAD])
def test_bad_input_ends_in_one_clear_line(command: str, code: int, says: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("robustkit: ")
    assert told.err.count("\n") == 1
    assert says in told.err
    assert not (place / "p.safetensors").exists()
