"""The attack where nobody looks: its deviations by definition, its optimum on linear models, its visibility."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkit import load_data, load_model, streams
from robustkit.attacks import PGD, LocalVariance
from robustkit.attacks.local_variance import local_deviation, visible_distance
from robustkit.classifier import Classifier
from robustkit.errors import BadInput
from robustkit.threats import load_threat

COUNT, SIZE = 24, 36


def drawn(purpose: str, *shape: int) -> Tensor:
    return streams.normal(streams.row_keys(0, purpose, torch.arange(1)), shape)[0]


@pytest.fixture(scope="module")
def linear() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A linear model of two classes, images, their labels, and the (N,D) direction away from them."""
    layer = nn.Linear(SIZE, 2)
    layer.weight.data, layer.bias.data = drawn("linear", 2, SIZE), torch.zeros(2)
    model = nn.Sequential(nn.Flatten(), layer)
    x = 0.5 + 0.2 * (streams.uniform(streams.row_keys(0, "images", torch.arange(COUNT)), (1, 6, 6)) - 0.5)
    y = Classifier(model).logits(x).argmax(1)
    return model, x, y, (layer.weight[1 - y] - layer.weight[y]).detach().double()


def test_the_deviation_is_that_of_the_values_around() -> None:
    x = streams.uniform(streams.row_keys(1, "deviation", torch.arange(3)), (2, 5, 7))
    found = local_deviation(x)
    for n, c, i, j in [(0, 0, 0, 0), (1, 1, 4, 6), (2, 0, 2, 3), (0, 1, 0, 5), (2, 1, 3, 0)]:
        around = x[n, c, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].double().numpy()
        assert float(found[n, c, i, j]) == pytest.approx(float(np.std(around)), abs=1e-6)
    assert float(local_deviation(torch.full((1, 1, 4, 4), 0.3)).abs().max()) == 0


@pytest.mark.parametrize("threat", ["linf:0.02", "linf:0.3", "l2:0.05", "l2:0.6"])
def test_weighted_steps_reach_the_best_point_of_the_ball(threat: str, linear: tuple[nn.Module, Tensor, Tensor, Tensor]) -> None:
    model, x, y, direction = linear
    family = load_threat(threat)
    found = LocalVariance(mode="pgd", steps=40)(model, x, y, threat=family, stop="never")
    dual = direction.norm(p=1 if family.name == "linf" else 2, dim=1)
    share = ((found.adversarial - x).flatten(1).double() * direction).sum(1) / (dual * float(family.eps))
    assert float(share.max()) <= 1 + 1e-6
    assert float(share.min()) >= (0.9999 if family.name == "linf" else 0.997)


def test_greedy_fills_the_ball_too(linear: tuple[nn.Module, Tensor, Tensor, Tensor]) -> None:
    model, x, y, direction = linear
    found = LocalVariance(steps=100)(model, x, y, threat="linf:0.1", stop="never")
    share = ((found.adversarial - x).flatten(1).double() * direction).sum(1) / (direction.abs().sum(1) * 0.1)
    assert float(share.min()) >= 0.9999


def test_the_first_greedy_step_moves_what_the_paper_says(linear: tuple[nn.Module, Tensor, Tensor, Tensor]) -> None:
    """The values of highest |gradient| x deviation, by the step's length, and no other."""
    model, x, y, direction = linear
    found = LocalVariance(steps=1, pixels=Fraction(1, 6), step_size=Fraction(1, 2))(model, x, y, threat="linf:0.08", stop="never")
    change = found.adversarial - x
    priority = direction.abs() * local_deviation(x).clamp(min=1 / 255).flatten(1)
    expected = torch.zeros_like(priority).scatter(1, priority.topk(6, dim=1).indices, 0.04) * direction.sign()
    assert torch.allclose(change.flatten(1).double(), expected, atol=1e-6)


def test_the_visible_distance_is_bounded_where_it_is_asked_for() -> None:
    model = load_model("zoo:digits-standard")
    x, y = load_data("digits:n=64")
    free = LocalVariance()(model, x, y, threat="linf:0.15")
    bound = LocalVariance(distance=Fraction(20))(model, x, y, threat="linf:0.15")
    spread = local_deviation(x).clamp(min=1 / 255)
    hit = bound.success
    assert 0 < int(hit.sum()) < int(free.success.sum())
    assert float(visible_distance(bound.adversarial - x, spread)[hit].max()) <= 20 + 1e-3
    assert float(visible_distance(free.adversarial - x, spread)[free.success].max()) > 20


@pytest.mark.parametrize("mode", ["greedy", "pgd"])
def test_its_hits_are_harder_to_see_than_those_of_pgd(mode: str) -> None:
    """On the samples that both break, at the same budget."""
    model = load_model("zoo:digits-standard")
    x, y = load_data("digits:n=128")
    spread = local_deviation(x).clamp(min=1 / 255)
    plain = PGD(steps=40, random_start=False, step_size=Fraction(1, 10))(model, x, y, threat="linf:0.15")
    mine = LocalVariance(steps=40 if mode == "pgd" else 100, mode=mode)(model, x, y, threat="linf:0.15")  # type: ignore[arg-type]
    both = plain.success & mine.success
    assert int(both.sum()) > 64
    seen = [visible_distance(r.adversarial - x, spread)[both].mean() for r in (mine, plain)]
    assert float(seen[0]) < (0.25 if mode == "greedy" else 0.7) * float(seen[1])


def test_a_penalty_makes_hits_less_visible() -> None:
    model = load_model("zoo:digits-standard")
    x, y = load_data("digits:n=64")
    spread = local_deviation(x).clamp(min=1 / 255)
    free, held = (LocalVariance(mode="pgd", steps=40, penalty=c)(model, x, y, threat="linf:0.2") for c in (0.0, 0.03))
    both = free.success & held.success
    assert int(both.sum()) > 20
    assert float(visible_distance(held.adversarial - x, spread)[both].mean()) < float(
        visible_distance(free.adversarial - x, spread)[both].mean()
    )


BAD: list[dict[str, Any]] = [
    {"steps": 0},
    {"mode": "other"},
    {"pixels": Fraction(2)},
    {"step_size": Fraction(0)},
    {"distance": Fraction(-1)},
    {"penalty": 0.5},
    {"penalty": -1.0, "mode": "pgd"},
    {"loss": "other"},
    {"floor": Fraction(0)},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_values(bad: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=f"local-variance: {next(iter(bad))}"):
        LocalVariance(**bad)
