"""The run folders a report is drawn from: what is read, which curve their samples make, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from synthetic_run import edit_summary, report, synthetic_run

from robustkit.errors import BadInput, Missing
from robustkit.report import write_report
from robustkit.report.figures import trace
from robustkit.report.runs import accuracy_at, load_run


def test_the_exact_curve_is_the_step_function_of_the_samples(tmp_path: Path) -> None:
    run = load_run(synthetic_run(tmp_path / "run", n=97, curve=True))
    found = trace(run, 0.4)
    assert found.exact
    assert (found.certified <= found.robust + 1e-12).all()
    upper, lower = run.columns["upper"], run.columns["lower"]
    for eps in np.linspace(0.0005, 0.399, 50):
        last = np.searchsorted(found.x, eps, side="right") - 1
        assert found.robust[last] == pytest.approx((upper > eps).mean())
        assert found.certified[last] == pytest.approx((lower >= eps).mean())


def test_without_a_radius_stage_only_reported_budgets_are_claimed(tmp_path: Path) -> None:
    folder = synthetic_run(tmp_path / "run")
    run = load_run(folder)
    found = trace(run, run.budget[1])
    assert not found.exact
    assert len(found.points[0]) == 4
    for budget, robust, certified in zip(*(row[1:] for row in found.points)):
        assert robust == (run.columns["upper"] > budget).mean()
        assert certified == (run.columns["lower"] >= budget).mean()
    assert (found.certified <= found.robust).all()
    assert "dashed because no attack was run between the points" in report(tmp_path, folder)


def test_budgets_that_floats_cannot_hold_are_compared_as_the_engine_does(tmp_path: Path) -> None:
    run = load_run(synthetic_run(tmp_path / "run", eps=("1/10", "8/255", "0.2")))
    assert [text for text, _ in run.budgets] == ["8/255", "1/10", "0.2"]
    assert run.disagreements() == []
    assert run.shares["certified"] == run.summary["certified_accuracy"]
    assert run.shares["open"] == pytest.approx(run.summary["open"])


def test_accuracy_counts_strictly_unless_closed() -> None:
    values, where = np.array([0.0, 0.1, 0.1, np.inf, -np.inf]), np.array([0.0, 0.1, 0.2])
    assert accuracy_at(values, where, closed=False).tolist() == pytest.approx([0.6, 0.2, 0.2])
    assert accuracy_at(values, where, closed=True).tolist() == pytest.approx([0.8, 0.6, 0.2])


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        (lambda folder: (folder / "summary.json").unlink(), Missing, "summary.json is missing"),
        (lambda folder: (folder / "samples.npz").unlink(), Missing, "samples.npz is missing"),
        (lambda folder: (folder / "summary.json").write_text("<html>"), BadInput, "no JSON document"),
        (lambda folder: (folder / "run.json").write_text("[]"), BadInput, "expected a JSON object"),
        (lambda folder: (folder / "samples.npz").write_bytes(b"PK\x03\x04 torn"), BadInput, "cannot be read"),
        (lambda folder: np.savez(folder / "samples.npz", label=np.zeros(3)), BadInput, "lacks the columns index, predicted"),
        (lambda folder: (folder / "gallery.safetensors").write_bytes(b"torn"), BadInput, "no safetensors file"),
        (edit_summary(lambda summary: summary.update(schema_version=3)), BadInput, "schema_version 3"),
        (edit_summary(lambda summary: summary.pop("curve")), BadInput, "curve is missing"),
        (lambda folder: shutil.rmtree(folder), Missing, "no run folder"),
    ],
)
def test_a_damaged_run_folder_is_one_clear_line(tmp_path: Path, change: Callable[[Path], None], kind: type[Exception], told: str) -> None:
    folder = synthetic_run(tmp_path / "run", n=20)
    change(folder)
    with pytest.raises(kind, match=told) as caught:
        report(tmp_path, folder)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_no_run_and_an_unwritable_place_are_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="at least one run"):
        write_report([], tmp_path / "report.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        write_report([synthetic_run(tmp_path / "run", n=20)], tmp_path / "file" / "report.html")
