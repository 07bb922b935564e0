"""The command line as a user types it: answers on stdout, one clear line for every mistake."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robustkit.cli import main
from robustkit.models import build, save_model

KEYS = [
    *("schema_version", "model", "data", "threat", "eps", "goal", "labels", "seed"),
    *("clean_accuracy", "robust_accuracy", "robust_accuracy_at_most", "certified_accuracy"),
    *("certified_statistical", "certified_conditional", "open", "checked", "not_established"),
    *("interval95", "population95", "curve", "eight_bit", "stages", "diagnostics", "environment", "run"),
]
STAGE_KEYS = {
    *("name", "spec", "kind", "received", "settled", "robust_accuracy", "certified_accuracy"),
    *("seconds", "forwards", "backwards", "queries"),
}

USER_CODE = """
import torch
from torch import nn
from robustkit import Classifier

def normalised(): return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), mean=[0.3], std=[0.4])
def gelu(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Softmax(1), nn.Linear(20, 10))
def raises(): raise KeyError("nope")
class OneNumber(nn.Module):
    def forward(self, x): return x.flatten(1).sum(1)
class asserts(nn.Module):
    def forward(self, x): assert not len(x)
def pair(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
def no_std(): return Classifier(pair(), std=[0])
def training(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10)).train()
def function(): return lambda x: x.flatten(1)[:, :10]
class Drops(nn.Module):
    def __init__(self): super().__init__(); self.last = nn.Linear(64, 10)
    def forward(self, x): return self.last(nn.functional.dropout(x.flatten(1)))
class Draws(Drops):
    def forward(self, x): return self.last(x.flatten(1)) + torch.randn(10)
class Branches(Drops):
    def forward(self, x): return self.last(x.flatten(1)) if x.sum() > 0 else -self.last(x.flatten(1))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, user code and damaged files, as the current one."""
    text = "conv(1,4,3,s2,p1)-relu-flatten-linear(64,10)"
    save_model(build(text), tmp_path / "model.safetensors", architecture=text, input_shape=(1, 8, 8), classes=10)
    (tmp_path / "usercode.py").write_text(USER_CODE)
    (tmp_path / "html.safetensors").write_text("<!DOCTYPE html><html>not found</html>")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:700])
    (tmp_path / "code.pt").write_bytes(pickle.dumps({"weight": 1}))
    image = np.full((4, 1, 8, 8), 0.5, dtype=np.float32)
    np.savez(tmp_path / "nan.npz", x=image * np.nan, y=np.zeros(4, int))
    np.savez(tmp_path / "high.npz", x=image * 2.5, y=np.zeros(4, int))
    np.savez(tmp_path / "big.npz", x=image * 300, y=np.zeros(4, int))
    np.savez(tmp_path / "empty.npz", x=image[:0], y=np.zeros(0, int))
    np.savez(tmp_path / "label.npz", x=image, y=np.array([0, 1, 2, 12]))
    np.savez(tmp_path / "pair.npz", x=image, y=np.array([0, 1, 1, 0]))
    np.savez(tmp_path / "colour.npz", x=np.zeros((4, 3, 8, 8), np.float32), y=np.zeros(4, int))
    for name, content in (("broken", '{"schema_version": '), ("stripped", '{"schema_version": 1}')):
        (tmp_path / name).mkdir()
        for file in ("summary.json", "run.json"):
            (tmp_path / name / file).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROBUSTKIT_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
RUN = "evaluate model.safetensors --data digits:n=20 --certifier ibp --attack pgd:steps=3"

BAD = [
    ("evaluate model.safetensors --attack pdg", 2, "did you mean 'pgd'"),
    ("evaluate zoo:digits-pdg", 2, "unknown zoo model"),
    ("evaluate no-such-model", 2, "unknown model"),
    ("evaluate missing.safetensors", 3, "no such file"),
    ("evaluate model.safetensors --data minst", 2, "did you mean 'mnist'"),
    ("evaluate model.safetensors --data mnist", 3, "looked for"),
    ("evaluate model.safetensors --data digits:n=", 2, "malformed"),
    ("evaluate model.safetensors --data digits:n=100000", 2, "n = 100000"),
    ("evaluate model.safetensors --attack pgd:(", 2, "malformed"),
    ("evaluate model.safetensors --attack pgd:steps=many", 2, "whole number"),
    ("evaluate model.safetensors --attack pgd:stpes=3", 2, "did you mean 'steps'"),
    ("evaluate model.safetensors --attack pgd:steps=0", 2, "at least 1"),
    ("evaluate model.safetensors --threat linf:-0.1", 2, "negative"),
    ("evaluate model.safetensors --threat linf:wide", 2, "number"),
    ("evaluate model.safetensors --threat linf:1/0", 2, "divides by zero"),
    ("evaluate model.safetensors --threat inf:0.1", 2, "did you mean 'linf'"),
    ("evaluate model.safetensors --eps 0.1,nan", 2, "not a number"),
    ("evaluate model.safetensors --data npz:label.npz", 2, "labels reach 12"),
    ("evaluate model.safetensors --data npz:nan.npz", 2, "NaN"),
    ("evaluate model.safetensors --data npz:big.npz", 2, "150"),
    ("evaluate model.safetensors --data npz:empty.npz", 2, "empty"),
    ("evaluate model.safetensors --data npz:colour.npz", 2, "(3, 8, 8)"),
    ("evaluate usercode:OneNumber", 2, "returned"),
    ("evaluate usercode:raises", 2, "KeyError"),
    ("evaluate usercode:missing", 2, "missing"),
    ("evaluate html.safetensors", 2, "HTML"),
    ("evaluate cut.safetensors", 2, "cut.safetensors"),
    ("evaluate code.pt", 2, "pickle"),
    ("certify usercode:gelu --data digits:n=20", 2, "Softmax"),
    ("certify usercode:gelu --data digits:n=20 --method crown", 2, "Softmax"),
    ("certify usercode:training --data digits:n=20", 2, "model.eval()"),
    ("certify usercode:Drops --data digits:n=20", 2, "random also in eval mode"),
    ("certify usercode:Draws --data digits:n=20 --method ibp", 2, "randomness"),
    ("certify usercode:Branches --data digits:n=20", 2, "branches on pixel values"),
    ("certify usercode:function --data digits:n=20", 2, "no nn.Module"),
    ("certify model.safetensors --data npz:high.npz", 2, "[0,1]"),
    ("certify model.safetensors --threat linf:-0.1", 2, "negative"),
    ("certify model.safetensors --eps=-0.1", 2, "negative"),
    ("certify model.safetensors --threat l2:0.1 --method smoothing:sigma=0", 2, "sigma is 0"),
    ("certify smooth:(model.safetensors),sigma=-1 --threat l2:0.1", 2, "sigma is -1"),
    ("certify model.safetensors --threat l2:0.1 --method smoothing:sigma=0.25,n=10,n0=100", 2, "n at least n0"),
    ("certify model.safetensors --threat l2:0.1 --method smoothing:sigma=0.25,alpha=0", 2, "alpha is 0"),
    ("certify model.safetensors --threat l2:0.1 --method smoothing:sigma=0.25,alpha=1", 2, "alpha is 1"),
    ("certify smooth:(model.safetensors),sigma=0.25 --threat l2:0.1 --method ibp", 2, "--method smoothing"),
    ("certify smooth:(model.safetensors),sigma=0.25 --threat linf:0.1", 2, "threat linf"),
    ("certify model.safetensors --threat l2:0.1 --method smoothing", 2, "smooth:(MODEL)"),
    ("certify model.safetensors --threat rotation", 2, "no certifier works for threat rotation"),
    ("certify model.safetensors --threat l1:1 --method ibp", 2, "does not work for threat l1"),
    ("certify model.safetensors --method cascade --method ibp", 2, "name it alone"),
    ("certify model.safetensors --method none", 2, "no method is named"),
    ("certify model.safetensors --method ipb", 2, "did you mean 'ibp'"),
    ("evaluate model.safetensors --batch-size 0", 2, "batch size"),
    ("evaluate model.safetensors --batch-size big", 2, "batch size"),
    ("evaluate model.safetensors --time-limit soon", 2, "time limit"),
    ("evaluate model.safetensors --suite standrad", 2, "did you mean 'standard'"),
    ("evaluate model.safetensors --goal wrong", 2, "goal"),
    ("evaluate model.safetensors --labels wrong", 2, "labels"),
    ("evaluate model.safetensors --device tpu", 2, "device"),
    ("evaluate model.safetensors --fail-under 3", 2, "0 to 1"),
    ("evaluate model.safetensors --seed x", 2, "seed"),
    ("evalute", 2, "evaluate"),
    ("train nothing --data digits --out x.safetensors", 2, "unknown recipe"),
    ("train standard --data digits --out x.bin", 2, ".safetensors"),
    ("list nothing", 2, "unknown kind"),
    ("show attack:pdg", 2, "did you mean 'pgd'"),
    ("show nothing", 2, "nothing to show"),
    ("report nowhere --html x.html", 3, "no finished run"),
    ("evaluate model.safetensors --threat linf:1e400", 2, "units of the [0,1] box"),
    ("evaluate model.safetensors --eps 0.1,", 2, "not a number"),
    ("evaluate model.safetensors --eps=-0.1", 2, "negative"),
    ("evaluate model.safetensors --eps -0.1,0.2", 2, "--eps"),
    ("evaluate model.safetensors --batch-size=--5", 2, "batch size"),
    ("evaluate model.safetensors --batch-size ²", 2, "batch size"),
    ("evaluate model.safetensors --device cuda:99", 3, "--device cpu"),
    ("evaluate model.safetensors --device meta", 2, "device"),
    ("evaluate model.safetensors --fail-under nan", 2, "0 to 1"),
    ("evaluate model.safetensors --time-limit 0", 2, "time limit"),
    ("evaluate model.safetensors --out code.pt", 2, "run folder"),
    ("evaluate model.safetensors --out code.pt/below", 2, "run folder"),
    ("evaluate model.safetensors --out .", 2, "not empty"),
    ("evaluate model.safetensors --suite black-box --threat l0:3", 2, "not defined for threat l0"),
    ("evaluate model.safetensors --attack nes --threat l1:1", 2, "does not work for threat l1"),
    ("evaluate usercode:pair --data npz:pair.npz --attack apgd:dlr-targeted", 2, "at least 4 classes"),
    ("evaluate usercode:pair --data npz:pair.npz --attack fgsm:loss=dlr", 2, "at least 3 classes"),
    ("evaluate usercode:asserts", 2, "AssertionError"),
    ("evaluate usercode:no_std", 2, "std"),
    ("evaluate .", 2, "folder"),
    ("evaluate model.safetensors --data npz:nothere.npz", 3, "no nothere.npz"),
    ("show broken", 2, "no JSON document"),
    ("show stripped", 2, "is missing"),
    ("show .", 3, "summary.json is missing"),
    ("report broken --html x.html", 2, "no JSON document"),
    ("", 2, "COMMAND"),
    ("evaluate a b", 2, "unrecognized"),
]


@pytest.mark.parametrize(("command", "code", "says"), BAD, ids=[case[0] for case in BAD])
def test_bad_input_ends_in_one_clear_line(command: str, code: int, says: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("robustkit: ")
    assert told.err.count("\n") == 1
    assert "Traceback" not in told.err
    assert says in told.err


def test_json_is_one_document_with_the_documented_keys(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN.split(), "--threat", "linf:0.05", "--eps", "1/50,0.05", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert list(answer) == KEYS
    assert answer["eps"] == ["0.02", "0.05"]
    assert 0 <= answer["certified_accuracy"] <= answer["robust_accuracy"] <= answer["clean_accuracy"] <= 1
    assert answer["schema_version"] == 2
    assert {"spec", "sha256", "parameters"} <= set(answer["model"])
    assert {"spec", "sha256", "n"} <= set(answer["data"])
    assert set(answer["interval95"]) == {"clean_accuracy", "robust_accuracy", "certified_accuracy"}
    for stage in answer["stages"]:
        assert set(stage) >= STAGE_KEYS
    for point in answer["curve"]:
        assert set(point) == {"eps", "robust_accuracy", "robust_accuracy_at_most", "certified_accuracy"}
    assert (Path(answer["run"]) / "report.html").is_file()


def test_a_table_a_gate_and_the_run_shown_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN.split(), "--out", "run", "--fail-under", "1"]) == 1
    told = capsys.readouterr()
    assert "below --fail-under" in told.err
    assert "run/report.html" in told.out
    assert main(["show", "run"]) == 0
    assert capsys.readouterr().out.splitlines()[0] in told.out
    assert main(["report", "run", "--html", "again.html"]) == 0
    assert "<html" in (place / "again.html").read_text()


def test_a_folder_of_another_specification_is_refused_naming_the_fields(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN.split(), "--out", "run"]) == 0
    held = (place / "run/summary.json").read_bytes()
    capsys.readouterr()
    assert main([*RUN.split(), "--out", "run", "--seed", "1"]) == 2
    assert "seed: 0 there, 1 asked for" in capsys.readouterr().err
    assert (place / "run/summary.json").read_bytes() == held, "nothing already computed is lost"


def test_a_suite_leaves_out_certifiers_that_do_not_fit(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "usercode:gelu", "--data", "digits:n=20", "--attack", "fgsm", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in answer["stages"]] == ["fgsm"]
    (told,) = [d for d in answer["diagnostics"] if d["check"] == "certifier ibp"]
    assert told["status"] == "skipped"
    assert "Softmax" in told["message"]


def test_a_suite_leaves_out_attacks_that_need_more_classes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "usercode:pair", "--data", "npz:pair.npz", "--threat", "linf:0.001", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in answer["stages"]] == ["ibp", "apgd", "crown-ibp", "crown", "fab", "square"]
    (told,) = [d for d in answer["diagnostics"] if d["check"].startswith("attack apgd:loss=dlr-targeted")]
    assert told["status"] == "skipped"
    assert "4 classes" in told["message"]


def test_a_users_own_module_needs_no_change(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "usercode:normalised", "--data", "digits:n=20", "--attack", "pgd:steps=3", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["model"]["parameters"] == 650
    assert answer["stages"][0]["name"] == "ibp"


def test_training_then_evaluating_what_was_trained(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "standard:epochs=1", "--data", "digits:n=200", "--out", "trained.safetensors", "--no-evaluation"]) == 0
    assert capsys.readouterr().out.strip() == "trained.safetensors"
    assert main(["evaluate", "trained.safetensors", "--data", "digits:n=20", "--attack", "fgsm", "--json"]) == 0
    checks = {d["check"]: d["status"] for d in json.loads(capsys.readouterr().out)["diagnostics"]}
    assert checks["training data"] == "pass"
    assert main(["evaluate", "trained.safetensors", "--data", "digits:n=20,split=train", "--attack", "fgsm", "--json"]) == 0
    checks = {d["check"]: d["status"] for d in json.loads(capsys.readouterr().out)["diagnostics"]}
    assert checks["training data"] == "error"


@pytest.mark.parametrize(
    ("recipe", "model", "further"),
    [
        ("pgd:eps=0.05,epochs=1", "trained.safetensors", "--threat linf:0.05"),
        ("crown-ibp:eps=0.05,epochs=1", "trained.safetensors", "--threat linf:0.05"),
        ("smoothing:sigma=0.25,epochs=1", "smooth:(trained.safetensors),sigma=", "--threat l2:0.25 --suite rand"),
        ("standard:epochs=1", "trained.safetensors", "--threat linf:0.1"),
    ],
)
def test_training_ends_with_a_first_look_at_held_back_images(
    recipe: str, model: str, further: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", recipe, "--data", "digits:n=100", "--out", "trained.safetensors"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("trained.safetensors\n")
    assert f"{model}" in told
    assert "digits:n=" in told and "split=test" in told
    assert f"--data digits {further}\n" in told
    (run,) = (place / "runs").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["model"]["spec"].startswith(model)
    assert {d["check"]: d["status"] for d in summary["diagnostics"]}["training data"] in ("pass", "skipped")


def test_training_on_a_split_with_nothing_held_back_says_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "standard:epochs=1", "--data", "digits:n=50,split=test", "--out", "trained.safetensors"]) == 0
    told = capsys.readouterr()
    assert told.out == "trained.safetensors\n"
    assert "not evaluated" in told.err and "nothing is held back" in told.err


@pytest.mark.parametrize("what", ["attacks", "certifiers", "defenses", "recipes", "models", "data", "suites", "threats"])
def test_lists(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", what, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) >= 1
    assert main(["list", what]) == 0
    assert what in capsys.readouterr().out


@pytest.mark.parametrize("what", ["attack:pgd", "certifier:ibp", "defense:pgd", "suite:standard", "suite:quick"])
def test_shows(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", what]) == 0
    assert what.partition(":")[2] in capsys.readouterr().out


def test_doctor(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    assert {"torch", "python"} <= {check["name"] for check in json.loads(capsys.readouterr().out)}


def test_the_gate_opens_at_the_share_itself(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*RUN.split(), "--out", "run", "--json"]
    assert main(words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert main([*words, "--fail-under", str(answer["robust_accuracy"])]) == 0
    assert main([*words, "--fail-under", str(min(1.0, answer["robust_accuracy"] + 0.01))]) == 1


def test_an_interrupt_is_one_line_and_130(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*words: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("robustkit.engine.evaluate", interrupted)
    assert main(RUN.split()) == 130
    assert capsys.readouterr().err == "robustkit: interrupted\n"


def test_a_reader_that_goes_away_is_no_error(place: Path) -> None:
    code = f"import sys; from robustkit.cli import main; sys.exit(main({['list', 'attacks', '--json']!r}))"
    done = subprocess.run(f'{sys.executable} -c "{code}" | head -c 1', shell=True, capture_output=True, text=True, env=ENV)
    assert done.stdout == "["
    assert done.stderr == ""


def test_a_process_of_its_own_says_one_line(place: Path) -> None:
    """Nothing that is imported on the way adds a warning."""
    done = subprocess.run([sys.executable, "-m", "robustkit", "evaluate", "html.safetensors"], capture_output=True, text=True, env=ENV)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from robustkit.cli import main\n"
        "try: main(['evaluate', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'scipy', 'matplotlib')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--threat" in done.stdout
