"""Attacks side by side: what masks gradients is flagged, each kind by its own sign."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkit import evaluate
from robustkit.attacks.noise import Noise, outermost
from robustkit.checks.masked_gradients import Comparisons
from robustkit.checks.probe import Probe, finding
from robustkit.classifier import Classifier
from robustkit.core.comparisons import float_below, margins
from robustkit.data import load_data
from robustkit.models import load_model
from robustkit.streams import row_keys
from robustkit.threats import Flow, Linf, Rotation, Threat, load_threat
from robustkit.verdict.evidence import Evidence
from robustkit.verdict.goals import Goal
from robustkit.verdict.judge import Judge

Make = Callable[..., Comparisons]


class Before(nn.Module):
    """A network behind a change of its input."""

    def __init__(self, network: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.network(self.change(x))
        return found


def turned(x: Tensor) -> Tensor:
    """The same image; its gradient points the wrong way."""
    return 2 * x.detach() - x


def turned_off_the_grid(x: Tensor) -> Tensor:
    """The same image; the gradient points the wrong way unless the image is a clean digit, whose values are sixteenths."""
    clean = ((x * 16).round() == x * 16).flatten(1).float().mean(1).view(-1, 1, 1, 1) > 0.9
    return torch.where(clean, x, turned(x))


def staircase(x: Tensor) -> Tensor:
    """Steps with steep ramps between flat treads, where the gradient is zero."""
    floor = (x * 8 + 0.5).floor().detach()
    return (floor + ((x * 8 + 0.5 - floor - 0.45) * 10).clamp(0, 1) - 0.5) / 8


@pytest.fixture(scope="module")
def network() -> nn.Module:
    module = load_model("zoo:digits-standard").module
    assert isinstance(module, nn.Module)
    return module


@pytest.fixture(scope="module")
def make() -> Make:
    data = load_data("digits:n=100")

    def run(model: nn.Module, threat: str | Threat = "linf:0.1") -> Comparisons:
        classifier = Classifier(model)
        classifier.check(data.x[:1])
        judge = Judge(classifier, load_threat(threat), Goal())
        logits = judge.logits(data.x)
        predicted, margin = logits.argmax(1), -margins(logits, data.y).double()
        correct = judge.correct(data.x, data.y, logits)
        evidence = Evidence(data.index.numpy(), data.y.numpy(), predicted.numpy(), margin.numpy(), margin.numpy(), correct.numpy())
        return Comparisons(Probe(judge, data, evidence, logits, torch.full_like(data.y, -1), 0, "auto", lambda _: None))

    return run


def statuses(compare: Comparisons) -> dict[str, str]:
    checks = [getattr(compare, name) for name in vars(Comparisons) if name[0] != "_" and callable(getattr(compare, name))]
    return {check.__name__: finding(check.__name__, check)["status"] for check in checks}


def test_a_sound_model_raises_none(make: Make, network: nn.Module) -> None:
    found = statuses(make(network))
    assert len(found) == 6
    assert set(found.values()) == {"pass"}


def test_turned_gradients(make: Make, network: nn.Module) -> None:
    found = statuses(make(Before(network, turned), "linf:0.25"))
    assert found["finite_differences"] == "warn"
    assert found["random_noise"] == found["black_box"] == "error"


def test_one_step_beats_many(make: Make, network: nn.Module) -> None:
    assert statuses(make(Before(network, turned_off_the_grid)))["single_step"] == "error"


def test_flat_treads(make: Make, network: nn.Module) -> None:
    found = statuses(make(Before(network, staircase), "linf:0.2"))
    assert found["smoothed_gradients"] == "error"


def test_large_logits_do_not_hide_from_cross_entropy(make: Make, network: nn.Module) -> None:
    class Loud(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = 1e4 * self.network(x)
            return found

    for threat in ("linf:0.1", "l1:1"):
        assert statuses(make(Loud(), threat))["choice_of_loss"] == "pass", "losses are asked on logits of the usual size"


def test_in_l1_the_check_of_the_loss_is_made_with_the_apgd_for_l1(make: Make, network: nn.Module) -> None:
    status, message, _ = make(network, "l1:1").choice_of_loss()
    assert status == "pass"
    assert message.startswith("apgd-l1 breaks ")


def test_what_the_run_has_found_itself_is_a_warning(make: Make, network: nn.Module) -> None:
    compare = make(Before(network, turned))
    evidence = compare.probe.evidence
    evidence.upper = np.where(evidence.correct, 0.05, 0.0)
    status, message, cure = compare.black_box()
    assert (status, "have found them all" in message, bool(cure)) == ("warn", True, True)


def test_certified_samples_are_not_attacked_and_attacks_are_shared(make: Make, network: nn.Module) -> None:
    compare = make(network)
    compare.probe.evidence.proved(np.arange(100), np.full(100, float_below(compare.probe.judge.threat.eps)), "real-arithmetic", 1)
    before = compare.probe.judge.classifier.forwards
    compare.black_box()
    assert compare.probe.judge.classifier.forwards == before
    compare = make(network)
    compare.single_step()
    before = compare.probe.judge.classifier.backwards
    compare.random_noise()
    assert compare.probe.judge.classifier.backwards == before, "plain PGD is run once for all comparisons"


def test_what_does_not_fit_is_skipped(make: Make, network: nn.Module) -> None:
    found = statuses(make(network, "l0:5"))
    assert found["choice_of_loss"] == "pass", "APGD does not know l0: the margin loss takes its place"
    assert found["black_box"] == found["smoothed_gradients"] == "skipped"


@pytest.mark.parametrize("threat", [Linf("0.1"), load_threat("l2:0.5"), load_threat("l1:2"), Rotation("1"), Flow("1")])
def test_the_outermost_points_lie_within_the_budget_and_noise_is_reproducible(threat: Threat) -> None:
    x, y = load_data("digits:n=32")
    eps = torch.full((32,), float_below(threat.eps), dtype=torch.float64)
    p = outermost(threat, x, eps, row_keys(0, "test", torch.arange(32)))
    assert bool(threat.contains(x, p).all())
    assert float(threat.size(x, p).median()) > 0.6 * float(threat.eps)
    one, two = (Noise(20)(load_model("zoo:digits-standard"), x, y, threat=threat, batch_size=size) for size in (16, 32))
    assert torch.equal(one.success, two.success)
    assert torch.equal(one.size, two.size)


def test_the_runs_own_black_box_attack_tells_without_another_run(network: nn.Module, tmp_path: Path) -> None:
    """Of turned gradients Square breaks what PGD does not: a warning, the run has found them; of a sound model it gains nothing."""
    told = []
    for number, model in enumerate((Before(network, turned), network)):
        options: dict[str, Any] = {"attacks": ["pgd:steps=5", "square:queries=300"], "certifiers": "none", "progress": False}
        run = evaluate(Classifier(model), load_data("digits:n=100"), "linf:0.25", out=tmp_path / str(number), report=False, **options)
        told.append({entry["check"]: entry for entry in run.summary()["diagnostics"]}["black box"])
    assert [entry["status"] for entry in told] == ["warn", "pass"]
    assert all(entry["message"].startswith("the run's square breaks ") for entry in told)
