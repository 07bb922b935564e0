"""A submission that asks for gigabytes or for years: nothing of it is done, and the limit is named."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustkit.cli import main
from robustkit.errors import BadInput
from robustkit.leaderboard import Leaderboard
from robustkit.leaderboard.documents import canonical
from robustkit.leaderboard.limits import LIMITS, Limits, TooMuch, in_words
from robustkit.leaderboard.manifest import Entry
from robustkit.models.weights import read_checkpoint
from robustkit.spec import digest
from robustkit.store import canonical_json

ZOO = sorted((Path(__file__).parents[3] / "robustkit" / "zoo").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("architecture", "shape", "option"),
    [
        ("conv(1,1000000,3,p1)-relu-flatten-linear(784000000,10)", "1x28x28", "--most-memory"),
        ("flatten-linear(784,999999999)-linear(999999999,10)", "1x28x28", "--most-memory"),
        ("abs(10,8,starts=1000000,steps=50)", "1x28x28", "--most-memory"),
        ("abs(10,8,starts=10,steps=100000)", "1x28x28", "--time-limit"),
        ("flatten-linear(784,9000)-" + "linear(9000,9000)-" * 600 + "linear(9000,10)", "1x28x28", "--time-limit"),
        ("abs(999999999,8)", "1x28x28", "at most 1000"),
        ("res(relu|)-" * 40_000 + "flatten-linear(784,10)", "1x28x28", "at most 200000"),
        ("globalavgpool-flatten-linear(1,10)", "1x0x28", "lack"),
        ("conv(1,3,3)-flatten-linear(9,10)", "1x28x28", "does not take"),
    ],
)
def test_a_network_that_is_too_large(architecture: str, shape: str, option: str) -> None:
    start = time.monotonic()
    with pytest.raises((TooMuch, BadInput), match=option):
        LIMITS.network({"architecture": architecture, "input": f"{shape} in [0,1]"}, 1000)
    assert time.monotonic() - start < 5


def test_usual_networks_are_affordable() -> None:
    for path in ZOO:
        LIMITS.network(read_checkpoint(path).metadata, 1000)
    body = "conv(3,64,3,p1)-bn(64)-relu-" + "-".join(["res(conv(64,64,3,p1)-bn(64)-relu-conv(64,64,3,p1)-bn(64)|)-relu"] * 4)
    LIMITS.network({"architecture": f"{body}-globalavgpool-flatten-linear(64,10)", "input": "3x32x32 in [0,1]"}, 1000)


def test_limits_as_people_write_them() -> None:
    asked = Limits.asked("30m", "512m")
    assert (asked.seconds, asked.memory) == (1800, 512 << 20)
    assert Limits.asked() == LIMITS
    for memory in ("", "-1", "0", "8q", "lots"):
        with pytest.raises(BadInput, match="memory"):
            Limits.asked(most_memory=memory)
    assert [in_words(value) for value in (5, 300, 7200, 1e9)] == ["5 s", "5 min", "2 h", "1.16e+04 days"]
    for value in (float("nan"), float("inf")):
        with pytest.raises(TooMuch):
            LIMITS.time(value, "it")


def named(entry: Entry, spec: str, kind: str, fitting: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Columns and documents that claim a certificate of a class for every sample, by a certifier of the submitter's choice."""
    robust = entry.columns["upper"] > 0.06
    key = "lower" if kind == "deterministic" else f"lower_{kind}"
    own: dict[str, Any] = {key: np.where(robust, 0.06, entry.columns[key])}
    summary = fitting(entry, own)
    place = next(number for number, stage in enumerate(summary["stages"]) if stage["kind"] == "certifier")
    summary["stages"][place]["spec"] = spec
    if kind == "deterministic":
        own["lower_stage"] = np.where(robust, place, entry.columns["lower_stage"])
    record = json.loads(json.dumps(entry.record))
    planned = [stage for stage in record["specification"]["stages"] if stage.get("mode") != "probe"]
    planned[place]["method"] = spec
    record["digest"] = digest(canonical_json(record["specification"]), 32)
    return {"columns": own, "summary": summary, "files": {"run.json": canonical(record)}}


@pytest.mark.parametrize(
    ("spec", "kind", "column"),
    [
        ("alpha-crown:steps=1000000000", "deterministic", "certified"),
        ("sound:(alpha-crown:steps=1000000000)", "deterministic", "certified"),
        ("smoothing:n=1000000000", "statistical", "certified_statistical"),
        ("smoothing:n=1000000,alpha=0.999", "statistical", "certified_statistical"),
        ("abs", "conditional", "certified_conditional"),
        ("nobody:knows=this", "deterministic", "certified"),
    ],
)
def test_certificates_that_cost_too_much_or_cannot_be_computed(
    board: Leaderboard, plant: Callable[..., Entry], fitting: Callable[..., Any], spec: str, kind: str, column: str
) -> None:
    """They are left out and named; the figures of the table do not hold them."""
    plant(board, board.entries()[0], **named(board.entries()[0], spec, kind, fitting), name="F")
    start = time.monotonic()
    told = board.rerun("F", sample=48, progress=False)
    assert time.monotonic() - start < 60
    assert "certificates were not computed again" in " ".join(told.left_out)
    row = next(row for row in board.standings() if row.name == "F")
    assert getattr(row, column) == 0.0
    if "steps" in spec or "n=1000000000" in spec:
        assert "--time-limit" in " ".join(told.left_out)


def test_a_model_that_is_too_large_is_not_checked(board: Leaderboard, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["leaderboard", "verify", "The standard one", "--board", str(board.path)]
    assert main([*where, "--most-memory", "1k"]) == 3
    assert "--most-memory allows more" in capsys.readouterr().out
    assert main([*where, "--level", "rerun", "--time-limit", "0.0000001s"]) in (2, 3)
    assert "time" in "".join(capsys.readouterr())
    assert board.standings()[0].rank is None


@pytest.mark.parametrize("votes", [100_000, 1_000_000_000])
def test_votes_without_end(board: Leaderboard, digits_models: dict[str, str], plant: Callable[..., Entry], votes: int) -> None:
    spec = f"smooth:(zoo:digits-standard),sigma=0.1,votes={votes}"
    from robustkit import load_model
    from robustkit.leaderboard.subject import identity

    model = load_model(spec)
    about = {"spec": spec, "sha256": model.sha256, "identity": identity(model), "file": None}
    plant(board, board.entries()[0], files={"model.safetensors": None}, model=about, name="F")
    start = time.monotonic()
    (_, told) = board.verify("F", record=False, time_limit="1s")
    assert time.monotonic() - start < 20
    assert "--time-limit allows more" in told.missing or "at most 100,000 are counted" in " ".join(told.problems)
