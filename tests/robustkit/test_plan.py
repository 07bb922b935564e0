"""The plan: which stages there are, what each receives, and a certifier that goes on only while it pays."""

from __future__ import annotations

import importlib
import sys
import types
from dataclasses import dataclass, replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from robustkit import suites
from robustkit.attacks.fgsm import FGSM
from robustkit.attacks.pgd import PGD
from robustkit.certify.ibp import IBP
from robustkit.classifier import Classifier
from robustkit.errors import BadInput
from robustkit.methods import Bound, Certifier
from robustkit.plan import PROBE, TRIAL, Stage, check_guarantees, make_plan, pays, probe, saved, with_sound, without
from robustkit.threats import Linf, Threat
from robustkit.verdict.evidence import Evidence

BUDGETS = [Fraction(1, 10), Fraction(1, 20)]
ASKED = SimpleNamespace(rows=0)
"""No dictionary: a method's globals are part of its identity, the attributes of the standard library's objects are not."""


@dataclass(frozen=True)
class Costly(Certifier):
    """Proves the samples whose brightness has an even hundredth, when `works`; notes how many rows it is asked for."""

    works: bool = True
    most: int = 10**6

    name = "costly"
    cost = 50.0

    def bind(self, classifier: Classifier, threat: Threat) -> Bound:
        def bound(x: torch.Tensor, y: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
            if len(x) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            if float(eps.max()) > 0:
                ASKED.rows += len(x)
            even = (x.flatten(1).mean(1) * 100).round().long() % 2 == 0
            return torch.where(even & torch.tensor(self.works), 1.0, -1.0).to(x.dtype)

        return bound


@pytest.fixture(autouse=True)
def costly(monkeypatch: pytest.MonkeyPatch) -> None:
    """`costly`, as a third party would register it."""
    module = types.ModuleType("planted_costly")
    module.Costly = Costly  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "planted_costly", module)
    monkeypatch.setitem(importlib.import_module("robustkit.certify").TABLE, "costly", "planted_costly:Costly")
    ASKED.rows = 0


def plan(**options: Any) -> list[Stage]:
    given: dict[str, Any] = {"suite": "quick", "attacks": None, "certifiers": None, "curve": False}
    return make_plan(Linf("0.1"), BUDGETS, **(given | options))


def evidence(count: int = 100) -> Evidence:
    index, zeros = np.arange(count) * 3, np.zeros(count)
    return Evidence(index, index % 10, index % 10, zeros, zeros.copy(), np.arange(count) % 4 != 0)


# ---- stages


def test_certifiers_then_attacks_each_at_every_budget_smallest_first() -> None:
    stages = plan()
    told = [(s.method.name, s.mode, str(s.eps)) for s in stages]
    settle = [(name, "settle", eps) for name in ("ibp", "fgsm", "pgd") for eps in ("1/20", "1/10")]
    assert told == [*settle, ("pgd", "probe", "1/10")]
    assert [s.number for s in stages] == list(range(1, 8))
    assert len({s.id for s in stages}) == 7
    assert [s.on_trial for s in stages] == [True, True, *[False] * 5]


def test_a_curve_adds_radius_stages_over_all_correct_samples() -> None:
    told = [(s.method.name, s.mode) for s in plan(curve=True)]
    assert told[-3:] == [("ibp", "radius"), ("pgd", "radius"), ("pgd", "probe")]
    held = evidence()
    radius = next(s for s in plan(curve=True) if s.mode == "radius")
    assert np.array_equal(radius.receives(held), np.flatnonzero(held.correct))


def test_what_is_given_replaces_what_the_suite_has() -> None:
    def names(**options: Any) -> list[str]:
        return [s.method.name for s in plan(**options) if s.mode == "settle" and s.eps == Fraction(1, 10)]

    assert names() == ["ibp", "fgsm", "pgd"]
    assert names(attacks=["bim"]) == ["ibp", "bim"]
    assert names(certifiers=["none"]) == ["fgsm", "pgd"]
    assert names(attacks=["none"], certifiers=["none"]) == []
    assert names(attacks="apgd", certifiers=[IBP()]) == ["ibp", "apgd"]
    assert names(attacks=[FGSM(), "pgd:steps=3"]) == ["ibp", "fgsm", "pgd"]
    assert not plan(certifiers=["ibp"])[0].on_trial  # what was asked for by name runs to its end
    assert [s.mode for s in plan(certifiers=["none"])].count("probe") == 0


def test_what_does_not_fit_the_threat_or_the_kind_is_refused() -> None:
    for options, says in (
        ({"attacks": [IBP()]}, "no attack"),
        ({"certifiers": [PGD()]}, "no certifier"),
        ({"attacks": [None]}, "no attack"),
        ({"suite": "standrad"}, "did you mean 'standard'"),
    ):
        with pytest.raises(BadInput, match=says):
            plan(**options)


def test_stages_are_described_for_the_digest() -> None:
    told = [tuple(sorted(s.describe().items())) for s in plan(curve=True)]
    assert len(set(told)) == len(told)
    changed = replace(plan()[0], eps=Fraction(1, 7))
    assert changed.describe() != plan()[0].describe()
    assert "/" not in changed.id


def test_refused_stages_leave_no_gap() -> None:
    kept = without(plan(), lambda s: s.method.name == "fgsm")
    assert [s.number for s in kept] == list(range(1, 6))
    assert "fgsm" not in {s.method.name for s in kept}


def test_a_settling_stage_receives_what_is_open() -> None:
    held, (first, *_) = evidence(), plan()
    assert np.array_equal(first.receives(held), np.flatnonzero(held.correct))
    held.broke(np.array([1, 2]), np.array([0.04, 0.08]), 1, np.array([3, 3]))
    held.proved(np.array([3, 5]), np.array([0.05, 0.1]), "real-arithmetic", 2)
    small, large = first, replace(first, eps=Fraction(1, 10))
    assert set(range(8)) & set(small.receives(held).tolist()) == {2, 6, 7}  # 1 is broken, 3 and 5 are proven, 0 and 4 are clean errors
    assert set(range(8)) & set(large.receives(held).tolist()) == {3, 6, 7}


# ---- the probe


def test_the_probe_is_drawn_by_seed_from_the_correct_samples() -> None:
    held = evidence(400)
    drawn = probe(held, 0)
    assert len(drawn) == PROBE
    assert held.correct[drawn].all()
    assert np.array_equal(drawn, np.unique(drawn))
    assert np.array_equal(drawn, probe(held, 0))
    assert not np.array_equal(drawn, probe(held, 1))
    assert len(probe(evidence(8), 0)) == 6


def test_a_probe_looks_at_certified_samples_only() -> None:
    held = evidence()
    stage = Stage(9, PGD(), "probe", Fraction(1, 10), seed=0)
    assert len(stage.receives(held)) == 0
    held.proved(np.arange(1, 50), np.full(49, 0.1), "real-arithmetic", 1)
    received = stage.receives(held)
    assert 10 < len(received) <= 49
    assert held.correct[received].all()
    assert (held.lower[received] > 0).all()


# ---- a certifier on trial


def test_whether_a_certifier_pays() -> None:
    first, second = (Stage(i + 1, Costly(), "settle", BUDGETS[0], True) for i in (0, 2))
    stages = [first, Stage(2, PGD(steps=100), "settle", BUDGETS[0]), second, Stage(4, PGD(steps=50), "settle", BUDGETS[0])]
    assert [saved(stage, 10, stages) for stage in (first, second)] == [300, 100]  # what comes behind it at its budget
    assert saved(replace(first, eps=BUDGETS[1]), 10, stages) == 0
    assert [pays(settled, TRIAL, 50, 200) for settled in (0, 4, 5, 16)] == [False, False, True, True]
    assert not pays(16, TRIAL, 50, 0)
    assert [pays(settled, TRIAL, 2.3, 0) for settled in (0, 1)] == [False, True]


def test_a_suites_later_certifiers_come_behind_its_first_attack() -> None:
    names = [s.method.name for s in plan(suite="standard") if s.mode == "settle" and s.eps == Fraction(1, 10)]
    assert names == ["ibp", "apgd", "crown-ibp", "crown", "apgd", "fab", "square"]
    assert "crown" not in {s.method.name for s in plan(suite="standard", certifiers=["ibp"])}


def test_a_certifier_that_costs_more_than_it_could_save_is_not_tried(go: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    suite = suites.Suite(("costly",), ("pgd:steps=20",), "pgd:steps=5", "for this test")
    monkeypatch.setitem(suites.SUITES, "trial", {("linf",): suite})
    run = go(suite="trial", attacks=None, certifiers=None, threat="linf:0.001", out=tmp_path / "run")
    row = run.summary()["stages"][0]
    assert "not tried" in row["note"]
    assert (row["received"], row["forwards"], ASKED.rows) == (0, 0, 0)


@pytest.mark.parametrize("works", [True, False])
def test_a_costly_certifier_of_a_suite_is_tried_first(go: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, works: bool) -> None:
    spec = f"costly:works={str(works).lower()}"
    suite = suites.Suite((spec,), ("pgd:steps=100",), "pgd:steps=5", "for this test")
    monkeypatch.setitem(suites.SUITES, "trial", {("linf",): suite})
    options: dict[str, Any] = {"suite": "trial", "attacks": None, "certifiers": None, "threat": "linf:0.001", "out": tmp_path / "run"}
    run = go(**options)
    row = run.summary()["stages"][0]
    correct = int((run.upper > 0).sum())
    if works:
        assert row["received"] == correct
        assert row["settled"] == int((run.lower > 0).sum()) > 10
        assert row["note"] == ""
    else:
        assert (row["received"], row["settled"]) == (TRIAL, 0)
        assert "does not pay" in row["note"]
    assert row["complete"]
    assert row["forwards"] == 50 * row["received"]
    asked = ASKED.rows
    again = go(**options)
    assert ASKED.rows == asked  # the trial, too, is read back
    assert again.summary()["stages"][0] == row
    assert np.array_equal(run.lower, again.lower)


def test_a_certifier_that_runs_out_of_memory_gets_smaller_batches(go: Any) -> None:
    small, large = (go(certifiers=[Costly(most=most)], threat="linf:0.02", batch_size=64) for most in (20, 1000))
    assert np.array_equal(small.lower, large.lower)
    assert (small.lower > 0).sum() > 10


def test_certificates_of_different_kinds_never_share_a_number() -> None:
    mixed = plan(certifiers=["ibp", "sound:(crown)"])
    with pytest.raises(BadInput, match="never share a number"):
        check_guarantees(mixed)
    check_guarantees(with_sound(mixed))
