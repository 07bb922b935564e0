"""Models whose own arithmetic differs from real arithmetic: what a search keeps, and what proofs are worth then."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustkit as rk
from robustkit.attacks import FAB, PGD, FoolboxAttack, Square
from robustkit.classifier import Classifier
from robustkit.data import load_data
from robustkit.models import load_model


def absorbing(network: nn.Module, offset: float) -> nn.Module:
    """Adds a number and takes it away again: float32 forgets the logits' last digits on the way, real arithmetic does not."""
    layers = [nn.Linear(10, 10), nn.Linear(10, 10)]
    with torch.no_grad():
        for layer, bias in zip(layers, (offset, -offset)):
            layer.weight.copy_(torch.eye(10))
            layer.bias.fill_(bias)
    return nn.Sequential(network, *layers).eval()


def test_witnesses_by_rounding_count_and_take_their_proofs(tmp_path: Any) -> None:
    network = load_model("zoo:digits-ibp").module
    assert isinstance(network, nn.Module)
    model = absorbing(network, 2.0**27)  # logits become multiples of 16: many ties
    run = rk.evaluate(model, load_data("digits:n=60"), "linf:0.05", out=tmp_path / "run", report=False, checks="off")
    summary = run.summary()
    plain = rk.evaluate(network, load_data("digits:n=60"), "linf:0.05", out=tmp_path / "plain", report=False, checks="off")
    assert run.contradicted == ()
    assert run.evidence.by_rounding.any()
    assert summary["robust_accuracy"] < plain.summary()["robust_accuracy"]
    assert summary["certified_accuracy"] <= summary["robust_accuracy"]
    assert (run.lower < run.upper).all()
    (found,) = [finding for finding in summary["diagnostics"] if finding["check"] == "rounding"]
    assert found["message"].startswith(f"{run.evidence.lost_by_rounding()} samples")
    again = rk.evaluate(model, load_data("digits:n=60"), "linf:0.05", out=tmp_path / "run", report=False, checks="off")
    assert (again.upper == run.upper).all()
    assert (again.lower == run.lower).all()


class Shy(nn.Module):
    """Calls an image wrong only when it is asked with a gradient: what such a search finds, the Judge refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -1.0]))

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1).mean(1, keepdim=True) * self.weight
        near = (logits[:, :1] < 0.49) & torch.is_grad_enabled()
        return torch.where(near, logits - 2 * torch.tensor([1.0, 0.0]), logits - torch.tensor([0.46, -0.46]))


def test_a_refused_candidate_does_not_end_the_attempt() -> None:
    x = torch.full((3, 1, 2, 2), 0.5)
    found = PGD(steps=10, random_start=False)(Classifier(Shy()), x, torch.zeros(3, dtype=torch.int64), threat="linf:0.1")
    assert found.success.all(), "the first candidate lies at 0.49, true errors begin at 0.46"
    assert (found.size >= 0.0399).all()


@pytest.mark.parametrize("attack", [PGD(steps=20), FAB(steps=20), Square(queries=200), FoolboxAttack("ddn", steps=20)])
def test_scale_offset_and_mask_change_little(attack: Any) -> None:
    model, (x, y) = load_model("zoo:digits-standard"), load_data("digits:n=48")
    network = model.module
    assert isinstance(network, nn.Module)

    class Hidden(nn.Module):
        def __init__(self, hide: Any) -> None:
            super().__init__()
            self.network, self.hide = network, hide

        def forward(self, x: Tensor) -> Tensor:
            hidden: Tensor = self.hide(self.network(model.normalise(x)))
            return hidden

    def left(hide: Any) -> int:
        found = attack(Classifier(Hidden(hide)), x, y, threat="l2:0.6")
        return int((~found.success & (found.size > 0)).sum())

    plain = left(lambda z: z)
    assert 4 < plain < 44
    assert left(lambda z: z * 1e-6) <= plain + 2
    assert left(lambda z: z * 1e6) <= plain + 2
    assert left(lambda z: z + 1e3) <= plain + 2
    assert left(lambda z: z + 1e5) <= plain + 2, "here 0.008 is a unit in the last place: ties are met on the way"
    assert left(lambda z: torch.cat([z, torch.full((len(z), 3), -1e9)], 1)) <= plain + 2
