"""Stronger witnesses count, each by itself; everything else is turned away with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from robustkit import load_model
from robustkit.attacks import PGD
from robustkit.cli import main
from robustkit.errors import BadInput, Missing
from robustkit.leaderboard import Leaderboard
from robustkit.leaderboard.manifest import Entry

EPS = 0.06


@pytest.fixture
def weak(empty: Leaderboard, board: Leaderboard, plant: Callable[..., Entry], fitting: Callable[..., dict[str, Any]]) -> Leaderboard:
    """A board whose only entry has left out all its witnesses: it looks perfectly robust."""
    entry = board.entries()[0]
    own = {key: entry.columns[key].copy() for key in ("upper", "upper_stage", "adversarial_class")}
    hit = own["upper_stage"] >= 0
    own["upper"][hit], own["upper_stage"][hit], own["adversarial_class"][hit] = np.inf, -1, -1
    plant(empty, entry, columns=own, summary=fitting(entry, own), files={"witnesses.safetensors": None}, name="W")
    assert all(one.ok for one in empty.verify())
    return empty


def found(board: Leaderboard) -> tuple[np.ndarray[Any, Any], torch.Tensor, torch.Tensor]:
    """Positions, parameters and images of good witnesses."""
    data = board.definition.load_data(None)
    model = load_model(board.entries()[0].folder / "model.safetensors")
    result = PGD(steps=20)(model, data.x, data.y, threat="linf:0.06")
    at = result.success.numpy().nonzero()[0]
    return at, result.parameters[at], result.adversarial[at]


def save(path: Path, **arrays: Any) -> Path:
    safetensors.numpy.save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, path)
    return path


@pytest.mark.parametrize("form", ["parameters", "image", "index", "run"])
def test_better_witnesses_lower_what_is_known(weak: Leaderboard, runs: Path, tmp_path: Path, form: str) -> None:
    at, p, image = found(weak)
    if form == "run":
        path = runs / "standard"
    elif form == "index":
        path = save(tmp_path / "w.safetensors", index=weak.entries()[0].columns["index"][at], image=image.numpy())
    else:
        path = save(tmp_path / "w.safetensors", position=at, **{form: (p if form == "parameters" else image).numpy()})
    told = weak.challenge("W", path, by="Me <b>")
    assert (told.tried, told.accepted) == (len(at), len(at)) and not told.refused
    assert told.before - told.after == pytest.approx(len(at) / 48)
    (row,) = weak.standings()
    assert (row.best_known, row.suite, row.challengers) == (pytest.approx(told.after), pytest.approx(told.before), ["Me <b>"])
    assert all(one.ok for one in weak.verify())
    again = weak.challenge("W", path, by="You")
    assert again.accepted == 0 and again.after == told.after
    assert again.refused == {"no smaller than the witness that is known": len(at)}


def test_each_witness_is_judged_by_itself(weak: Leaderboard, tmp_path: Path) -> None:
    at, p, _ = found(weak)
    x = weak.definition.load_data(None).images(torch.from_numpy(at))
    assert len(at) >= 8
    image = (x + p).numpy()
    image[0, 0, 0, 0] = np.nan
    image[1] = x[1].numpy()
    image[2] = np.clip(x[2].numpy() + np.sign(p[2].numpy()) * np.float32(EPS + 1e-3), 0, 1)
    image[3, 0, 0, 0] = 1.5
    position = at.copy()
    position[4] = 4711
    position[5] = -1
    told = weak.challenge("W", save(tmp_path / "w.safetensors", position=position, image=image), by="Me")
    assert told.accepted == len(at) - 6
    assert told.refused == {
        "it is not finite": 1,
        "the model answers correctly": 1,
        "it is outside the budget": 1,
        "its image leaves the box [0,1]": 1,
        "no sample of the board": 2,
    }
    assert all(one.ok for one in weak.verify())


def test_parameters_outside_the_budget(weak: Leaderboard, tmp_path: Path) -> None:
    at, p, _ = found(weak)
    q = p.sign() * (EPS + 1e-3)
    told = weak.challenge("W", save(tmp_path / "w.safetensors", position=at, parameters=q.numpy()), by="Me")
    assert told.accepted == 0 and told.refused == {"it is outside the budget": len(at)}
    assert len(weak.ledger().lines) == 2
    assert (
        main(["leaderboard", "challenge", "W", "--board", str(weak.path), "--witnesses", str(tmp_path / "w.safetensors"), "--by", "x"]) == 1
    )


def test_of_two_witnesses_of_a_sample_the_smaller_counts(weak: Leaderboard, tmp_path: Path) -> None:
    at, p, _ = found(weak)
    twice, both = np.concatenate([at, at]), torch.cat([p, p * 0.999])
    told = weak.challenge("W", save(tmp_path / "w.safetensors", position=twice, parameters=both.numpy()), by="Me")
    held = weak.challenges()[weak.entries()[0].id][0].witnesses()
    assert told.accepted == len(held["position"]) == len(at)
    assert (np.diff(held["position"]) > 0).all()


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"position": np.array([1]), "image": np.zeros((1, 1, 8, 9), np.float32)}, "expected float32 of shape"),
        ({"position": np.array([1.5]), "image": np.zeros((1, 1, 8, 8), np.float32)}, "expected int64"),
        ({"image": np.zeros((1, 1, 8, 8), np.float32)}, "lacks index"),
        ({"position": np.array([1])}, "lacks image"),
        ({"position": np.array([1, 2]), "parameters": np.zeros((1, 1, 8, 8), np.float32)}, "expected float32 of shape"),
    ],
)
def test_files_of_another_form(weak: Leaderboard, tmp_path: Path, arrays: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        weak.challenge("W", save(tmp_path / "w.safetensors", **arrays), by="Me")


def test_things_that_are_no_witnesses(
    weak: Leaderboard, tmp_path: Path, make_run: Callable[..., Path], digits_models: dict[str, str]
) -> None:
    with pytest.raises(Missing, match="there is no"):
        weak.challenge("W", tmp_path / "nothing", by="Me")
    (tmp_path / "w").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(BadInput, match="pickle"):
        weak.challenge("W", tmp_path / "w", by="Me")
    other = make_run(digits_models["standard"], tmp_path / "other", data="digits:n=30")
    with pytest.raises(BadInput, match="other data"):
        weak.challenge("W", other, by="Me")
    l2 = make_run(digits_models["standard"], tmp_path / "l2", threat="l2:0.3")
    with pytest.raises(BadInput, match="about threat l2:0.3"):
        weak.challenge("W", l2, by="Me")
    with pytest.raises(BadInput, match="--by"):
        weak.challenge("W", other, by=" ")


def test_an_attack_over_the_whole_board(weak: Leaderboard, capsys: pytest.CaptureFixture[str]) -> None:
    at, _, _ = found(weak)
    where = ["--board", str(weak.path), "--by", "tester", "--json"]
    assert main(["leaderboard", "challenge-all", "--attack", "pgd:steps=20", *where]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["accepted"] >= len(at) - 1
    assert all(one.ok for one in weak.verify())
    assert main(["leaderboard", "challenge-all", "--attack", "pgd:steps=1", *where]) == 0
    assert json.loads(capsys.readouterr().out)[0]["accepted"] == 0


def test_a_witness_in_a_certified_ball_refutes_the_certificates(
    board: Leaderboard, runs: Path, plant: Callable[..., Entry], fitting: Callable[..., Any], tmp_path: Path
) -> None:
    """A forged certificate falls with all others of its stage, and the entry is no longer ranked."""
    entry = board.entries()[1]
    at = int(np.flatnonzero(entry.columns["upper_stage"] >= 0)[0])
    own = {key: entry.columns[key].copy() for key in ("upper", "upper_stage", "adversarial_class", "lower", "lower_stage")}
    own["upper"][at], own["upper_stage"][at], own["adversarial_class"][at] = np.inf, -1, -1
    own["lower"][at], own["lower_stage"][at] = EPS, 0
    held = entry.witnesses()
    rest = safetensors.numpy.save({name: np.ascontiguousarray(values[held["position"] != at]) for name, values in held.items()})
    plant(board, entry, columns=own, summary=fitting(entry, own), files={"witnesses.safetensors": rest}, name="F")
    assert all(one.ok for one in board.verify("F"))
    before = next(row for row in board.standings() if row.name == "F")
    assert before.certified_submitted and before.certified_submitted > 0.1
    assert board.challenge("F", runs / "certified", by="Me").accepted == 1
    row = next(row for row in board.standings() if row.name == "F")
    assert (row.state, row.certified_submitted, row.certified, row.rank) == ("refuted", 0.0, None, None)


def test_a_tampered_challenge_is_caught(weak: Leaderboard, runs: Path) -> None:
    weak.challenge("W", runs / "standard", by="Me")
    (challenge,) = weak.challenges()[weak.entries()[0].id]
    path = challenge.folder / "witnesses.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + b"\7")
    assert "was changed" in weak.verify(level="files")[1].problems[0]
    assert weak.standings()[0].state == "damaged"
    path.unlink()
    assert "missing" in weak.verify(level="files")[1].problems[0]


def test_a_random_model_is_challenged_on_fresh_draws(digits_models: dict[str, str], make_run: Callable[..., Path], tmp_path: Path) -> None:
    """A witness has to outvote the label twice, in draws from seeds that nobody knew; every try is on record."""
    board = Leaderboard.create(tmp_path / "r", data="digits:n=12", threat="linf:0.2", suite="quick")
    model = "smooth:(zoo:digits-standard),sigma=0.1,votes=100"
    made = make_run(model, tmp_path / "run", data="digits:n=12", threat="linf:0.2")
    entry = board.submit(made, name="Smoothed")
    assert not entry.has("model.safetensors")
    (_, told) = board.verify()
    assert told.ok and told.measured["witnesses"] > 0
    row = board.standings()[0]
    assert (row.surface, row.model[:7]) == ("", "smooth:")
    held = entry.witnesses()
    lines = len(board.ledger().lines)
    weaker = save(tmp_path / "w.safetensors", position=held["position"], parameters=held["parameters"] * 0.01)
    assert board.challenge("Smoothed", weaker, by="Me").accepted == 0
    assert [line.event for line in board.ledger().lines[lines:]] == ["attempt"]
    assert all(one.ok for one in board.verify())
    board.rerun("Smoothed", sample=4, progress=False)
    assert board.standings()[0].surface == "declared"
