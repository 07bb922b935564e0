"""Honesty checks: each planted culprit is named, sound models are left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit import streams
from robustkit.checks.diagnostics import flagged
from robustkit.checks.masked_gradients import Comparisons
from robustkit.data import load_data
from robustkit.engine import certify, evaluate
from robustkit.errors import BadInput
from robustkit.models import load_model, zoo_names

DATA = "digits:n=220"
Status = Callable[..., dict[str, str]]


@pytest.fixture
def statuses(tmp_path: Path) -> Status:
    """Evaluate a model in a folder of its own; check -> status. Attacks are run side by side with compare=True only."""

    def run(model: Any, compare: bool = False, **options: Any) -> dict[str, str]:
        given: dict[str, Any] = {"data": DATA, "threat": "linf:0.1", "attacks": ["pgd:steps=20"], "report": False, "progress": False}
        with pytest.MonkeyPatch.context() as patch:
            if not compare:
                patch.setattr(Comparisons, "_against", lambda *_: ("pass", "left out", ""))
            found = evaluate(model, out=tmp_path / f"run{len(list(tmp_path.iterdir()))}", **(given | options)).summary()
        return {d["check"]: d["status"] for d in found["diagnostics"]}

    return run


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A sound network that its owner keeps for other tests: take a copy of its parts."""
    module = load_model("zoo:digits-standard").module
    assert isinstance(module, nn.Module)
    return module


class Wrapped(nn.Module):
    """A network with something done to its input and output."""

    def __init__(
        self, network: nn.Module, before: Callable[[Tensor], Tensor] = lambda x: x, after: Callable[[Tensor], Tensor] = lambda z: z
    ) -> None:
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.network(self.before(x)))


class Noisy(nn.Module):
    """Logits with noise that differs from call to call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.network(x)
        return logits + streams.normal(streams.row_keys(self.calls, "noise", torch.arange(len(x))), (logits.shape[1],))


def test_a_sound_model_raises_none(statuses: Status, network: nn.Module) -> None:
    assert set(statuses(network.eval(), data="digits").values()) <= {"pass", "skipped"}


def test_train_mode(statuses: Status, network: nn.Module) -> None:
    model = nn.Sequential(network, nn.Dropout(0.5)).train()
    assert statuses(model)["train mode"] == "warn"
    assert model.training


def test_probabilities(statuses: Status, network: nn.Module) -> None:
    assert statuses(Wrapped(network, after=lambda z: z.softmax(1)))["softmax"] == "warn"


def test_random_outputs(statuses: Status, network: nn.Module) -> None:
    assert statuses(Noisy(network))["repeatable"] == "error"


def test_normalised_twice(statuses: Status, network: nn.Module) -> None:
    found = statuses(Wrapped(network, before=lambda x: (x - 20) / 0.01))
    assert found["clean accuracy"] == "error"


def test_a_cut_graph(statuses: Status, network: nn.Module) -> None:
    found = statuses(Wrapped(network, before=lambda x: (x * 16).round() / 16), attacks=["square:queries=20"])
    assert found["zero gradients"] == "error"
    found = statuses(Wrapped(network, after=lambda z: z.detach()), attacks=["square:queries=20"])
    assert found["zero gradients"] == "error"


def test_masked_gradients_survive_an_unbounded_budget(statuses: Status, network: nn.Module) -> None:
    masked = Wrapped(network, before=lambda x: torch.where(x > 0.5, 1.0, 0.0) + 0 * x)
    assert statuses(masked)["unbounded"] == "error"


def test_too_few_steps(statuses: Status) -> None:
    found = statuses("zoo:digits-standard", data="digits", threat="linf:0.2", attacks=["square:queries=5"])
    assert found["converged"] == "error"


def test_few_samples(statuses: Status, network: nn.Module) -> None:
    assert statuses(network, data="digits:n=60")["enough samples"] == "warn"


def test_training_data(statuses: Status) -> None:
    assert statuses("zoo:digits-standard", data="digits:n=220,split=all")["training data"] == "error"
    assert statuses("zoo:digits-standard")["training data"] == "pass"


def test_saturated_logits(statuses: Status, network: nn.Module) -> None:
    found = statuses(Wrapped(network, after=lambda z: (z * 1e4).softmax(1)))
    assert found["zero gradients"] == "error"
    assert found["unbounded"] == "error"


def test_large_logits_hide_nothing(statuses: Status, network: nn.Module) -> None:
    found = statuses(Wrapped(network, after=lambda z: z * 1e4))
    assert found["zero gradients"] == "pass"
    assert found["unbounded"] == "pass"


def test_no_correct_sample(statuses: Status, network: nn.Module) -> None:
    found = statuses(Wrapped(network, after=lambda z: z * torch.nan))
    assert found["clean accuracy"] == "error"
    for check in ("softmax", "repeatable", "zero gradients", "converged", "unbounded"):
        assert found[check] == "skipped"


def test_a_model_that_leaves_torch_is_still_judged(statuses: Status, network: nn.Module) -> None:
    """Its gradients cannot even be asked for; score-based attacks work, and the run says what it could not check."""

    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.network(torch.from_numpy(x.numpy()))
            return logits

    found = statuses(Outside(), attacks=["square:queries=20"], certifiers=["none"])
    assert found["zero gradients"] == "error"
    assert found["unbounded"] == "skipped"
    assert found["clean accuracy"] == "pass"


def test_no_attack_no_comparison(statuses: Status) -> None:
    found = statuses("zoo:digits-ibp", attacks=["none"])
    assert found["converged"] == found["unbounded"] == "skipped"
    assert "error" not in found.values()


@pytest.mark.parametrize("ranges", ["0-x", "", "5", "-", "0-3,,7", "9" * 40])
def test_what_a_checkpoint_says_of_its_training_is_no_trusted_text(statuses: Status, ranges: str) -> None:
    data = load_data(DATA)
    model = load_model("zoo:digits-ibp")
    model.metadata = {"trained_indices": ranges, "data_origin": data.origin, "data_sha256": data.sha256}
    assert statuses(model, attacks=["none"])["training data"] in ("skipped", "pass")


def test_training_data_is_recognised_by_the_source_s_hash(statuses: Status) -> None:
    data = load_data(DATA)
    model = load_model("zoo:digits-ibp")
    seen = f"{int(data.index.min())}-{int(data.index.max())}"
    for source, expected in ((data.sha256, "error"), ("0" * 64, "pass")):
        model.metadata = {"trained_indices": seen, "data_origin": data.origin, "data_sha256": source}
        assert statuses(model, attacks=["none"])["training data"] == expected


def test_every_finding_is_worded_and_errors_have_a_cure(tmp_path: Path, network: nn.Module) -> None:
    broken = Wrapped(network, before=lambda x: x.detach())
    options: dict[str, Any] = {"attacks": ["fgsm"], "out": tmp_path / "run", "report": False}
    findings = evaluate(broken.train(), "digits:n=60", "linf:0.1", **options).summary()["diagnostics"]
    assert len(findings) >= 9
    assert len({finding["check"] for finding in findings}) == len(findings)
    for finding in findings:
        assert finding["status"] in ("pass", "warn", "error", "skipped")
        assert finding["message"]
        assert bool(finding["cure"]) == (finding["status"] in ("warn", "error"))
    assert "warn" in {finding["status"] for finding in findings}
    assert "error" in {finding["status"] for finding in findings}


@pytest.mark.parametrize("name", [name for name in zoo_names() if name.startswith("digits")])
def test_the_digits_zoo_raises_none(name: str, statuses: Status) -> None:
    assert set(statuses(f"zoo:{name}", data="digits", attacks=["pgd:steps=40"], compare=True).values()) == {"pass"}


CONTROLS = ["mnist-clp", "mnist-lsq"]
"""Bundled because they are broken."""

SLOW = ["mnist-abs"]
"""Seventy milliseconds an image."""


@pytest.mark.parametrize("name", [name for name in zoo_names() if name.startswith("mnist") and name not in CONTROLS + SLOW])
def test_the_mnist_zoo_raises_none(name: str, statuses: Status, shared_data: Path) -> None:
    threat = "linf:0.3" if name == "mnist-pgd" else "linf:0.1"
    options = {"data": "mnist:n=200", "attacks": ["apgd:loss=ce,restarts=1,steps=50"], "data_root": shared_data}
    found = statuses(f"zoo:{name}", compare=True, threat=threat, **options)
    assert set(found.values()) == {"pass"}


@pytest.mark.parametrize("name", CONTROLS)
def test_known_broken_controls_are_flagged(name: str, statuses: Status, shared_data: Path) -> None:
    options = {"data": "mnist:n=200", "threat": "linf:0.3", "attacks": ["pgd:steps=40"], "data_root": shared_data}
    found = statuses(f"zoo:{name}", compare=True, **options)
    assert found["choice of loss"] == found["black box"] == "error"


@pytest.mark.parametrize(
    ("gains", "losses", "expected"),
    [(0, 0, False), (3, 0, False), (6, 0, False), (7, 0, True), (12, 6, False), (20, 6, True), (64, 0, True)],
)
def test_flagged_needs_a_net_difference_and_a_sign_test(gains: int, losses: int, expected: bool) -> None:
    assert flagged(gains, losses, 64) is expected


def test_of_a_run_of_certifiers_the_attack_is_not_examined(digits_models: dict[str, str], tmp_path: Path) -> None:
    found = certify(digits_models["certified"], "digits:n=20", "linf:0.06", out=tmp_path / "run", report=False).summary()["diagnostics"]
    checks = {entry["check"]: entry for entry in found}
    assert "converged" not in checks
    assert checks["attacks"]["status"] == "skipped"
    assert "no test of robustness" in checks["attacks"]["message"]


def test_checks_switched_off_are_a_warning_and_made_up_for_by_the_same_run(digits_models: dict[str, str], tmp_path: Path) -> None:
    options: dict[str, Any] = {"attacks": ["pgd:steps=2"], "out": tmp_path / "run", "report": False, "progress": False}
    found = []
    for checks in ("off", "auto"):
        run = evaluate(digits_models["standard"], "digits:n=20", "linf:0.06", checks=checks, **options)
        found.append({entry["check"]: entry["status"] for entry in run.summary()["diagnostics"]})
    assert found[0]["checks"] == "warn"
    assert "converged" not in found[0] and "zero gradients" not in found[0]
    assert "clean accuracy" in found[0]
    assert "checks" not in found[1] and "converged" in found[1]
    with pytest.raises(BadInput, match="checks"):
        evaluate(digits_models["standard"], "digits:n=20", checks="of")
