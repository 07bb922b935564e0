"""Wrappers around a model, found by name: how they are written, nested and refused."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass

import pytest

import robustkit as rk
from robustkit import defenses
from robustkit.classifier import Classifier
from robustkit.models.wrapped import is_wrapper, split


@dataclass(frozen=True)
class Scaled:
    """Logits times a factor."""

    factor: float = 2.0
    name = "scaled"
    positional = ()

    def wrap(self, base: Classifier) -> Classifier:
        return Classifier(lambda x: self.factor * base.forward(x), classes=base.classes, spec=f"scaled:({base.spec}),factor={self.factor}")


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("scaling")
    module.Scaled = Scaled  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "scaling", module)
    monkeypatch.setitem(defenses.WRAPPERS, "scaled", "scaling:Scaled")


@pytest.mark.usefixtures("scaled")
def test_a_wrapper_is_found_by_name_and_nests() -> None:
    x, _ = rk.load_data("digits:n=4")
    plain = rk.load_model("zoo:digits-standard").logits(x)
    assert is_wrapper("scaled")
    assert not is_wrapper("zoo")
    assert rk.load_model("scaled:(zoo:digits-standard)").logits(x).equal(2 * plain)
    assert rk.load_model("scaled:(scaled:(zoo:digits-standard),factor=4),factor=0.5").logits(x).equal(2 * plain)


def test_how_one_is_written() -> None:
    inner, spec = split("knn", "(smooth:(zoo:a),sigma=0.1),k=3,layers=[1,2]")
    assert inner == "smooth:(zoo:a),sigma=0.1"
    assert str(spec) == "knn:k=3,layers=[1,2]"
    assert split("knn", "(zoo:a)")[1].options == {}
    for rest, message in (("zoo:a", "which model"), ("(zoo:a", "bracket is open"), ("(zoo:a) k=3", "follows the model")):
        with pytest.raises(rk.BadInput, match=message):
            split("knn", rest)
