"""One perturbation for all: the same for every sample, within the budget, better than chance, exact where it can be."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit import load_data, load_model, streams
from robustkit.attacks import Universal
from robustkit.attacks.universal import within_norm
from robustkit.data import Data
from robustkit.errors import BadInput
from robustkit.threats import load_threat

FAMILIES = ["linf:0.15", "l2:1.2"]


@pytest.fixture(scope="module")
def digits() -> tuple[Data, Data]:
    return load_data("digits:n=128"), load_data("digits:n=400,split=train")


@pytest.mark.parametrize("family", FAMILIES)
def test_one_perturbation_that_beats_random_ones(family: str, digits: tuple[Data, Data]) -> None:
    model, threat = load_model("zoo:digits-standard"), load_threat(family)
    x, y = digits[0]
    found = Universal(epochs=10)(model, x, y, threat=threat, stop="never", pool=digits[1])
    correct = found.size > 0
    p = found.parameters[correct]
    assert torch.equal(p, p[:1].expand_as(p)), "the same for every sample, none of which it was fitted on"
    assert bool(threat.contains(x[correct], p).all())
    assert set(found.queries[correct].tolist()) == {1}
    fooled = float((model.logits(threat.apply(x, p[:1])).argmax(1) != y)[correct].float().mean())
    assert fooled == pytest.approx(float(found.success[correct].float().mean()))
    keys = streams.row_keys(0, "random", torch.arange(20))
    eps = torch.full((20,), float(threat.eps), dtype=torch.float64)
    drawn = streams.normal(keys, tuple(x.shape[1:])) * 10
    noise = within_norm(drawn.sign() if threat.name == "linf" else drawn, eps, threat.name)
    chance = max(float((model.logits(threat.apply(x, n[None])).argmax(1) != y)[correct].float().mean()) for n in noise)
    assert fooled > 2 * chance > 0, "better than the best of twenty random ones of the same size"


def test_on_a_linear_model_of_one_class_it_is_the_best_point() -> None:
    """All images of one label: the best perturbation is the same for all, and known."""
    layer = nn.Linear(36, 2)
    layer.weight.data = streams.normal(streams.row_keys(0, "weight", torch.arange(1)), (2, 36))[0]
    x = 0.5 + 0.1 * (streams.uniform(streams.row_keys(0, "images", torch.arange(40)), (1, 6, 6)) - 0.5)
    layer.bias.data = -layer.weight @ x.mean(0).flatten() + torch.tensor([2.0, 0.0])
    model, y = nn.Sequential(nn.Flatten(), layer.requires_grad_(False)), torch.zeros(40, dtype=torch.int64)
    direction = layer.weight[1] - layer.weight[0]
    for family, best in (("linf:0.02", direction.sign() * 0.02), ("l2:0.1", direction / direction.norm() * 0.1)):
        found = Universal()(model, x, y, threat=family, stop="never")
        assert torch.allclose(found.parameters[0].flatten(), best, atol=2e-5), family


def test_no_single_image_pulls_at_it_alone() -> None:
    """One image of a huge loss, and many that a clipped sum listens to."""

    class Pull(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            odd = x[:, 0, 0, 1] > 0.9
            gap = torch.where(odd, 50 - 5000 * (x[:, 0, 0, 0] - 0.5), 0.3 + 10 * (x[:, 0, 0, 0] - 0.5))
            return torch.stack([gap, torch.zeros_like(gap)], 1)

    x = torch.full((65, 1, 1, 2), 0.5)
    x[0, 0, 0, 1] = 1.0
    y = torch.zeros(65, dtype=torch.int64)
    share = {clip: float(Universal(batch=65, clip=clip)(Pull(), x, y, threat="linf:0.05").success.float().mean()) for clip in (2.0, 1e6)}
    assert share[2.0] == pytest.approx(64 / 65)
    assert share[2.0] >= share[1e6]
    pulled = Universal(epochs=1, batch=65, step_size=Fraction(1), clip=1e6)(Pull(), x, y, threat="linf:0.05", stop="never")
    held = Universal(epochs=1, batch=65, step_size=Fraction(1), clip=2.0)(Pull(), x, y, threat="linf:0.05", stop="never")
    assert float(held.parameters[0, 0, 0, 0]) < 0
    assert float(pulled.parameters[0, 0, 0, 0]) <= 0 or bool(pulled.success[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_sample_gets_depends_on_nothing_but_itself(family: str, digits: tuple[Data, Data]) -> None:
    model = load_model("zoo:digits-standard")
    x, y = digits[0]
    options: dict[str, Any] = {"threat": family, "pool": digits[1]}
    whole = Universal(epochs=2)(model, x, y, **options)
    few = Universal(epochs=2)(model, x[5:9], y[5:9], index=torch.arange(5, 9), batch_size=1, **options)
    assert torch.equal(whole.success[5:9], few.success)
    assert torch.equal(whole.adversarial[5:9], few.adversarial)


def test_the_fit_is_counted_by_the_classifier(digits: tuple[Data, Data]) -> None:
    model = load_model("zoo:digits-standard")
    before = model.backwards
    Universal(epochs=3)(model, *digits[0], threat="linf:0.1", pool=digits[1])
    right = int((model.logits(digits[1].x).argmax(1) == digits[1].y).sum())
    assert model.backwards - before == 3 * 3 * right, "epochs x starts x the images that are right without it"


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"batch": 0}, {"starts": 0}, {"clip": 0.0}, {"step_size": Fraction(0)}])
def test_bad_values(bad: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="universal"):
        Universal(**bad)
