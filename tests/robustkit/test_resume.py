"""Run folders: whatever ends a run, the same call goes on and ends with the same result."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustkit.attacks
from robustkit import engine, stages, store, witnesses
from robustkit import run as working
from robustkit.attacks.pgd import PGD
from robustkit.classifier import Classifier
from robustkit.clock import Clock
from robustkit.data import load_data
from robustkit.errors import BadInput, OutOfTime, RobustkitError
from robustkit.methods import Rows, State
from robustkit.models import load_model
from robustkit.threats import L1, Threat

KEYS = {
    *("schema_version", "model", "data", "threat", "eps", "goal", "labels", "seed", "clean_accuracy", "robust_accuracy"),
    *("certified_accuracy", "certified_statistical", "certified_conditional", "open", "interval95", "population95", "curve"),
    *("robust_accuracy_at_most", "checked", "not_established", "eight_bit", "stages", "diagnostics", "environment", "run"),
}


# ---- run folders


def test_a_run_again_computes_nothing(go: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = go(out=tmp_path / "again", curve=True, attacks=["pgd:steps=3"])
    asked = []
    forward = Classifier.forward

    def counted(self: Classifier, x: Tensor, keys: Tensor | None = None) -> Tensor:
        asked.append(len(x))
        return forward(self, x, keys)

    monkeypatch.setattr(Classifier, "forward", counted)
    monkeypatch.setattr(Classifier, "search", lambda *_: pytest.fail("an attack ran again"))
    second = go(out=tmp_path / "again", curve=True, attacks=["pgd:steps=3"])
    assert sum(asked) <= 2  # the check that model and data fit
    go.same(first, second)
    timeless = [{k: v for k, v in run.summary().items() if k != "environment"} for run in (first, second)]
    assert timeless[0] == timeless[1]


def test_another_specification_is_refused(go: Any, tmp_path: Path) -> None:
    go(out=tmp_path / "run", data="digits:n=20")
    before = (tmp_path / "run" / "summary.json").read_bytes()
    changes: dict[str, dict[str, Any]] = {
        "data": {"data": "digits:n=21"},
        "seed": {"seed": 1},
        "threat": {"threat": "linf:0.07"},
        "stages": {"attacks": ["fgsm"]},
    }
    for field, change in changes.items():
        with pytest.raises(BadInput, match=f"another specification.*{field}"):
            go(**({"out": tmp_path / "run", "data": "digits:n=20"} | change))
    assert (tmp_path / "run" / "summary.json").read_bytes() == before


def test_a_run_of_an_older_version_of_the_threat_is_refused(go: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"out": tmp_path / "run", "data": "digits:n=20", "threat": "l1:0.5", "attacks": ["fgsm"], "certifiers": ["none"]}
    go(**options)
    monkeypatch.setattr(L1, "version", L1.version + 1)
    with pytest.raises(BadInput, match="another specification.*threat_version"):
        go(**options)


def test_a_foreign_folder_is_refused(go: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(BadInput, match="not empty"):
        go(out=tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir() if p.name != ".lock"] == ["notes.txt"]
    with pytest.raises(BadInput, match="run folder"):
        go(out=tmp_path / "mine" / "notes.txt")


def test_the_default_folder_names_the_run(go: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = go(out=None, data="digits:n=20"), go(out=None, data="digits:n=20", seed=1)
    assert one.folder.parent == Path("runs")
    assert "digits" in one.folder.name
    assert one.folder != other.folder
    assert go(out=None, data="digits:n=20").folder == one.folder


def test_models_that_share_their_weights_do_not_share_results(go: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Handed over in Python, nobody can tell their code apart: the second is computed anew."""
    monkeypatch.chdir(tmp_path)
    net = load_model(go.given["model"]).original
    assert isinstance(net, nn.Module)

    class Mine(nn.Module):
        def __init__(self, sign: float) -> None:
            super().__init__()
            self.net, self.sign = net, sign

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.sign * self.net(x)
            return logits

    options: dict[str, Any] = {"out": None, "data": "digits:n=20", "certifiers": ["none"]}
    good, bad, again = go(model=Mine(1), **options), go(model=Mine(-1), **options), go(model=Mine(1), **options)
    assert good.summary()["clean_accuracy"] > 0.8 > 0.2 > bad.summary()["clean_accuracy"]
    assert len({run.folder for run in (good, bad, again)}) == 3
    go.same(good, again)
    kept = go(model=Mine(1), **(options | {"out": again.folder}))
    assert kept.folder == again.folder


def test_two_processes_do_not_share_a_folder(go: Any, tmp_path: Path) -> None:
    with store.Store(tmp_path / "run").locked(), pytest.raises(BadInput, match="another process"):
        go(out=tmp_path / "run")


def test_a_damaged_unit_is_computed_again(go: Any, tmp_path: Path, small_units: int) -> None:
    whole = go(out=tmp_path / "run", curve=True, attacks=["pgd:steps=3"])
    reference = {name: array.copy() for name, array in go.columns(whole).items()}
    units = sorted((tmp_path / "run" / "units").rglob("*.safetensors"))
    assert len({u.parent for u in units}) >= 5
    for number, unit in enumerate(units[:: max(1, len(units) // 6)]):
        content = unit.read_bytes()
        if number % 3 == 0:
            unit.unlink()
        else:
            unit.write_bytes(content[: len(content) // 2] if number % 3 == 1 else b"")
    again = go(out=tmp_path / "run", curve=True, attacks=["pgd:steps=3"])
    assert all(np.array_equal(reference[name], array, equal_nan=array.dtype.kind == "f") for name, array in go.columns(again).items())
    assert len(go.witnesses(again)["size"]) > 0


def test_turned_bits_in_what_is_stored_change_no_result(go: Any, tmp_path: Path) -> None:
    options = {"out": tmp_path / "run", "data": "digits:n=40", "attacks": ["pgd:steps=3"], "certifiers": ["ibp"], "threat": "linf:0.15"}
    whole = go(**options)
    draw = np.random.default_rng(0)
    files = [*sorted(tmp_path.rglob("units/*/*.safetensors")), tmp_path / "run" / "diagnostics.json"]
    for _ in range(6):
        for path in files:
            raw = bytearray(path.read_bytes())
            raw[draw.integers(len(raw))] ^= 1 << int(draw.integers(8))
            path.write_bytes(raw)
        again = go(**options)
        assert np.array_equal(whole.lower, again.lower)
        assert np.array_equal(whole.upper, again.upper)
        assert whole.summary()["diagnostics"] == again.summary()["diagnostics"]


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
    go: Any,
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
            assert set(summary) == KEYS | {"certified_radius"}
            assert summary["certified_accuracy"] <= whole.summary()["certified_accuracy"]
            assert summary["robust_accuracy"] >= whole.summary()["robust_accuracy"]
            assert (run.lower <= whole.lower).all()
            assert (run.upper >= whole.upper).all()
            assert json.loads((tmp_path / "cut" / "run.json").read_text())["status"] == status
    assert statuses.count(status) >= 3
    go.same(go(out=tmp_path / "cut", **options), whole)


@pytest.mark.parametrize("curve", [False, True])
def test_what_is_finished_inside_a_unit_is_kept(go: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, curve: bool) -> None:
    """One unit holds all samples; an interrupt in its middle loses no finished one, with checkpoints or on the way out."""
    options: dict[str, Any] = {"attacks": ["pgd:steps=6,restarts=3", "square:queries=40"], "curve": curve, "batch_size": 16}
    whole = go(**options)
    folder, tick, stopped = tmp_path / "stopped", Clock.tick, []
    for after in (40, 160, 420):
        calls = iter(range(10**9))

        def interrupting(self: Clock, finished: int = 0, calls: Any = calls, after: int = after) -> None:
            tick(self, finished)
            if next(calls) >= after:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Clock, "tick", interrupting)
            patch.setattr(stages, "CHECKPOINT", 0.0 if after == 160 else 300.0)
            run = go(out=folder, **options)
        stopped.append(run.status)
        assert run.summary()["robust_accuracy"] >= whole.summary()["robust_accuracy"]
    assert "interrupted" in stopped
    go.same(whole, go(out=folder, **options))


def test_a_time_limit_before_anything_is_done(go: Any, tmp_path: Path) -> None:
    with pytest.raises(OutOfTime, match="same command"):
        go(out=tmp_path / "run", time_limit=1e-9)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "incomplete"
    assert go(out=tmp_path / "run").status == "complete"


def test_an_interrupt_before_anything_is_done(go: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "Clock", lambda *a: Interrupted(0, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        go()


@pytest.mark.parametrize("limit", ["0", "-1", "soon", "1h30", -5, 0, math.nan])
def test_bad_time_limits_are_refused(go: Any, limit: Any) -> None:
    with pytest.raises(BadInput, match="time limit"):
        go(time_limit=limit)


KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from robustkit import engine, stages, store, witnesses
from robustkit import run as working
from robustkit.certify import IBP
for module in (working, stages, store, witnesses):
    module.UNIT = 16
working.Examination.run = lambda self: []

model, folder = sys.argv[1:]
options = {"attacks": ["pgd:steps=4", "apgd:steps=6,restarts=1"], "certifiers": ["ibp"], "curve": True}
threat = engine.load_threat("linf:0.06")
engine.make_plan(threat, [threat.eps], suite="quick", **options)  # what is imported here need not be by every child
engine.load_data("digits:n=60")
IBP().bind(engine.load_model(model), threat)

def run(kill_at, where):
    write, left = store.write_atomic, kill_at
    def killing(path, content):
        nonlocal left
        left -= 1
        if left < 0 and where == "half":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.1.tmp").write_bytes(content[: len(content) // 2])
        if left >= 0 or where == "after":
            write(path, content)
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    if where is not None:
        for module in (working, store, witnesses):
            module.write_atomic = killing
    engine.evaluate(model, "digits:n=60", "linf:0.06", eps=["0.03", "0.06"], out=folder, report=False, **options)

kills = 0
for kill_at, where in [(0, "half"), (2, "before"), (3, "after"), (5, "half"), (7, "after"), (9, "before"), (11, "half"), (0, None)]:
    child = os.fork()
    if child == 0:
        run(kill_at, where)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    kills += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
sys.exit(os.waitstatus_to_exitcode(status) if kills == 7 else 77)
"""


def test_kill_minus_nine_again_and_again(go: Any, digits_models: dict[str, str], tmp_path: Path) -> None:
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
    go.same(whole, tmp_path / "killed")
    one, other = (json.loads((folder / "summary.json").read_text()) for folder in (whole.folder, tmp_path / "killed"))
    for name in KEYS - {"environment", "run", "stages"}:
        assert one[name] == other[name], name
    for mine, theirs in zip(one["stages"], other["stages"]):
        assert {k: v for k, v in mine.items() if k != "seconds"} == {k: v for k, v in theirs.items() if k != "seconds"}


ARMED: list[int] = []


@dataclass(frozen=True)
class Bomb(PGD):
    """Raises at its third step, when armed with a dataset index."""

    name = "bomb"

    def step(self, rows: Rows, state: State, view: Any, threat: Threat) -> State:
        if ARMED and bool(((rows.steps >= 2) & (rows.index >= ARMED[0])).any()):
            raise ZeroDivisionError("a plug-in's own mistake")
        return super().step(rows, state, view, threat)


@pytest.fixture
def bomb(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`bomb`, as a third party would register it."""
    module = types.ModuleType("planted_attack")
    module.Bomb = Bomb  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "planted_attack", module)
    monkeypatch.setitem(robustkit.attacks.TABLE, "bomb", "planted_attack:Bomb")
    ARMED.clear()
    yield
    ARMED.clear()


def test_a_raising_plug_in_leaves_everything_saved(go: Any, tmp_path: Path, bomb: None, small_units: int) -> None:
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
    go.same(go(out=folder, **options), whole)


def test_a_full_disk_ends_in_one_line_and_resumes(go: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_units: int) -> None:
    options: dict[str, Any] = {"attacks": ["pgd:steps=4"]}
    whole, write = go(**options), store.write_atomic
    for room in (3, 7, 12):
        left = iter(range(room))

        def full(path: Path, content: bytes, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise OSError(28, "No space left on device")
            write(path, content)

        with monkeypatch.context() as patch:
            for module in (working, store, witnesses):
                patch.setattr(module, "write_atomic", full)
            with pytest.raises(RobustkitError, match="No space left on device.*same command goes on"):
                go(out=tmp_path / "run", **options)
    go.same(go(out=tmp_path / "run", **options), whole)


def test_out_of_memory_does_not_end_a_run(go: Any, digits_models: dict[str, str]) -> None:
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
    go.same(small, large)
    assert [f["status"] for f in small.summary()["diagnostics"]] == [f["status"] for f in large.summary()["diagnostics"]]
