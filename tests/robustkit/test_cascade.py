"""certify(): the cascade settles with the cheapest method that can, and its radii are proven between what was known."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import robustkit as rk
from robustkit import engine
from robustkit.certify.alpha_crown import AlphaCrown
from robustkit.certify.crown import Crown
from robustkit.certify.ibp import IBP
from robustkit.clock import Clock
from robustkit.core.comparisons import float_below
from robustkit.engine import certify
from robustkit.errors import BadInput, OutOfTime
from robustkit.methods import Certifier
from robustkit.plan import Stage, make_plan
from robustkit.registry import make
from robustkit.threats import load_threat
from robustkit.verdict.proof import largest_radius, prove

CASCADE = ["pgd", "ibp", "crown-ibp", "crown", "alpha-crown"]
HARD: dict[str, Any] = {"data": "digits:n=48", "threat": "linf:0.04", "report": False, "progress": False}
"""At this budget all but IBP settle some samples of zoo:digits-standard."""
STANDARD = "zoo:digits-standard"


@pytest.fixture(autouse=True)
def without_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustkit.run.Examination.run", lambda self: [])


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory) -> rk.Evaluation:
    return certify(STANDARD, out=tmp_path_factory.mktemp("cascade") / "run", **HARD)


def settling(run: rk.Evaluation) -> list[dict[str, Any]]:
    return [row for row in run.summary()["stages"] if "radius" not in row["name"]]


def plan(threat: str, **options: Any) -> list[Stage]:
    given: dict[str, Any] = {"suite": "certify", "attacks": None, "certifiers": None, "curve": False}
    found = load_threat(threat)
    return make_plan(found, [found.eps], **(given | options))


# ---- the plan


def test_the_attack_comes_first_then_ever_dearer_certifiers_to_their_end() -> None:
    stages = plan("linf:0.1")
    assert [s.method.name for s in stages if s.mode == "settle"] == CASCADE
    assert [s.method.name for s in plan("l1:1") if s.mode == "settle"] == ["apgd-l1", "crown-ibp", "crown", "alpha-crown"]
    assert not any(s.on_trial for s in stages)
    assert all(s.optional for s in stages if s.mode == "settle")
    costs = [s.method.cost for s in stages if isinstance(s.method, Certifier)]
    assert costs == sorted(costs)


def test_radii_are_searched_behind_the_attack_that_gives_the_witnesses() -> None:
    radius = [s.method.name for s in plan("linf:0.1", curve=True, certify_radius=True) if s.mode == "radius"]
    assert radius == ["pgd", "ibp", "crown-ibp", "crown", "alpha-crown"]


def test_a_certifier_that_samples_does_not_draw_twice() -> None:
    for options in ({"curve": True}, {"certify_radius": True}):
        stages = plan("l2:0.1", attacks=["none"], certifiers=["smoothing"], **options)
        assert [s.mode for s in stages if isinstance(s.method, Certifier)] == ["radius"]


# ---- the run


def test_every_stage_is_given_what_is_open_and_settles_it_for_good(hard: rk.Evaluation) -> None:
    rows = settling(hard)
    assert [row["name"] for row in rows] == CASCADE
    left = int(hard.evidence.correct.sum())
    for row in rows:
        assert row["received"] == left
        left -= row["settled"]
    assert min(row["settled"] for row in rows if row["name"] != "ibp") > 0
    assert left == len(hard.evidence.open_at(Fraction("0.04")))
    assert [row["guarantee"] for row in rows[1:]] == ["real-arithmetic"] * 4
    assert [row["proven"] for row in rows[1:]] == [row["settled"] for row in rows[1:]]
    assert not hard.contradicted


def test_it_proves_what_its_tightest_certifier_proves_of_the_unbroken(hard: rk.Evaluation) -> None:
    model, data = rk.load_model(STANDARD), rk.load_data("digits:n=48")
    alone = AlphaCrown()(model, *data, threat="linf:0.04").radius.numpy() > 0
    budget = float_below(Fraction("0.04"))
    mine = hard.lower >= budget
    assert (alone <= mine).all()
    assert not (mine & (hard.upper <= budget)).any()


def test_no_certifier_sees_a_broken_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    bind = AlphaCrown.bind

    def watched(self: Any, *words: Any) -> Any:
        bound = bind(self, *words)

        def counted(x: torch.Tensor, y: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
            seen.append(len({row.numpy().tobytes() for row, e in zip(x, eps) if e > 0}))
            return bound(x, y, eps)

        return counted

    monkeypatch.setattr(AlphaCrown, "bind", watched)
    run = certify(STANDARD, out=tmp_path / "run", **(HARD | {"threat": "linf:0.3"}))
    assert run.summary()["robust_accuracy"] == 0.0
    assert sum(seen) == 0


@pytest.mark.parametrize("size", [1, 7, 64])
def test_batch_size_does_not_matter(hard: rk.Evaluation, tmp_path: Path, size: int) -> None:
    again = certify(STANDARD, out=tmp_path / "run", batch_size=size, **HARD)
    assert np.array_equal(again.lower, hard.lower)
    assert np.array_equal(again.upper, hard.upper)


def test_an_interrupted_cascade_goes_on(hard: rk.Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Limited(Clock):
        left = 0

        def tick(self, finished: int = 1) -> None:
            Limited.left -= 1
            if Limited.left < 0:
                raise OutOfTime("the time limit was reached")

    statuses = []
    for ticks in (30, 12, 6, 3, 1000):
        Limited.left = ticks
        with monkeypatch.context() as patch:
            patch.setattr(engine, "Clock", Limited)
            run = certify(STANDARD, out=tmp_path / "cut", **HARD)
        statuses.append(run.status)
        assert (run.lower <= hard.lower).all()
    assert statuses[0] == "incomplete"
    assert statuses[-1] == "complete"
    assert np.array_equal(run.lower, hard.lower)
    assert np.array_equal(run.upper, hard.upper)


def test_a_certifier_that_does_not_fit_is_left_out_and_named(
    digits_models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(self: Any, *words: Any) -> None:
        raise BadInput("no lines are known for this operation")

    monkeypatch.setattr(Crown, "fits", refuses)
    run = certify(digits_models["certified"], out=tmp_path / "run", **HARD)
    assert [row["name"] for row in settling(run)] == ["pgd", "ibp", "crown-ibp", "alpha-crown"]
    (told,) = [d for d in run.summary()["diagnostics"] if d["check"].startswith("certifier crown")]
    assert (told["status"], told["message"]) == ("skipped", "no lines are known for this operation")
    for one in (IBP, AlphaCrown, make("certifier", "crown-ibp").__class__):
        monkeypatch.setattr(one, "fits", refuses)
    with pytest.raises(BadInput, match="no certifier works here: no lines"):
        certify(digits_models["certified"], out=tmp_path / "none", **HARD)


def test_cascade_is_a_name_too_and_instances_are_taken(digits_models: dict[str, str], tmp_path: Path) -> None:
    model = digits_models["certified"]
    named = certify(model, method="cascade", out=tmp_path / "a", **HARD)
    assert [row["name"] for row in settling(named)] == CASCADE
    given = certify(model, method=IBP(), out=tmp_path / "b", **HARD)
    assert [row["name"] for row in given.summary()["stages"]] == ["ibp"]
    for wrong, says in ((["cascade", "ibp"], "alone"), ([], "no method"), (["none"], "no method")):
        with pytest.raises(BadInput, match=says):
            certify(model, method=wrong, out=tmp_path / "c", **HARD)


def test_a_smoothed_model_goes_to_its_own_certifier(tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": "digits:n=6", "report": False, "progress": False}
    run = certify("smooth:(zoo:digits-standard),sigma=0.25", threat="l2:0.1", out=tmp_path / "run", **options)
    (row,) = run.summary()["stages"]
    assert (row["name"], row["guarantee"]) == ("smoothing", "statistical(0.001)")
    assert run.summary()["certified_accuracy"] == 0.0
    assert row["proven"] == round(6 * run.summary()["certified_statistical"]) > 0
    with pytest.raises(BadInput, match="threat linf"):
        certify("smooth:(zoo:digits-standard),sigma=0.25", threat="linf:0.1", out=tmp_path / "b", **options)


# ---- radii


def test_radii_lie_between_what_was_proven_and_the_witness_and_are_proofs(digits_models: dict[str, str], tmp_path: Path) -> None:
    options = HARD | {"data": "digits:n=20", "threat": "linf:0.09"}
    run = certify(digits_models["certified"], out=tmp_path / "run", curve=True, **options)
    settled = certify(digits_models["certified"], out=tmp_path / "settled", **options)
    summary, evidence = run.summary(), run.evidence
    correct = evidence.correct
    assert (run.lower >= settled.lower).all()
    assert (run.lower[correct] < run.upper[correct]).all()
    assert np.isfinite(run.upper).all()
    assert summary["certified_radius"]["deterministic"]["mean"] == pytest.approx(np.maximum(run.lower, 0).mean())
    lower, stage = evidence.lower_of("deterministic")
    methods = {s.number: s.method for s in run._stages}
    model, data = rk.load_model(digits_models["certified"]), rk.load_data("digits:n=20")
    threat, proven = load_threat("linf:0.09"), 0
    for number in np.unique(stage[stage >= 0]).tolist():
        at = np.flatnonzero(stage == number)
        method = methods[number]
        assert isinstance(method, Certifier)
        x, y = data.images(torch.from_numpy(at)), torch.from_numpy(evidence.label[at])
        again, _ = prove(method.bind(model, threat), x, y, torch.from_numpy(lower[at]), scale=model.logits(x).abs().amax(1))
        assert bool(again.all()), method.name
        proven += len(at)
    assert proven == int(correct.sum())
    known = [proofs[correct] for _, proofs in evidence.proofs.values()]
    assert np.array_equal(np.maximum.reduce(known), lower[correct])  # the largest radius is kept


def test_a_search_ends_where_the_bracket_is_short_enough() -> None:
    asked = []

    def bound(x: torch.Tensor, y: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        asked.append(1)
        return (0.3 - eps).to(x.dtype)

    x, y = torch.rand(5, 1, 2, 2), torch.zeros(5, dtype=torch.int64)
    low, high = torch.full((5,), 0.1, dtype=torch.float64), torch.full((5,), 0.35, dtype=torch.float64)
    close, _ = largest_radius(bound, x, y, low, high, close=1 / 16)
    few = len(asked)
    exact, _ = largest_radius(bound, x, y, low, high)
    assert few < len(asked) - few
    assert bool((close <= exact).all()) and bool((exact < 0.3).all())
    assert bool((close >= 0.3 * (1 - 1 / 8)).all())
