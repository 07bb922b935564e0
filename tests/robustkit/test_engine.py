"""The engine: one run, one bracket, the same however it is cut and batched."""

from __future__ import annotations

import json
import math
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkit import run as working
from robustkit import stages, store, witnesses
from robustkit.attacks.pgd import PGD
from robustkit.data import load_data
from robustkit.engine import certify
from robustkit.errors import BadInput
from robustkit.models import load_model
from robustkit.threats import load_threat

KEYS = {
    *("schema_version", "model", "data", "threat", "eps", "goal", "labels", "seed", "clean_accuracy", "robust_accuracy"),
    *("certified_accuracy", "certified_statistical", "certified_conditional", "open", "interval95", "population95", "curve"),
    *("robust_accuracy_at_most", "checked", "not_established", "eight_bit", "stages", "diagnostics", "environment", "run"),
}


# ---- the same answer however it is run


@pytest.mark.parametrize("curve", [False, True])
def test_the_first_30_of_60(go: Any, curve: bool) -> None:
    options: dict[str, Any] = {"curve": curve, "eps": ["0.03", "0.06"]} | ({"attacks": ["pgd:steps=5"]} if curve else {})
    go.same(go(data="digits:n=30", **options), go(**options), first=30)


@pytest.mark.parametrize("curve", [False, True])
def test_batch_size_and_units_do_not_matter(go: Any, monkeypatch: pytest.MonkeyPatch, curve: bool) -> None:
    options: dict[str, Any] = {"curve": curve} | ({"attacks": ["pgd:steps=5,restarts=2"]} if curve else {})
    options["data"] = "digits:n=40"
    reference = go(**options)
    for size in (1, 7, 256):
        go.same(go(batch_size=size, **options), reference)
    for module in (store, stages, witnesses, working):
        monkeypatch.setattr(module, "UNIT", 16)
    go.same(go(batch_size=7, **options), reference)


def test_an_inserted_stage_changes_no_other_stage_s_findings(go: Any) -> None:
    one, other = go(attacks=["apgd:steps=8,restarts=1"], certifiers=["none"]), go(attacks=["fgsm", "apgd:steps=8,restarts=1"])
    assert bool((other.upper[other.evidence.upper_stage >= 0] <= 0.06).all())
    alone = np.flatnonzero(other.evidence.upper_stage == 3)  # what APGD broke behind IBP and FGSM it breaks alone, equally
    assert len(alone) > 0
    assert np.array_equal(one.upper[alone], other.upper[alone])
    assert torch.equal(one.witness(int(alone[0])), other.witness(int(alone[0])))


def test_seeds_matter_and_are_kept_apart(go: Any) -> None:
    one, other = go(seed=0, attacks=["pgd:steps=1"]), go(seed=1, attacks=["pgd:steps=1"])
    left, right = go.witnesses(one), go.witnesses(other)
    both = np.intersect1d(left["position"], right["position"])
    assert len(both) > 1
    images = [kept["image"][np.isin(kept["position"], both)] for kept in (left, right)]
    assert not np.array_equal(*images)
    assert other.summary()["seed"] == 1


# ---- the answer


def test_the_summary_has_exactly_the_documented_keys(go: Any) -> None:
    run = go(eps=["0.02", "0.06"], checks=True)
    summary = run.summary()
    assert set(summary) == KEYS
    assert json.loads((run.folder / "summary.json").read_text()) == summary
    assert {"spec", "sha256", "parameters"} <= set(summary["model"])
    assert {"spec", "sha256", "n"} <= set(summary["data"])
    assert set(summary["interval95"]) == {"clean_accuracy", "robust_accuracy", "certified_accuracy"}
    for stage in summary["stages"]:
        assert {
            *("name", "spec", "kind", "received", "settled", "robust_accuracy", "certified_accuracy"),
            *("seconds", "forwards", "backwards", "queries"),
        } <= set(stage)
    for finding in summary["diagnostics"]:
        assert set(finding) == {"check", "status", "message", "cure"}
    for point in summary["curve"]:
        assert set(point) == {"eps", "robust_accuracy", "robust_accuracy_at_most", "certified_accuracy"}
    assert summary["certified_accuracy"] <= summary["robust_accuracy"] <= summary["clean_accuracy"]
    assert summary["eps"] == ["0.02", "0.06"]
    assert summary["threat"] == "linf:0.06"


def test_the_answer_is_read_off_the_columns(go: Any) -> None:
    run = go()
    summary, held = run.summary(), go.columns(run)
    eps = math.nextafter(0.06, 0) if Fraction(0.06) > Fraction("0.06") else 0.06
    assert summary["clean_accuracy"] == np.mean(held["upper"] > 0)
    assert summary["robust_accuracy"] == np.mean(held["upper"] > eps)
    assert summary["certified_accuracy"] == np.mean(held["lower"] >= eps) > 0.3
    assert summary["open"] == pytest.approx(summary["robust_accuracy"] - summary["certified_accuracy"])
    assert summary["robust_accuracy"] < summary["clean_accuracy"]
    assert (held["lower"] < held["upper"]).all()
    low, high = summary["interval95"]["robust_accuracy"]
    assert low < summary["robust_accuracy"] < high
    assert summary["population95"][0] < summary["certified_accuracy"]
    assert summary["population95"][1] > summary["robust_accuracy"]
    assert run.exit_code == 0
    assert run.status == "complete"
    assert "60" in repr(run)


def test_stages_add_up(go: Any) -> None:
    run = go(eps=["0.05", "0.1"], attacks=["pgd:steps=5", "apgd:steps=8,restarts=1"])
    rows = run.summary()["stages"]
    assert [row["name"] for row in rows] == ["ibp", "ibp", "pgd", "pgd", "apgd", "apgd"]
    assert [row["eps"] for row in rows] == ["0.05", "0.1"] * 3
    held = go.columns(run)
    correct = int((held["upper"] > 0).sum())
    assert rows[0]["received"] == correct
    for number, row in enumerate(rows):
        if row["kind"] == "attack":
            assert row["settled"] == int((held["upper_stage"] == number).sum())
            assert row["queries"] == row["forwards"] >= row["received"] > 0
            assert 0 < row["backwards"] < row["forwards"]
        else:
            assert row["backwards"] == row["queries"] == 0
        assert row["complete"]
    assert rows[1]["settled"] == rows[1]["certified_accuracy"] * 60
    at_top = [row for row in rows if row["eps"] == "0.1"]
    assert at_top[0]["received"] - at_top[0]["settled"] >= at_top[1]["received"] >= at_top[1]["received"] - at_top[1]["settled"]
    assert at_top[-1]["robust_accuracy"] == run.summary()["robust_accuracy"]
    assert [row["robust_accuracy"] for row in at_top] == sorted((row["robust_accuracy"] for row in at_top), reverse=True)


def test_several_budgets_in_one_run(go: Any) -> None:
    run = go(eps=["0.02", "0.04", "0.06"])
    points = {point["eps"]: point for point in run.summary()["curve"]}
    assert list(points) == [0, 0.02, 0.04, 0.06]
    robust = [point["robust_accuracy"] for point in points.values()]
    certified = [point["certified_accuracy"] for point in points.values()]
    assert robust == sorted(robust, reverse=True)
    assert certified == sorted(certified, reverse=True)
    assert robust[0] == certified[0] == run.summary()["clean_accuracy"]
    assert points[0.06]["robust_accuracy"] == run.summary()["robust_accuracy"]
    alone = go(threat="linf:0.02")
    assert points[0.02]["robust_accuracy"] == alone.summary()["robust_accuracy"]
    assert points[0.02]["certified_accuracy"] == alone.summary()["certified_accuracy"]
    small = run.upper <= 0.02
    received = run.summary()["stages"][5]["received"]  # what fell at a smaller budget is not attacked again
    assert small.sum() > 0
    assert received <= 60 - small.sum()


def test_a_curve_searches_every_correct_sample(go: Any) -> None:
    run = go(curve=True, attacks=["pgd:steps=5"])
    held, points = go.columns(run), run.summary()["curve"]
    correct = np.isfinite(held["lower"])
    assert held["radius_covered"][correct].all()
    assert np.isfinite(held["upper"][correct]).all()  # at a large enough budget everything falls
    assert len(points) > 20
    assert points[-1]["robust_accuracy"] == 0
    for name in ("robust_accuracy", "certified_accuracy"):
        values = [point[name] for point in points]
        assert values == sorted(values, reverse=True)
    assert all(point["certified_accuracy"] <= point["robust_accuracy"] for point in points)
    assert (held["lower"] < held["upper"]).all()
    assert (held["lower"][correct] > 0).mean() > 0.9
    settled = go(attacks=["pgd:steps=5"])
    assert (run.upper <= settled.upper).all()
    assert (run.lower >= settled.lower).all()
    assert run.summary()["robust_accuracy"] == settled.summary()["robust_accuracy"]


def test_certify_alone(digits_models: dict[str, str], tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": "digits:n=40", "threat": "linf:0.06", "report": False}
    run = certify(digits_models["certified"], out=tmp_path / "a", method="ibp", **options)
    summary = run.summary()
    assert [row["kind"] for row in summary["stages"]] == ["certifier"]
    assert summary["robust_accuracy"] == summary["clean_accuracy"]
    assert 0 < summary["certified_accuracy"] < summary["clean_accuracy"]
    searched = certify(digits_models["certified"], out=tmp_path / "b", curve=True, method=["ibp"], **options)
    assert (searched.lower >= run.lower).all()
    assert searched.summary()["certified_accuracy"] == summary["certified_accuracy"]
    assert len(np.unique(searched.lower)) > 10


# ---- witnesses


def test_every_witness_is_what_it_claims(go: Any, digits_models: dict[str, str]) -> None:
    for spec in ("linf:0.06", "l2:0.5"):
        run = go(threat=spec, attacks=["pgd:steps=5", "apgd:dlr-targeted,steps=8,restarts=1"])
        held, kept = go.columns(run), go.witnesses(run)
        threat, model, data = load_threat(spec), load_model(digits_models["certified"]), load_data("digits:n=60")
        assert np.array_equal(kept["position"], np.flatnonzero(held["upper_stage"] >= 0))
        assert np.array_equal(kept["index"], held["index"][kept["position"]])
        assert np.array_equal(kept["size"], held["upper"][kept["position"]])
        assert len(kept["index"]) > 3
        for row, at in enumerate(kept["position"].tolist()):
            x, image = data.images(torch.tensor([at])), torch.from_numpy(kept["image"][row : row + 1])
            change = [abs(Fraction(a) - Fraction(b)) for a, b in zip(x.flatten().tolist(), image.flatten().tolist())]
            if threat.name == "linf":
                assert max(change) <= threat.eps
                assert float(max(change)) == kept["size"][row]
            else:
                assert sum(c * c for c in change) <= threat.eps**2
            assert 0 <= float(image.min()) <= float(image.max()) <= 1
            assert int(model.logits(image).argmax()) == held["adversarial_class"][at] != held["label"][at]
            assert torch.equal(run.witness(at), image[0])
            assert torch.equal(threat.apply(x, torch.from_numpy(kept["parameters"][row : row + 1])), image)


def test_a_sample_without_a_witness_says_so(go: Any) -> None:
    run = go()
    for i in (int(np.flatnonzero(run.evidence.upper_stage < 0)[0]), -1, 60):
        with pytest.raises(BadInput, match="no witness"):
            run.witness(i)


def test_eight_bit_share(go: Any) -> None:
    assert go().summary()["eight_bit"] is None  # the digits have 17 grey levels
    x = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model[1].reset_parameters()  # type: ignore[operator]
    with torch.no_grad():
        y = model(x.float() / 255).argmax(1)
    share = go(model=model, data=(x, y), threat="linf:8/255").summary()["eight_bit"]
    assert 0.3 < share <= 1


# ---- models of every kind


def test_a_module_of_the_user_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits_models: dict[str, str], go: Any) -> None:
    """Normalisation inside the user's own forward, in the Classifier, or none: the same verdicts."""
    source = """
import torch
from robustkit import Classifier
from robustkit.models import load_model

class Mine(torch.nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.inside, self.net = inside, load_model(PATH).original
    def forward(self, x):
        return self.net(x if not self.inside else ((x - 0.25) / 0.5) * 0.5 + 0.25)

def make():
    return Mine(True)

def make_classifier():
    class Undo(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = load_model(PATH).original
        def forward(self, x):
            return self.net(x * 0.5 + 0.25)
    return Classifier(Undo(), mean=[0.25], std=[0.5])
"""
    (tmp_path / "mymodule.py").write_text(source.replace("PATH", repr(digits_models["certified"])))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    try:
        own, wrapped, plain = go(model="mymodule:make"), go(model="mymodule:make_classifier"), go()
    finally:
        sys.modules.pop("mymodule", None)
    assert own.summary()["model"]["spec"] == "mymodule:make"
    for run in (own, wrapped):
        assert np.array_equal(np.isfinite(run.lower), np.isfinite(plain.lower))
        assert run.summary()["clean_accuracy"] == plain.summary()["clean_accuracy"]
        assert abs(run.summary()["robust_accuracy"] - plain.summary()["robust_accuracy"]) <= 2 / 60
        assert abs(run.summary()["certified_accuracy"] - plain.summary()["certified_accuracy"]) <= 2 / 60


def test_a_module_in_python_is_left_as_it_was(go: Any, digits_models: dict[str, str]) -> None:
    module = load_model(digits_models["certified"]).original
    assert isinstance(module, nn.Module)
    module.train().requires_grad_(True)
    before, rng = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    run = go(model=module, curve=True, attacks=["pgd:steps=3"])
    assert run.summary()["model"]["spec"] == "Sequential"
    assert module.training
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_ties_and_nan_are_errors_and_nothing_is_certified(go: Any, value: float) -> None:
    layer = nn.Linear(64, 10)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, value)
    run = go(model=nn.Sequential(nn.Flatten(), layer), curve=True, attacks=["pgd:steps=2"], report=True, checks=True)
    summary = run.summary()
    assert [summary[f"{name}_accuracy"] for name in ("clean", "robust", "certified")] == [0.0, 0.0, 0.0]
    assert (run.upper == 0).all()
    assert (run.lower == -np.inf).all()
    assert summary["eight_bit"] is None
    assert run.exit_code == 0
    assert {"clean accuracy"} <= {f["check"] for f in summary["diagnostics"] if f["status"] == "error"}


def test_a_model_that_breaks_off_to_nan_is_broken_there(go: Any) -> None:
    class Fragile(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            level = x.flatten(1).mean(1)
            logits = nn.functional.one_hot((level * 0).long(), 10).float() * 5 + 0 * level[:, None]
            return torch.where((x.flatten(1).amax(1) > 0.999)[:, None], math.nan, logits + level[:, None] * 1e-3)

    x = torch.full((20, 1, 8, 8), 0.97)
    x[10:] = 0.5
    run = go(model=Fragile(), data=(x, torch.zeros(20, dtype=torch.int64)), certifiers=["none"], attacks=["pgd:steps=5"])
    assert run.summary()["clean_accuracy"] == 1
    assert np.isinf(run.upper[10:]).all()
    assert (run.upper[:10] <= 0.06).sum() >= 8


def test_predicted_labels_measure_stability(go: Any) -> None:
    x, y = load_data("digits:n=40")
    wrong = (y + 1) % 10
    given, predicted = go(data=(x, wrong)), go(data=(x, wrong), labels="predicted")
    assert given.summary()["clean_accuracy"] < 0.2
    assert predicted.summary()["clean_accuracy"] == 1
    assert predicted.summary()["labels"] == "predicted"
    assert 0 < predicted.summary()["certified_accuracy"] <= predicted.summary()["robust_accuracy"]


def test_a_targeted_goal_is_no_easier(go: Any, digits_models: dict[str, str]) -> None:
    untargeted = go(threat="linf:0.12", certifiers=["none"])
    run = go(threat="linf:0.12", certifiers=["none"], goal="targeted:next")
    assert run.summary()["robust_accuracy"] >= untargeted.summary()["robust_accuracy"]
    held, kept = go.columns(run), go.witnesses(run)
    assert len(kept["index"]) > 0
    assert np.array_equal(held["adversarial_class"][kept["position"]], (held["label"][kept["position"]] + 1) % 10)


# ---- what a user may type in Python


def test_one_name_needs_no_list(go: Any) -> None:
    one = go(attacks="pgd:steps=5", certifiers="none", eps="0.06", data="digits:n=20")
    other = go(attacks=[PGD(steps=5)], certifiers=["none"], eps=[0.06], data="digits:n=20")
    assert one.summary()["stages"][0]["spec"] == other.summary()["stages"][0]["spec"]
    assert go.columns(one)["upper"].tolist() == go.columns(other)["upper"].tolist()
    assert go(eps=0.05, data="digits:n=20").summary()["eps"] == ["0.05"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"attacks": ["pdg"]}, "did you mean 'pgd'"),
        ({"attacks": ["pgd:stps=3"]}, "did you mean 'steps'"),
        ({"attacks": ["pgd:steps=0"]}, "at least 1"),
        ({"attacks": [3]}, "attack"),
        ({"certifiers": ["ipb"]}, "did you mean 'ibp'"),
        ({"suite": "standart"}, "did you mean 'standard'"),
        ({"goal": "targetted"}, "unknown goal"),
        ({"labels": "true"}, "unknown labels"),
        ({"eps": ["-0.1"]}, "negative"),
        ({"eps": ["abc"]}, "not a number"),
        ({"eps": [math.nan]}, "not a number"),
        ({"eps": []}, "eps"),
        ({"threat": "linf"}, "needs eps"),
        ({"batch_size": 0}, "batch size"),
        ({"model": "zoo:digits-robst"}, "unknown zoo model"),
        ({"model": 3}, "no model"),
        ({"data": "digts"}, "did you mean 'digits'"),
        ({"data": 3}, "expected a specification"),
        ({"data": (torch.zeros(2, 1, 8, 8),)}, "expected a specification"),
        ({"data": (torch.full((2, 1, 8, 8), 3.0), torch.zeros(2))}, "values from"),
        ({"data": (torch.zeros(2, 1, 8, 8), torch.tensor([0, 10]))}, r"classes 0\.\.9"),
        ({"data": (torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]))}, "takes images of shape"),
        ({"device": "gpu"}, "unknown device"),
    ],
    ids=str,
)
def test_bad_input_is_refused_before_anything_is_written(go: Any, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        go(**({"out": tmp_path / "never"} | options))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "never").exists()
