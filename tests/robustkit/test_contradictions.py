"""Certificates and witnesses: sound ones never meet, a wrong certifier is caught."""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustkit.classifier import Classifier
from robustkit.engine import certify, evaluate
from robustkit.methods import Bound, Certifier
from robustkit.models import zoo_names
from robustkit.threats import Threat


@dataclass(frozen=True)
class Liar(Certifier):
    """Claims everything."""

    name = "liar"
    cost = 1.0

    def bind(self, classifier: Classifier, threat: Threat) -> Bound:
        return lambda x, y, eps: torch.ones(len(x), dtype=x.dtype)


@pytest.fixture(autouse=True)
def liar(monkeypatch: pytest.MonkeyPatch) -> None:
    """`liar`, as a third party would register it."""
    module = types.ModuleType("planted_certifier")
    module.Liar = Liar  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "planted_certifier", module)
    monkeypatch.setitem(importlib.import_module("robustkit.certify").TABLE, "liar", "planted_certifier:Liar")


@pytest.mark.parametrize("curve", [False, True])
def test_a_wrong_certifier_is_caught(go: Any, curve: bool) -> None:
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
    kept = go.witnesses(run)
    assert len(kept["index"]) > 10
    assert max(go.columns(run)["upper_stage"]) < len(summary["stages"])


def test_a_wrong_certifier_is_caught_without_attacks(go: Any, digits_models: dict[str, str], tmp_path: Path) -> None:
    given: dict[str, Any] = {"method": ["liar"], "out": tmp_path / "run", "report": False}
    runs = [certify(digits_models["certified"], "digits:n=40", "linf:0.3", **given) for _ in range(2)]
    for run in runs:
        assert run.exit_code == 1
        assert run.summary()["certified_accuracy"] == 0
        assert run.summary()["robust_accuracy"] < run.summary()["clean_accuracy"]
    go.same(*runs)


def test_a_probe_that_finds_nothing_is_not_shown(go: Any) -> None:
    run = go()
    assert [row["name"] for row in run.summary()["stages"]] == ["ibp", "pgd", "apgd"]
    assert run.exit_code == 0


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
            given: dict[str, Any] = {"attacks": ["pgd:steps=10"], "certifiers": ["ibp"], "curve": True, "report": False}
            run = evaluate(model, (x, y), threat, out=tmp_path / f"{name}{threat[:2]}", **given)
            assert run.contradicted == ()
            assert (run.lower < run.upper).all()
            assert (run.lower > 0).sum() > 10
            assert np.isfinite(run.upper).sum() > 10


@pytest.mark.parametrize("threat", ["linf:0.1", "l2:0.5"])
@pytest.mark.parametrize("name", [name for name in zoo_names() if name.startswith("digits")])
def test_the_zoo_is_never_contradicted(go: Any, name: str, threat: str) -> None:
    run = go(model=f"zoo:{name}", data="digits:n=40", threat=threat, curve=True, attacks=["pgd:steps=10"])
    assert run.contradicted == ()
    assert (run.lower < run.upper).all()
    assert (run.lower > 0).sum() > 30
    assert np.isfinite(run.upper).all()
