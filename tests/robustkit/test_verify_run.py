"""`robustkit verify`: an honest run agrees, each forgery is named exactly, what cannot be checked here is said."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

import robustkit as rk
from robustkit.cli import main
from robustkit.engine import evaluate
from robustkit.errors import BadInput, Missing
from robustkit.evaluation.judge_witnesses import almost_wrong
from robustkit.spec import digest
from robustkit.store import canonical_json
from robustkit.verdict.goals import Goal
from robustkit.verdict.judge import Judge

OPTIONS: dict[str, Any] = {"attacks": ["pgd:steps=5", "fgsm"], "certifiers": ["ibp"], "checks": "off", "report": False, "progress": False}


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, digits_models: dict[str, str]) -> Path:
    """A small complete run with its model in the folder; never changed by tests."""
    folder = tmp_path_factory.mktemp("honest") / "run"
    evaluate(digits_models["certified"], "digits:n=48", "linf:0.06", eps=["0.03", "0.06"], out=folder, **OPTIONS)
    shutil.copy(digits_models["certified"], folder / "model.safetensors")
    return folder


@pytest.fixture
def run(honest: Path, tmp_path: Path) -> Path:
    """A copy, to be forged."""
    return Path(shutil.copytree(honest, tmp_path / "run"))


def columns(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    with np.load(run / "samples.npz") as held:
        own = dict(held)
    change(own)
    np.savez_compressed(run / "samples.npz", **own)


def document(run: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    told = json.loads((run / name).read_text())
    change(told)
    (run / name).write_text(json.dumps(told))


def witnesses(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    held = safetensors.numpy.load_file(run / "witnesses.safetensors")
    found = change(held) or held
    safetensors.numpy.save_file({key: np.ascontiguousarray(value) for key, value in found.items()}, run / "witnesses.safetensors")


def broken(own: dict[str, Any]) -> int:
    return int(np.flatnonzero(own["upper_stage"] >= 0)[0])


def set_column(name: str, place: Callable[[dict[str, Any]], int], value: Callable[[Any], Any]) -> Callable[[Path], None]:
    def change(own: dict[str, Any]) -> None:
        own[name][place(own)] = value(own[name][place(own)])

    return lambda run: columns(run, change)


def flip_a_pixel(held: dict[str, Any]) -> None:
    held["image"][0, 0, 3, 3] += 0.25


def move_a_parameter(held: dict[str, Any]) -> None:
    held["parameters"][0] *= 0.5


def invent(own: dict[str, Any]) -> None:
    """A certificate just below an adversarial example: nothing but a proof of its own can tell that it is none."""
    place = broken(own)
    own["lower"][place], own["lower_stage"][place] = own["upper"][place] * 0.999, 1


def leave_out(run: Path) -> None:
    """A broken sample is called robust, in the columns and among the witnesses alike."""

    def change(own: dict[str, Any]) -> None:
        place = broken(own)
        own["upper"][place], own["upper_stage"][place], own["adversarial_class"][place] = np.inf, -1, -1

    columns(run, change)
    witnesses(run, lambda held: {key: value[1:] for key, value in held.items()})


def swap(told: dict[str, Any]) -> None:
    told["stages"][0], told["stages"][2] = told["stages"][2], told["stages"][0]


def other_model(told: dict[str, Any]) -> None:
    told["specification"]["model"]["sha256"] = "0" * 64
    told["digest"] = digest(canonical_json(told["specification"]), 32)


def other_budgets(told: dict[str, Any]) -> None:
    told["specification"]["eps"] = ["0.03", "0.05"]


def other_end(told: dict[str, Any]) -> None:
    told["interval95"]["robust_accuracy"][0] += 0.01


def other_point(told: dict[str, Any]) -> None:
    told["curve"][1]["certified_accuracy"] = 0.125


FORGERIES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pixel": (lambda run: witnesses(run, flip_a_pixel), "its stored image differs from the one that its parameters make"),
    "a parameter": (lambda run: witnesses(run, move_a_parameter), "witness of sample .*its size is .*the columns say"),
    "a smaller upper": (set_column("upper", broken, lambda v: v / 2), "witness size of row 0 is|lower reaches upper"),
    "a contradiction": (set_column("lower", broken, lambda v: 1.0), "lower reaches upper"),
    "a lower": (lambda run: columns(run, invent), "no stage stored such a proof"),
    "no witness file": (lambda run: (run / "witnesses.safetensors").unlink(), "are called broken, and there is no witness"),
    "a witness less": (lambda run: witnesses(run, lambda held: {k: v[1:] for k, v in held.items()}), "not those of the"),
    "a witness left out": (leave_out, "stored an adversarial example of size"),
    "a witness's stage": (lambda run: witnesses(run, lambda held: held["stage"].__iadd__(1) is None), "witness stage of row 0"),
    "a label": (set_column("label", lambda own: 3, lambda v: (v + 1) % 10), "label of row 3"),
    "an index": (set_column("index", lambda own: 3, lambda v: v + 1), "index of row 3"),
    "an answer": (set_column("predicted", lambda own: 3, lambda v: (v + 1) % 10), "predicted of row 3"),
    "a class": (set_column("adversarial_class", broken, lambda v: (v + 1) % 10), "adversarial_class of row"),
    "a confidence": (set_column("confidence", lambda own: 3, lambda v: v / 2), "sample 3: confidence is"),
    "a margin": (set_column("clean_margin", lambda own: 3, lambda v: v + 1), "sample 3: clean_margin is"),
    "a stage reference": (set_column("lower_stage", lambda own: int(np.argmax(own["lower"])), lambda v: 4), "names no certifier"),
    "budgets": (lambda run: document(run, "summary.json", lambda told: told.update(eps=["0.03", "0.05"])), "summary.json: eps is"),
    "budgets in run.json": (
        lambda run: document(run, "run.json", lambda told: told["specification"].update(eps=["0.05"])),
        "digest does not",
    ),
    "a share": (lambda run: document(run, "summary.json", lambda told: told.update(robust_accuracy=0.99)), "robust_accuracy is 0.99"),
    "open": (lambda run: document(run, "summary.json", lambda told: told.update(open=0.5)), "open is 0.5"),
    "an interval": (lambda run: document(run, "summary.json", other_end), "interval95.robust_accuracy is"),
    "the curve": (lambda run: document(run, "summary.json", other_point), "certified_accuracy at 0.03 is"),
    "another model": (lambda run: document(run, "run.json", other_model), "the model's sha256 is '0000000000000000', that of"),
    "other data": (lambda run: document(run, "summary.json", lambda told: told["data"].update(digest="0" * 64)), "the data's digest is"),
    "another threat": (lambda run: document(run, "summary.json", lambda told: told.update(threat="linf:0.07")), "threat is 'linf:0.07'"),
    "swapped stages": (lambda run: document(run, "summary.json", swap), "stage 0 is 'pgd"),
}


def test_an_honest_run_agrees(honest: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in honest.rglob("*") if path.is_file()}
    found = rk.verify(honest, certificates=True)
    assert found.problems == [] and found.unchecked == [] and found.ok and found.exit_code == 0
    assert found.measured["samples"] == 48 and found.measured["witnesses"] > 3 and found.measured["certificates"] > 20
    assert {path: path.read_bytes() for path in honest.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_named(run: Path, name: str) -> None:
    forge, reason = FORGERIES[name]
    forge(run)
    found = rk.verify(run)
    assert found.exit_code == 1
    assert any(re.search(reason, problem) for problem in found.problems), found.problems


def test_not_a_number(run: Path) -> None:
    set_column("upper", broken, lambda v: np.nan)(run)
    found = rk.verify(run)
    assert found.exit_code == 1 and any(re.search("upper is (NaN|no size)", problem) for problem in found.problems)


def test_an_invented_proof_is_proven_again(run: Path) -> None:
    """Without the units only the certifier itself can tell."""
    shutil.rmtree(run / "units")
    columns(run, invent)
    with np.load(run / "samples.npz") as held:
        place, radius = broken(held), held["lower"][broken(held)]
    assert rk.verify(run).ok
    assert rk.verify(run, certificates=True).problems == [f"sample {place}: ibp does not prove the claimed radius {radius:.6g}"]


@pytest.mark.parametrize("spec", ["alpha-crown:steps=100000000", "smoothing:n=1000000000", "sound:(alpha-crown:steps=100000000)"])
def test_a_certifier_without_end_is_not_started(run: Path, spec: str) -> None:
    for name, stages in (("run.json", lambda told: told["specification"]["stages"]), ("summary.json", lambda told: told["stages"])):
        document(run, name, lambda told, stages=stages: [one.update(spec=spec, method=spec) for one in stages(told)[:2]])
    found = rk.verify(run, certificates=True)
    assert found.measured["certificates"] == 0 and "asks for more than" in found.unchecked[0]


def test_exit_codes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    (run / "model.safetensors").unlink()
    assert main(["verify", str(run)]) == 3
    assert "give it with --model" in capsys.readouterr().out
    document(run, "summary.json", lambda told: told.update(robust_accuracy=0.99))
    assert main(["verify", str(run)]) == 1
    assert "FAILED" in capsys.readouterr().out
    (run / "samples.npz").write_bytes(b"no archive")
    assert main(["verify", str(run)]) == 2
    assert main(["verify", str(tmp_path / "nowhere")]) == 3


def test_the_model_and_the_data_as_the_user_names_them(run: Path, digits_models: dict[str, str]) -> None:
    (run / "model.safetensors").unlink()
    assert rk.verify(run).unchecked and rk.verify(run, model=digits_models["certified"], data="digits:n=48").ok
    other = rk.verify(run, model=digits_models["standard"])
    assert "the model's sha256 is" in other.problems[0]
    assert "the data's digest is" in rk.verify(run, data="digits:n=47", model=digits_models["certified"]).problems[0]
    with pytest.raises(Missing):
        rk.verify(run, model="nowhere.safetensors")


def test_a_model_handed_over_in_python(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    evaluate(net, "digits:n=16", "l2:0.5", out=tmp_path / "run", **(OPTIONS | {"certifiers": ["none"]}))
    found = rk.verify(tmp_path / "run")
    assert found.exit_code == 3 and not found.problems and "--model" in found.unchecked[0]
    assert rk.verify(tmp_path / "run", model=net).ok
    with torch.no_grad():
        net[1].bias += 1
    assert "the model's sha256" in rk.verify(tmp_path / "run", model=net).problems[0]


def test_a_run_that_was_stopped(run: Path) -> None:
    """Its record and what its stages stored are checked, and it is said that this is not all."""
    (run / "summary.json").unlink()
    found = rk.verify(run)
    assert found.exit_code == 3 and not found.problems and "no answer yet" in found.unchecked[0]
    units = [(path, safetensors.numpy.load_file(path)) for path in sorted((run / "units").glob("*-pgd-*/*.safetensors"))]
    unit, held = next((path, held) for path, held in units if len(held["parameters"]))
    held["size"] = held["size"] / 2
    safetensors.numpy.save_file(held, unit)
    assert any("hit of sample" in problem and "is above" in problem for problem in rk.verify(run).problems)


def test_a_run_judged_by_the_old_rule_says_so(run: Path) -> None:
    def change(told: dict[str, Any]) -> None:
        told["specification"].pop("judge", None)
        told["digest"] = digest(canonical_json(told["specification"]), 32)

    document(run, "run.json", change)
    found = rk.verify(run)
    assert found.ok and found.notes[0].startswith("judged by the old rule: ") and found.measured["witnesses"] > 3


def test_robust_accuracy_that_is_not_established(run: Path) -> None:
    """The upper bound is compared instead, in the figures, the curve and the stages."""

    def change(told: dict[str, Any]) -> None:
        for one in (told, *told["curve"], *told["stages"]):
            one["robust_accuracy_at_most"], one["robust_accuracy"] = one["robust_accuracy"], None
        told["open"] = None

    try:
        document(run, "summary.json", change)
        assert rk.verify(run).problems == []
        document(run, "summary.json", lambda told: told.update(robust_accuracy_at_most=0.1))
        assert any("robust_accuracy_at_most is 0.1" in problem for problem in rk.verify(run).problems)
    except BadInput:  # a reader that asks for schema_version 2 refuses null in version 1
        document(run, "summary.json", lambda told: told.update(schema_version=2, checked=True, not_established="blind"))


def test_a_close_call_of_its_own_stays_an_error() -> None:
    """The two best logits within 64 units in the last place of float32; where a target is asked for, it is one of them."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    judge = Judge(rk.Classifier(net), rk.load_threat("linf:0.1"), Goal("untargeted"))
    step = 2.0**-23
    logits = torch.tensor([[1 + 32 * step, 1.0, 0.0], [1 + 200 * step, 1.0, 0.0], [1.0, 1.0, 0.0], [float("nan"), 1.0, 0.0]])
    y = torch.zeros(4, dtype=torch.int64)
    assert almost_wrong(judge, logits, y, torch.full_like(y, -1)).tolist() == [True, False, True, False]
    judge.goal = Goal("targeted:next")
    assert almost_wrong(judge, logits[:1], y[:1], torch.tensor([1])).tolist() == [True]
    assert almost_wrong(judge, logits[:1], y[:1], torch.tensor([2])).tolist() == [False]


@pytest.mark.parametrize(
    "change",
    [
        lambda run: document(run, "run.json", lambda told: told.update(specification=[])),
        lambda run: document(run, "run.json", lambda told: told["specification"].update(stages=[3])),
        lambda run: document(run, "summary.json", lambda told: told.update(data=[])),
        lambda run: document(run, "summary.json", lambda told: told.update(stages=[{}])),
        lambda run: document(run, "summary.json", lambda told: told.update(eps=["x"])),
        lambda run: columns(run, lambda own: own.update(index=own["index"][:3])),
        lambda run: (run / "witnesses.safetensors").write_bytes(b"\x80\x04."),
        lambda run: (run / "run.json").write_text("[" * 100_000),
    ],
    ids=range(8),
)
def test_a_damaged_folder_is_bad_input(run: Path, change: Callable[[Path], Any]) -> None:
    change(run)
    assert main(["verify", str(run)]) == 2
