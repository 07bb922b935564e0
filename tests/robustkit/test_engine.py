"""The engine: one run, one bracket, the same however it is cut, batched, interrupted or resumed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import Tensor, nn

import robustkit.attacks
import robustkit.certify
from robustkit import engine, stages, store, witnesses
from robustkit.attacks.pgd import PGD
from robustkit.classifier import Classifier
from robustkit.clock import Clock
from robustkit.data import load_data
from robustkit.engine import Evaluation, certify, evaluate
from robustkit.errors import BadInput, OutOfTime, RobustkitError
from robustkit.methods import Bound, Certifier, Rows, State
from robustkit.models import load_model
from robustkit.threats import Threat, load_threat

ATTACKS = ["pgd:steps=5", "apgd:steps=8,restarts=1"]
KEYS = {
    *("schema_version", "model", "data", "threat", "eps", "goal", "labels", "seed", "clean_accuracy", "robust_accuracy"),
    *("certified_accuracy", "certified_statistical", "certified_conditional", "open", "interval95", "population95", "curve"),
    *("eight_bit", "stages", "diagnostics", "environment", "run"),
}


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> int:
    """Units of 16 samples, so that small runs have several."""
    for module in (store, stages, witnesses, engine):
        monkeypatch.setattr(module, "UNIT", 16)
    return 16


@pytest.fixture
def go(digits_models: dict[str, str], tmp_path: Path) -> Callable[..., Evaluation]:
    """evaluate() with small defaults, each call into a folder of its own."""
    count = iter(range(100))

    def run(**options: Any) -> Evaluation:
        given: dict[str, Any] = {
            "model": digits_models["certified"],
            "data": "digits:n=60",
            "threat": "linf:0.06",
            "attacks": ATTACKS,
            "certifiers": ["ibp"],
            "out": tmp_path / f"run{next(count)}",
            "report": False,
        }
        return evaluate(**(given | options))

    return run


def columns(run: Evaluation) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(run.folder / "samples.npz") as held:
        return {name: held[name] for name in held.files}


def kept_witnesses(run: Evaluation) -> dict[str, np.ndarray[Any, Any]]:
    path = run.folder / "witnesses.safetensors"
    return dict(safetensors.numpy.load_file(path)) if path.exists() else {}


def same(one: Evaluation, other: Evaluation, first: int | None = None) -> None:
    """The same columns and witnesses, bit for bit; with `first`, those of the first samples of `other`."""
    mine, theirs = columns(one), columns(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert np.array_equal(mine[name], theirs[name][:first], equal_nan=mine[name].dtype.kind == "f"), name
    left, right = kept_witnesses(one), kept_witnesses(other)
    assert left.keys() == right.keys()
    for name in left:
        inside = slice(None) if first is None else right["position"] < first
        assert np.array_equal(left[name], right[name][inside]), name
    assert len(left["index"]) > 0


# ---- the same answer however it is run


@pytest.mark.parametrize("curve", [False, True])
def test_the_first_30_of_60(go: Callable[..., Evaluation], curve: bool) -> None:
    options: dict[str, Any] = {"curve": curve, "eps": ["0.03", "0.06"]} | ({"attacks": ["pgd:steps=5"]} if curve else {})
    same(go(data="digits:n=30", **options), go(**options), first=30)


@pytest.mark.parametrize("curve", [False, True])
def test_batch_size_and_units_do_not_matter(go: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch, curve: bool) -> None:
    options: dict[str, Any] = {"curve": curve} | ({"attacks": ["pgd:steps=5,restarts=2"]} if curve else {})
    reference = go(**options)
    for size in (1, 7, 256):
        same(go(batch_size=size, **options), reference)
    for module in (store, stages, witnesses, engine):
        monkeypatch.setattr(module, "UNIT", 16)
    same(go(batch_size=7, **options), reference)


def test_an_inserted_stage_changes_no_other_stage_s_findings(go: Callable[..., Evaluation]) -> None:
    one, other = go(attacks=["apgd:steps=8,restarts=1"], certifiers=["none"]), go(attacks=["fgsm", "apgd:steps=8,restarts=1"])
    assert bool((other.upper[other.evidence.upper_stage >= 0] <= 0.06).all())
    alone = np.flatnonzero(other.evidence.upper_stage == 3)  # what APGD broke behind IBP and FGSM it breaks alone, equally
    assert len(alone) > 0
    assert np.array_equal(one.upper[alone], other.upper[alone])
    assert torch.equal(one.witness(int(alone[0])), other.witness(int(alone[0])))


def test_seeds_matter_and_are_kept_apart(go: Callable[..., Evaluation]) -> None:
    one, other = go(seed=0, attacks=["pgd:steps=1"]), go(seed=1, attacks=["pgd:steps=1"])
    left, right = kept_witnesses(one), kept_witnesses(other)
    both = np.intersect1d(left["position"], right["position"])
    assert len(both) > 1
    images = [kept["image"][np.isin(kept["position"], both)] for kept in (left, right)]
    assert not np.array_equal(*images)
    assert other.summary()["seed"] == 1


# ---- the answer


def test_the_summary_has_exactly_the_documented_keys(go: Callable[..., Evaluation]) -> None:
    run = go(eps=["0.02", "0.06"])
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
        assert set(point) == {"eps", "robust_accuracy", "certified_accuracy"}
    assert summary["certified_accuracy"] <= summary["robust_accuracy"] <= summary["clean_accuracy"]
    assert summary["eps"] == ["0.02", "0.06"]
    assert summary["threat"] == "linf:0.06"


def test_the_answer_is_read_off_the_columns(go: Callable[..., Evaluation]) -> None:
    run = go()
    summary, held = run.summary(), columns(run)
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


def test_stages_add_up(go: Callable[..., Evaluation]) -> None:
    run = go(eps=["0.05", "0.1"], attacks=["pgd:steps=5", "apgd:steps=8,restarts=1"])
    rows = run.summary()["stages"]
    assert [row["name"] for row in rows] == ["ibp", "ibp", "pgd", "pgd", "apgd", "apgd"]
    assert [row["eps"] for row in rows] == ["0.05", "0.1"] * 3
    held = columns(run)
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


def test_several_budgets_in_one_run(go: Callable[..., Evaluation]) -> None:
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


def test_a_curve_searches_every_correct_sample(go: Callable[..., Evaluation]) -> None:
    run = go(curve=True, attacks=["pgd:steps=5"])
    held, points = columns(run), run.summary()["curve"]
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
    run = certify(digits_models["certified"], out=tmp_path / "a", **options)
    summary = run.summary()
    assert [row["kind"] for row in summary["stages"]] == ["certifier"]
    assert summary["robust_accuracy"] == summary["clean_accuracy"]
    assert 0 < summary["certified_accuracy"] < summary["clean_accuracy"]
    searched = certify(digits_models["certified"], out=tmp_path / "b", curve=True, method=["ibp"], **options)
    assert (searched.lower >= run.lower).all()
    assert searched.summary()["certified_accuracy"] == summary["certified_accuracy"]
    assert len(np.unique(searched.lower)) > 10


# ---- witnesses


def test_every_witness_is_what_it_claims(go: Callable[..., Evaluation], digits_models: dict[str, str]) -> None:
    for spec in ("linf:0.06", "l2:0.5"):
        run = go(threat=spec, attacks=["pgd:steps=5", "apgd:dlr-targeted,steps=8,restarts=1"])
        held, kept = columns(run), kept_witnesses(run)
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


def test_a_sample_without_a_witness_says_so(go: Callable[..., Evaluation]) -> None:
    run = go()
    for i in (int(np.flatnonzero(run.evidence.upper_stage < 0)[0]), -1, 60):
        with pytest.raises(BadInput, match="no witness"):
            run.witness(i)


def test_eight_bit_share(go: Callable[..., Evaluation]) -> None:
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


def test_a_module_of_the_user_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits_models: dict[str, str], go: Callable[..., Evaluation]
) -> None:
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


def test_a_module_in_python_is_left_as_it_was(go: Callable[..., Evaluation], digits_models: dict[str, str]) -> None:
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
def test_ties_and_nan_are_errors_and_nothing_is_certified(go: Callable[..., Evaluation], value: float) -> None:
    layer = nn.Linear(64, 10)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, value)
    run = go(model=nn.Sequential(nn.Flatten(), layer), curve=True, attacks=["pgd:steps=2"], report=True)
    summary = run.summary()
    assert [summary[f"{name}_accuracy"] for name in ("clean", "robust", "certified")] == [0.0, 0.0, 0.0]
    assert (run.upper == 0).all()
    assert (run.lower == -np.inf).all()
    assert summary["eight_bit"] is None
    assert run.exit_code == 0
    assert {"clean accuracy"} <= {f["check"] for f in summary["diagnostics"] if f["status"] == "error"}


def test_a_model_that_breaks_off_to_nan_is_broken_there(go: Callable[..., Evaluation]) -> None:
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


def test_predicted_labels_measure_stability(go: Callable[..., Evaluation]) -> None:
    x, y = load_data("digits:n=40")
    wrong = (y + 1) % 10
    given, predicted = go(data=(x, wrong)), go(data=(x, wrong), labels="predicted")
    assert given.summary()["clean_accuracy"] < 0.2
    assert predicted.summary()["clean_accuracy"] == 1
    assert predicted.summary()["labels"] == "predicted"
    assert 0 < predicted.summary()["certified_accuracy"] <= predicted.summary()["robust_accuracy"]


def test_a_targeted_goal_is_no_easier(go: Callable[..., Evaluation], digits_models: dict[str, str]) -> None:
    untargeted = go(threat="linf:0.12", certifiers=["none"])
    run = go(threat="linf:0.12", certifiers=["none"], goal="targeted:next")
    assert run.summary()["robust_accuracy"] >= untargeted.summary()["robust_accuracy"]
    held, kept = columns(run), kept_witnesses(run)
    assert len(kept["index"]) > 0
    assert np.array_equal(held["adversarial_class"][kept["position"]], (held["label"][kept["position"]] + 1) % 10)


# ---- certificates and contradictions


@dataclass(frozen=True)
class Liar(Certifier):
    """Claims everything."""

    name = "liar"
    cost = 1.0

    def bind(self, classifier: Classifier, threat: Threat) -> Bound:
        return lambda x, y, eps: torch.ones(len(x), dtype=x.dtype)


@dataclass(frozen=True)
class Bomb(PGD):
    """Raises at its third step, when armed."""

    name = "bomb"

    def step(self, rows: Rows, state: State, view: Any, threat: Threat) -> State:
        if ARMED and bool((rows.steps >= 2).any()) and bool((rows.index >= ARMED[0]).any()):
            raise ZeroDivisionError("a plug-in's own mistake")
        return super().step(rows, state, view, threat)


ARMED: list[int] = []


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`liar` and `bomb`, as a third party would register them."""
    module = types.ModuleType("planted_plugins")
    module.Liar, module.Bomb = Liar, Bomb  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "planted_plugins", module)
    monkeypatch.setitem(robustkit.certify.TABLE, "liar", "planted_plugins:Liar")
    monkeypatch.setitem(robustkit.attacks.TABLE, "bomb", "planted_plugins:Bomb")
    ARMED.clear()
    yield
    ARMED.clear()


@pytest.mark.parametrize("curve", [False, True])
def test_a_wrong_certifier_is_caught(go: Callable[..., Evaluation], plugins: None, curve: bool) -> None:
    run = go(certifiers=["ibp", "liar"], threat="linf:0.15", curve=curve, attacks=["pgd:steps=5"], report=True)
    summary = run.summary()
    assert run.exit_code == 1
    assert run.status == "complete"
    assert any("liar" in name for name in run.contradicted)
    assert not any("ibp" in name for name in run.contradicted)
    honest = go(certifiers=["ibp"], threat="linf:0.15", curve=curve, attacks=["pgd:steps=5"])
    assert summary["certified_accuracy"] == honest.summary()["certified_accuracy"]
    assert (run.lower <= honest.lower).all()
    assert (run.lower < run.upper).all()
    assert summary["robust_accuracy"] <= honest.summary()["robust_accuracy"]  # what it had settled is attacked after all
    (finding,) = [f for f in summary["diagnostics"] if f["check"] == "contradiction"]
    assert finding["status"] == "error"
    assert "liar" in finding["message"]
    assert json.loads((run.folder / "run.json").read_text())["status"] == "complete"
    kept = kept_witnesses(run)
    assert len(kept["index"]) > 10
    assert max(columns(run)["upper_stage"]) < len(summary["stages"])


def test_a_wrong_certifier_is_caught_without_attacks(digits_models: dict[str, str], tmp_path: Path, plugins: None) -> None:
    run = certify(digits_models["certified"], "digits:n=40", "linf:0.3", method=["liar"], out=tmp_path / "run", report=False)
    assert run.exit_code == 1
    assert run.summary()["certified_accuracy"] == 0
    again = certify(digits_models["certified"], "digits:n=40", "linf:0.3", method=["liar"], out=tmp_path / "run", report=False)
    assert again.exit_code == 1
    same(run, again)


def test_sound_certificates_are_never_contradicted(tmp_path: Path) -> None:
    """Small random networks, a budget where both sides settle samples, a radius search from above and below."""
    layers: dict[str, Callable[[], nn.Module]] = {
        "relu": lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)),
        "tanh": lambda: nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3)),
    }
    for name, make in layers.items():
        for threat in ("linf:0.05", "l2:0.1"):
            with torch.random.fork_rng():
                torch.manual_seed(7)
                model = make().eval()
                x = torch.rand(48, 1, 3, 4)
            with torch.no_grad():
                y = model(x).argmax(1)
            run = evaluate(
                model, (x, y), threat, attacks=["pgd:steps=10"], certifiers=["ibp"], curve=True, out=tmp_path / f"{name}{threat[:2]}", report=False
            )
            assert run.contradicted == ()
            assert (run.lower < run.upper).all()
            assert (run.lower > 0).sum() > 10
            assert np.isfinite(run.upper).sum() > 10


# ---- run folders


def test_a_run_again_computes_nothing(go: Callable[..., Evaluation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = go(out=tmp_path / "again", curve=True, attacks=["pgd:steps=3"])
    asked = []
    forward = Classifier.forward

    def counted(self: Classifier, x: Tensor) -> Tensor:
        asked.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(Classifier, "forward", counted)
    monkeypatch.setattr(Classifier, "search", lambda self, x: pytest.fail("an attack ran again"))
    second = go(out=tmp_path / "again", curve=True, attacks=["pgd:steps=3"])
    assert sum(asked) <= 2  # the check that model and data fit
    same(first, second)
    timeless = [{k: v for k, v in run.summary().items() if k != "environment"} for run in (first, second)]
    assert timeless[0] == timeless[1]


def test_another_specification_is_refused(go: Callable[..., Evaluation], tmp_path: Path) -> None:
    go(out=tmp_path / "run", data="digits:n=20")
    before = (tmp_path / "run" / "summary.json").read_bytes()
    for change, field in (({"data": "digits:n=21"}, "data"), ({"seed": 1}, "seed"), ({"threat": "linf:0.07"}, "threat"), ({"attacks": ["fgsm"]}, "stages")):
        with pytest.raises(BadInput, match=f"another specification.*{field}"):
            go(**({"out": tmp_path / "run", "data": "digits:n=20"} | change))
    assert (tmp_path / "run" / "summary.json").read_bytes() == before


def test_a_foreign_folder_is_refused(go: Callable[..., Evaluation], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(BadInput, match="not empty"):
        go(out=tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir() if p.name != ".lock"] == ["notes.txt"]
    with pytest.raises(BadInput, match="run folder"):
        go(out=tmp_path / "mine" / "notes.txt")


def test_the_default_folder_names_the_run(go: Callable[..., Evaluation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = go(out=None, data="digits:n=20"), go(out=None, data="digits:n=20", seed=1)
    assert one.folder.parent == Path("runs")
    assert "digits" in one.folder.name
    assert one.folder != other.folder
    assert go(out=None, data="digits:n=20").folder == one.folder


def test_two_processes_do_not_share_a_folder(go: Callable[..., Evaluation], tmp_path: Path) -> None:
    with store.Store(tmp_path / "run").locked(), pytest.raises(BadInput, match="another process"):
        go(out=tmp_path / "run")


def test_a_damaged_unit_is_computed_again(go: Callable[..., Evaluation], tmp_path: Path, small_units: int) -> None:
    whole = go(out=tmp_path / "run", curve=True, attacks=["pgd:steps=3"])
    reference = {name: array.copy() for name, array in columns(whole).items()}
    units = sorted((tmp_path / "run" / "units").rglob("*.safetensors"))
    assert len({u.parent for u in units}) >= 5
    for number, unit in enumerate(units[:: max(1, len(units) // 6)]):
        content = unit.read_bytes()
        if number % 3 == 0:
            unit.unlink()
        else:
            unit.write_bytes(content[: len(content) // 2] if number % 3 == 1 else b"")
    again = go(out=tmp_path / "run", curve=True, attacks=["pgd:steps=3"])
    assert all(np.array_equal(reference[name], array, equal_nan=array.dtype.kind == "f") for name, array in columns(again).items())
    assert not kept_witnesses(again)["size"].size == 0


# ---- interruptions


class Interrupted(Clock):
    """Raises at the given tick."""

    def __init__(self, at: int, problem: type[BaseException]) -> None:
        super().__init__(show=False)
        self.left, self.problem = at, problem

    def tick(self, finished: int = 0) -> None:
        super().tick(finished)
        self.left -= 1
        if self.left < 0:
            raise self.problem("enough")


@pytest.mark.parametrize(("problem", "status", "code"), [(OutOfTime, "incomplete", 4), (KeyboardInterrupt, "interrupted", 130)])
def test_an_interrupted_run_is_a_valid_bracket_and_resumes(
    go: Callable[..., Evaluation],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_units: int,
    problem: type[BaseException],
    status: str,
    code: int,
) -> None:
    options: dict[str, Any] = {"eps": ["0.03", "0.06"], "curve": True, "attacks": ["pgd:steps=4"]}
    whole = go(**options)
    statuses = []
    for ticks in (14, 18, 25, 40, 60):
        with monkeypatch.context() as patch:
            patch.setattr(engine, "Clock", lambda *a, ticks=ticks: Interrupted(ticks, problem))
            run = go(out=tmp_path / "cut", **options)
        statuses.append(run.status)
        if run.status != "complete":
            assert (run.status, run.exit_code) == (status, code)
            summary = run.summary()
            assert set(summary) == KEYS
            assert summary["certified_accuracy"] <= whole.summary()["certified_accuracy"]
            assert summary["robust_accuracy"] >= whole.summary()["robust_accuracy"]
            assert (run.lower <= whole.lower).all()
            assert (run.upper >= whole.upper).all()
            assert json.loads((tmp_path / "cut" / "run.json").read_text())["status"] == status
    assert statuses.count(status) >= 3
    same(go(out=tmp_path / "cut", **options), whole)


def test_a_time_limit_before_anything_is_done(go: Callable[..., Evaluation], tmp_path: Path) -> None:
    with pytest.raises(OutOfTime, match="same command"):
        go(out=tmp_path / "run", time_limit=1e-9)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "incomplete"
    assert go(out=tmp_path / "run").status == "complete"


def test_an_interrupt_before_anything_is_done(go: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "Clock", lambda *a: Interrupted(0, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        go()


@pytest.mark.parametrize("limit", ["0", "-1", "soon", "1h30", -5, 0, math.nan])
def test_bad_time_limits_are_refused(go: Callable[..., Evaluation], limit: Any) -> None:
    with pytest.raises(BadInput, match="time limit"):
        go(time_limit=limit)


KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from robustkit import engine, stages, store, witnesses
for module in (engine, stages, store, witnesses):
    module.UNIT = 16
import robustkit.attacks.pgd, robustkit.attacks.apgd, robustkit.certify.ibp, robustkit.data.digits, sklearn.datasets

model, folder = sys.argv[1], sys.argv[2]

def run(folder, kill_at=None, where=None):
    write, left = store.write_atomic, [kill_at]
    def killed(path, content):
        if path.parent.parent.name == "units" or path.name in ("samples.npz", "run.json"):
            left[0] -= 1
            if left[0] < 0 and where == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            if left[0] < 0 and where == "half":
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_name("." + path.name + ".1.tmp").write_bytes(content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
        write(path, content)
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    if kill_at is not None:
        for module in (store, engine, witnesses):
            module.write_atomic = killed
    engine.evaluate(model, "digits:n=60", "linf:0.06", eps=["0.03", "0.06"], attacks=["pgd:steps=4", "apgd:steps=6,restarts=1"],
                    certifiers=["ibp"], curve=True, out=folder, report=False)

kills = 0
for number, (kill_at, where) in enumerate([(0, "half"), (1, "before"), (2, "after"), (3, "half"), (5, "after"), (7, "before"), (9, "half"), (None, None)]):
    child = os.fork()
    if child == 0:
        run(folder, kill_at, where)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    kills += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if kill_at is None:
        sys.exit(os.waitstatus_to_exitcode(status) if kills >= 5 else 77)
"""


def test_kill_minus_nine_again_and_again(go: Callable[..., Evaluation], digits_models: dict[str, str], tmp_path: Path) -> None:
    """Real processes, killed at the moments that hurt most: before, in the middle of and after writing a file."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, digits_models["certified"], str(tmp_path / "killed")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    options: dict[str, Any] = {"eps": ["0.03", "0.06"], "attacks": ["pgd:steps=4", "apgd:steps=6,restarts=1"], "curve": True}
    whole = go(**options)
    killed = Evaluation(tmp_path / "killed", "complete", (), whole.evidence, {}, (), load_data("digits:n=60"), load_threat("linf:0.06"))
    same(whole, killed)
    one, other = (json.loads((run.folder / "summary.json").read_text()) for run in (whole, killed))
    for name in KEYS - {"environment", "run", "stages"}:
        assert one[name] == other[name], name
    for mine, theirs in zip(one["stages"], other["stages"]):
        assert {k: v for k, v in mine.items() if k != "seconds"} == {k: v for k, v in theirs.items() if k != "seconds"}


def test_a_raising_plug_in_leaves_everything_saved(go: Callable[..., Evaluation], tmp_path: Path, plugins: None, small_units: int) -> None:
    options: dict[str, Any] = {"attacks": ["fgsm", "bomb:steps=4", "apgd:steps=4,restarts=1"], "batch_size": 16, "data": "digits:n=60"}
    whole = go(**options)
    index = load_data("digits:n=60").index
    ARMED.append(int(index[40]))
    with pytest.raises(RobustkitError, match="ZeroDivisionError: a plug-in's own mistake.*same command resumes"):
        go(out=tmp_path / "run", **options)
    folder = tmp_path / "run"
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["certified_accuracy"] == whole.summary()["certified_accuracy"]
    assert summary["robust_accuracy"] >= whole.summary()["robust_accuracy"]
    assert [row["complete"] for row in summary["stages"]] == [True, True, False]
    ARMED.clear()
    same(go(out=folder, **options), whole)


def test_out_of_memory_does_not_end_a_run(go: Callable[..., Evaluation], digits_models: dict[str, str]) -> None:
    net = load_model(digits_models["certified"]).original
    assert isinstance(net, nn.Module)

    class Small(nn.Module):
        def __init__(self, most: int) -> None:
            super().__init__()
            self.net, self.most = net, most

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            logits: Tensor = self.net(x)
            return logits

    options: dict[str, Any] = {"certifiers": ["none"], "batch_size": 64}
    small, large = go(model=Small(20), **options), go(model=Small(10**6), **options)
    same(small, large)
    assert [f["status"] for f in small.summary()["diagnostics"]] == [f["status"] for f in large.summary()["diagnostics"]]


# ---- what a user may type in Python


def test_one_name_needs_no_list(go: Callable[..., Evaluation]) -> None:
    one = go(attacks="pgd:steps=5", certifiers="none", eps="0.06", data="digits:n=20")
    other = go(attacks=[PGD(steps=5)], certifiers=["none"], eps=[0.06], data="digits:n=20")
    assert one.summary()["stages"][0]["spec"] == other.summary()["stages"][0]["spec"]
    assert columns(one)["upper"].tolist() == columns(other)["upper"].tolist()
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
def test_bad_input_is_refused_before_anything_is_written(go: Callable[..., Evaluation], tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        go(**({"out": tmp_path / "never"} | options))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "never").exists()
