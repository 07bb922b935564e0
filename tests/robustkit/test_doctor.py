"""The doctor looks, says what to do, changes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robustkit import doctor
from robustkit.doctor import examine


def test_examine_reports_everything_with_a_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROBUSTKIT_DATA", str(tmp_path))
    before = torch.get_rng_state()
    found = {check.name: check for check in examine(out=tmp_path / "runs" / "a")}
    assert {"python", "torch", "torchvision", "foolbox", "cpu threads", "data digits", "data mnist", "zoo", "run folder"} <= set(found)
    assert found["python"].status == found["torch"].status == found["data digits"].status == found["run folder"].status == "ok"
    assert "1797" in found["data digits"].detail
    assert found["data mnist"].status == "warn"
    assert str(tmp_path) in found["data mnist"].detail
    for check in found.values():
        assert check.status in ("ok", "warn", "missing")
        assert check.detail
        assert "\n" not in check.detail
        assert bool(check.cure) == (check.status != "ok"), check
    assert torch.equal(before, torch.get_rng_state())
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_examine_finds_real_data(shared_data: Path) -> None:
    mnist = next(check for check in examine(root=shared_data) if check.name == "data mnist")
    assert mnist.status == "ok"
    assert str(shared_data) in mnist.detail


def test_a_file_in_the_way_of_the_run_folder_is_seen(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = next(check for check in examine(out=tmp_path / "file" / "runs") if check.name == "run folder")
    assert folder.status == "warn"
    assert "--out" in folder.cure


def test_a_failing_check_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> object:
        raise OSError("no such thing")

    monkeypatch.setattr(doctor, "_zoo", broken)
    found = {check.name: check for check in examine()}
    assert "OSError: no such thing" in found["zoo"].detail
    assert found["run folder"].detail


def test_broken_zoo_models_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustkit.models.load.ZOO", tmp_path)
    zoo = {check.name: check for check in examine()}["zoo"]
    assert zoo.status == "missing"
    assert "no model" in zoo.detail
    (tmp_path / "bad.safetensors").write_text("<html>")
    zoo = {check.name: check for check in examine()}["zoo"]
    assert zoo.status == "missing"
    assert "HTML" in zoo.detail


@pytest.mark.parametrize("order", ["compat", "compat twice"])
def test_torchvision_can_be_imported_in_a_fresh_process(order: str) -> None:
    code = "from robustkit.torchvision_compat import declare_operators, torchvision; "
    code += "declare_operators(); declare_operators(); " if order == "compat twice" else ""
    code += "tv = torchvision(); assert torchvision() is tv; import torch; "
    code += "print(tv.models.squeezenet1_1(num_classes=3).eval()(torch.zeros(1, 3, 64, 64)).shape[1])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(doctor.__file__).parents[1], check=False)
    assert done.stdout.strip() == "3", done.stderr
