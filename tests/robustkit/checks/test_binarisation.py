"""The test of attacks on tasks with a known adversarial example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkit.checks.binarisation import discriminant, features_of
from robustkit.checks.diagnostics import Examination
from robustkit.classifier import Classifier
from robustkit.cli import main
from robustkit.engine import evaluate
from robustkit.models import build, load_model


@pytest.fixture
def test_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(status, message) of the test of an attack on a model, without the other checks."""
    monkeypatch.setattr(Examination, "run", lambda self: [])

    def run(model: Any, attack: str | list[str], **options: Any) -> tuple[str, str]:
        given: dict[str, Any] = {"data": "digits:n=18", "threat": "linf:0.1", "attacks": attack, "certifiers": ["none"]} | options
        found = evaluate(
            model, out=tmp_path / f"run{len(list(tmp_path.iterdir()))}", report=False, progress=False, check_attack=True, **given
        )
        (one,) = found.summary()["diagnostics"]
        assert one["check"] == "binarisation"
        assert bool(one["cure"]) == (one["status"] in ("warn", "error"))
        return one["status"], one["message"]

    return run


def test_a_good_attack_passes_and_is_far_better_than_chance(test_of: Any) -> None:
    status, message = test_of("zoo:digits-pgd", "pgd:steps=40")
    assert status == "pass"
    assert "64 inputs of the model's last linear layer" in message


def test_a_weak_attack_on_masked_gradients_fails(test_of: Any) -> None:
    network = load_model("zoo:digits-standard").module
    assert isinstance(network, nn.Module)

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.network(x.detach() + 0 * x)
            return found

    assert test_of(Masked(), "fgsm")[0] == "error"
    assert test_of("zoo:digits-pgd", "pgd:steps=2,step_size=1/100,random_start=false")[0] == "error"


def test_attacks_that_need_more_classes_are_left_out(test_of: Any) -> None:
    status, message = test_of("zoo:digits-pgd", ["apgd:loss=dlr-targeted,steps=5", "pgd:steps=40"])
    assert status == "pass"
    assert "left out: apgd:loss=dlr-targeted" in message
    status, message = test_of("zoo:digits-pgd", "apgd:loss=dlr-targeted,steps=2")
    assert status == "skipped"
    assert "two classes" in message


def test_models_without_a_last_linear_layer_give_their_logits() -> None:
    network = load_model("zoo:digits-pgd").module
    assert isinstance(network, nn.Module)
    twice = nn.Sequential(network, nn.Softplus())
    body, words = features_of(Classifier(twice, classes=10), torch.rand(1, 1, 8, 8))
    assert "logits" in words
    assert isinstance(body, nn.Module)
    assert body(torch.rand(1, 1, 8, 8)).shape == (1, 10)


def test_the_features_are_what_the_last_layer_sees() -> None:
    network = build("conv(1,4,3,s2)-relu-flatten-linear(36,20)-relu-linear(20,10)").eval()
    classifier = Classifier(network, mean=[0.2], std=[0.5])
    x = torch.rand(5, 1, 8, 8)
    body, words = features_of(classifier, x[:1])
    assert "20 inputs" in words
    features = body(classifier.normalise(x))
    assert features.shape == (5, 20)
    assert torch.equal(network[-1](features), classifier(x))
    assert isinstance(network[-1], nn.Linear), "the user's own model is not touched"


@pytest.mark.parametrize("size", [5, 50])
def test_the_discriminant_is_the_regularised_solution_and_separates(size: int) -> None:
    """Against numpy's own solution of the same normal equations, with fewer and with more features than points."""
    draw = np.random.default_rng(0)
    inner, outer = draw.normal(size=(20, size)), 6 + draw.normal(size=size)
    readout = discriminant(torch.from_numpy(inner), torch.from_numpy(outer), 3.0)
    assert readout is not None
    spread = inner - inner.mean(0)
    system = spread.T @ spread + len(inner) * (spread**2).mean() * np.eye(size)
    expected = np.linalg.solve(system, outer - inner.mean(0))
    weight = readout.weight.numpy()  # type: ignore[operator]
    np.testing.assert_allclose(weight / np.linalg.norm(weight), expected / np.linalg.norm(expected), atol=1e-9)
    with torch.no_grad():
        gap = (lambda z: z[:, 1] - z[:, 0])(readout(torch.from_numpy(np.vstack([inner, outer]))))
    assert float(gap[0]) == pytest.approx(-3.0)
    assert float(gap[:-1].max()) == pytest.approx(-float(gap[-1])), "the threshold lies halfway"


def test_a_point_among_the_others_cannot_be_told() -> None:
    inner = torch.randn(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert discriminant(inner, inner.mean(0), 1.0) is None


def test_the_flag_adds_to_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["evaluate", "zoo:digits-pgd", "--data", "digits:n=30", "--attack", "pgd:steps=10", "--certifier", "none", "--json", "--out"]
    summaries = []
    monkeypatch.setattr(Examination, "run", lambda self: [])
    for extra in ([], ["--check-attack"], []):
        assert main([*words, str(tmp_path / "run"), *extra]) == 0
        summaries.append(capsys.readouterr().out)
    assert ["binarisation" in text for text in summaries] == [False, True, True]


def test_random_models_are_left_alone(test_of: Any) -> None:
    status, message = test_of("smooth:(zoo:digits-standard),sigma=0.1,votes=50", "pgd:steps=2,eot=1", data="digits:n=8")
    assert status == "skipped"
    assert "random" in message
