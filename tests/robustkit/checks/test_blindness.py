"""A run whose checks find it blind goes on without gradients, and is checked again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from robustkit import evaluate, plan
from robustkit.engine import Evaluation
from robustkit.stages import Bench
from tests.helpers.saturated import pairwise

FEW = ("image-walk:queries=400", "readout:queries=300", "stand-in:rounds=1,epochs=2")
Go = Callable[..., Evaluation]


@pytest.fixture
def go(tmp_path: Path) -> Go:
    """Evaluate a saturated network by a suite, in a folder of its own unless `out` says which."""

    def run(model: nn.Module | str | None = None, **options: Any) -> Evaluation:
        given: dict[str, Any] = {"data": "digits:n=80", "threat": "linf:0.2", "suite": "quick", "certifiers": ["none"], "report": False}
        given |= {"progress": False, "out": tmp_path / f"run{len(list(tmp_path.iterdir()))}"}
        return evaluate(pairwise() if model is None else model, **(given | options))

    return run


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short searches: what is asked here does not depend on their strength."""
    monkeypatch.setattr(plan, "SIGHTLESS", FEW)


def columns(run: Evaluation) -> dict[str, Any]:
    with np.load(run.folder / "samples.npz") as held:
        return {name: held[name].tolist() for name in held.files}


def timeless(run: Evaluation) -> Any:
    told = {key: value for key, value in run.summary().items() if key not in ("environment", "run")}
    return told | {"stages": [{key: value for key, value in row.items() if key != "seconds"} for row in told["stages"]]}


@pytest.mark.parametrize("function", [nn.Tanh, nn.Hardtanh])
def test_a_network_without_gradients_that_is_broken_altogether_has_a_figure(go: Go, function: type[nn.Module]) -> None:
    told = go(pairwise(1000, function)).summary()
    assert told["robust_accuracy_at_most"] <= 0.1
    assert told["not_established"] == ""
    assert told["robust_accuracy"] == told["robust_accuracy_at_most"]
    names = [stage["name"] for stage in told["stages"]]
    assert {"image-walk", "readout", "stand-in"} <= set(names)
    assert {one["check"]: one["status"] for one in told["diagnostics"]}["zero gradients"] == "pass"


def test_what_is_left_at_a_small_budget_is_not_established(go: Go, small: None) -> None:
    told = go(threat="linf:0.05").summary()
    assert told["robust_accuracy"] is None
    assert "probe samples that are left" in told["not_established"]
    assert told["checked"]


def test_named_attacks_are_left_alone(go: Go) -> None:
    told = go(attacks=["pgd:steps=5"]).summary()
    assert [stage["name"] for stage in told["stages"]] == ["pgd"]
    assert told["robust_accuracy"] is None
    assert told["robust_accuracy_at_most"] > 0.8


def test_named_attacks_that_break_it_altogether_are_believed(go: Go) -> None:
    told = go(attacks=["boundary:queries=3000"], threat="linf:0.3").summary()
    assert told["not_established"] == ""
    assert told["robust_accuracy"] <= 0.05


def test_a_sound_model_costs_and_changes_nothing(go: Go) -> None:
    run = go("zoo:digits-standard")
    assert [stage["name"] for stage in run.summary()["stages"]] == ["fgsm", "pgd"]
    assert not (run.folder / "blind.json").exists()
    assert run.summary()["not_established"] == ""


def test_the_same_answer_after_an_interruption(go: Go, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = go(eps=["0.1", "0.2"])
    work = Bench.run
    for stop in ("image-walk", "readout", "stand-in"):

        def stopped(self: Bench, stage: plan.Stage, stages: list[plan.Stage], name: str = stop) -> None:
            if stage.name == name:
                raise KeyboardInterrupt
            work(self, stage, stages)

        monkeypatch.setattr(Bench, "run", stopped)
        part = go(eps=["0.1", "0.2"], out=tmp_path / "cut")
        assert part.status == "interrupted"
        assert part.summary()["robust_accuracy"] is None
        assert not part.summary()["checked"]
    monkeypatch.setattr(Bench, "run", work)
    again = go(eps=["0.1", "0.2"], out=tmp_path / "cut")
    assert columns(again) == columns(whole)
    assert timeless(again) == timeless(whole)
    assert timeless(go(eps=["0.1", "0.2"], out=tmp_path / "cut")) == timeless(whole)


def test_neither_batch_nor_number_of_images_matters(go: Go, small: None) -> None:
    first, second = columns(go(data="digits:n=80")), columns(go(data="digits:n=80", batch_size=16))
    assert first == second


def test_a_plain_callable_has_no_layers_to_read(go: Go, small: None) -> None:
    network = pairwise()
    told = go(lambda x: network(x)).summary()
    (why,) = [
        one
        for one in told["diagnostics"]
        if one["check"] == "attack readout:queries=300,share=0.8,restarts=1,rescale=false,published_windows=false"
    ]
    assert why["status"] == "skipped"
    assert {"image-walk", "stand-in"} <= {stage["name"] for stage in told["stages"]}


def test_radii_that_blind_attacks_searched_are_not_reported(go: Go, small: None) -> None:
    told = go(curve=True, data="digits:n=40").summary()
    assert [point["eps"] for point in told["curve"]] == [0.0, 0.2]
