"""A share that blind attacks left is an upper bound and no robust accuracy: so in every output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from robustkit import evaluate
from robustkit.checks.established import BLIND, NO_FUNCTION, not_established, rankable
from robustkit.cli import main
from robustkit.engine import Evaluation
from robustkit.leaderboard.comparing import compare
from robustkit.models import save_model
from robustkit.report import write_report
from robustkit.report.runs import load_run
from tests.helpers.saturated import pairwise
from tests.helpers.synthetic_run import synthetic_run

SPACE = "\u00a0"
ASKED: dict[str, Any] = {"data": "digits:n=100", "threat": "linf:0.1", "progress": False}


def finding(check: str, status: str = "error") -> dict[str, str]:
    return {"check": check, "status": status, "message": f"what {check} says", "cure": ""}


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """Named attacks that follow gradients, on a network that has none."""
    return evaluate(pairwise(), **ASKED, attacks=["pgd:steps=10"], eps=["0.05", "0.1"], out=tmp_path_factory.mktemp("blind") / "run")


@pytest.mark.parametrize("check", [*BLIND, *NO_FUNCTION])
def test_an_error_of_these_checks_leaves_no_robust_accuracy(check: str) -> None:
    assert not_established([finding("softmax"), finding(check), finding("converged", "warn")]) == f"{check}: what {check} says"
    assert not not_established([finding(check, "warn"), finding("softmax"), finding("training data")])


def test_all_of_them_are_named() -> None:
    assert not_established([finding("unbounded"), finding("state")]) == "unbounded: what unbounded says; also: state"


def test_what_may_be_ranked() -> None:
    sound = {"robust_accuracy": 0.5, "checked": True, "diagnostics": [finding("softmax", "warn")]}
    assert rankable(sound)
    for change in ({"robust_accuracy": None}, {"checked": False}, {"diagnostics": [finding("training data")]}):
        assert not rankable(sound | change)


def test_it_is_null_and_the_number_is_kept(blind: Evaluation) -> None:
    told = blind.summary()
    assert told["not_established"].startswith("zero gradients: ")
    assert told["checked"]
    assert told["robust_accuracy"] is None is told["open"] is told["interval95"]["robust_accuracy"]
    assert told["robust_accuracy_at_most"] > 0.8
    for row in told["curve"] + told["stages"]:
        assert row["robust_accuracy"] is None
        assert row["robust_accuracy_at_most"] > 0.8
    assert told["population95"][1] > told["robust_accuracy_at_most"]
    assert "true <= not established" in repr(blind)
    assert json.loads((blind.folder / "summary.json").read_text()) == told


def test_every_page_and_plot_says_so(blind: Evaluation) -> None:
    page = (blind.folder / "report.html").read_text()
    assert "Robust accuracy is not established." in page
    assert page.count("zero gradients: the gradient is exactly zero") >= 2
    assert "robust, no attack succeeded" not in page
    assert "robust accuracy not established" in (blind.folder / "curve.svg").read_text()
    assert not load_run(blind.folder).disagreements()


def test_the_tables_say_so_and_the_gate_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    text = "conv(1,32,3,s1,p1)-relu-conv(32,32,3,s2,p1)-relu-flatten-linear(512,64)-relu-linear(64,10)-linear(10,45,nobias)-tanh"
    save_model(pairwise(), "file.safetensors", architecture=f"{text}-linear(45,10,nobias)", input_shape=(1, 8, 8), classes=10)
    words = ["evaluate", "file.safetensors", "--data", "digits:n=40", "--threat", "linf:0.1"]
    words += ["--attack", "pgd:steps=5", "--out", "run"]
    assert main([*words, "--fail-under", "0"]) == 1
    told = capsys.readouterr()
    assert "not established (zero gradients: " in " ".join(told.out.split())
    assert "not established" in told.err
    assert main([*words, "--certifier", "none", "--checks", "off", "--out", "unchecked"]) == 0
    assert "empirical, not checked" in capsys.readouterr().out
    assert not json.loads(Path("unchecked/summary.json").read_text())["checked"]
    assert main(["show", "run"]) == 0
    assert "not established" in capsys.readouterr().out
    assert main(["compare", "run", "unchecked"]) == 0
    told_ = " ".join(capsys.readouterr().out.split())
    assert "not established" in told_
    assert "not checked" in told_


def test_a_sound_model_has_one(tmp_path: Path) -> None:
    told = evaluate("zoo:digits-standard", **ASKED, attacks=["pgd:steps=40"], report=False, out=tmp_path / "run").summary()
    assert told["not_established"] == ""
    assert told["checked"]
    assert told["robust_accuracy"] == told["robust_accuracy_at_most"]
    assert told["open"] is not None


def test_runs_side_by_side(tmp_path: Path) -> None:
    runs = [synthetic_run(tmp_path / "blind", not_established="zero gradients: none"), synthetic_run(tmp_path / "plain", strength=0.7)]
    runs += [synthetic_run(tmp_path / "unchecked", checked=False)]
    page = write_report(runs, tmp_path / "page.html").read_text()
    assert "not established (zero gradients: none): at most" in page
    assert "The robust accuracy was not checked." in page
    found = compare(runs[0], runs[1])
    assert found.robust[0] is None
    assert found.robust[1] == found.robust_at_most[1]
    assert found.caution == ("not established (zero gradients: none)", "")
    assert "not established" in found.verdict
    assert compare(runs[2], runs[1]).caution == ("not checked", "")


def test_certify_tests_no_robustness(tmp_path: Path) -> None:
    from robustkit import certify

    told = certify("zoo:digits-ibp", "digits:n=20", "linf:0.05", method="ibp", out=tmp_path / "run", report=False, progress=False).summary()
    assert not told["checked"]
    assert told["not_established"] == ""
