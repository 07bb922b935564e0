"""What the tests of the engine share: runs with small defaults, and how two of them are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from robustkit import run as working
from robustkit import stages, store, witnesses
from robustkit.checks.diagnostics import Examination
from robustkit.driver import Driver
from robustkit.engine import Evaluation, evaluate

Columns = dict[str, "np.ndarray[Any, Any]"]
MODULES_WITH_UNITS = (store, stages, witnesses, working)


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> int:
    """Units of 16 samples, so that small runs have several."""
    for module in MODULES_WITH_UNITS:
        monkeypatch.setattr(module, "UNIT", 16)
    return 16


class Runs:
    """Call it to evaluate a small model on a few digits, each time into a folder of its own.

    The honesty checks are left out unless `checks=True`: they cost more than such a run.
    """

    attacks = ("pgd:steps=5", "apgd:steps=8,restarts=1")

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.count = folder, 0
        self.given: dict[str, Any] = {
            "model": model,
            "data": "digits:n=60",
            "threat": "linf:0.06",
            "attacks": self.attacks,
            "certifiers": ["ibp"],
            "report": False,
        }

    def __call__(self, *, checks: bool = False, **options: Any) -> Evaluation:
        self.count += 1
        with pytest.MonkeyPatch.context() as patch:
            if not checks:
                patch.setattr(Examination, "run", lambda self: [])
            return evaluate(**(self.given | {"out": self.folder / f"run{self.count}"} | options))

    def columns(self, run: Evaluation | Path) -> Columns:
        """samples.npz of a run."""
        with np.load((run if isinstance(run, Path) else run.folder) / "samples.npz") as held:
            return {name: held[name] for name in held.files}

    def witnesses(self, run: Evaluation | Path) -> Columns:
        """witnesses.safetensors of a run; empty where there is none."""
        path = (run if isinstance(run, Path) else run.folder) / "witnesses.safetensors"
        return dict(safetensors.numpy.load_file(path)) if path.exists() else {}

    def same(self, one: Evaluation | Path, other: Evaluation | Path, first: int | None = None) -> None:
        """Asserts the same columns and witnesses, bit for bit; with `first`, those of the first samples of `other`."""
        mine, theirs = self.columns(one), self.columns(other)
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert np.array_equal(mine[name], theirs[name][:first], equal_nan=mine[name].dtype.kind == "f"), name
        left, right = self.witnesses(one), self.witnesses(other)
        assert left.keys() == right.keys()
        for name in left:
            inside = slice(None) if first is None else right["position"] < first
            assert np.array_equal(left[name], right[name][inside]), name
        assert len(left["index"]) > 0


@pytest.fixture
def go(digits_models: dict[str, str], tmp_path: Path) -> Runs:
    """evaluate() with small defaults; see Runs."""
    return Runs(tmp_path, digits_models["certified"])


@pytest.fixture
def in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt of a sample at a time, so that a log of calls can be read per sample."""
    monkeypatch.setattr(Driver, "_try_ahead", lambda *_: False)


@pytest.fixture
def no_other_roots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A test says where its data is; the current folder is empty."""
    monkeypatch.delenv("ROBUSTKIT_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
