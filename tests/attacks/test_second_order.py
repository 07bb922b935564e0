"""Noise-averaged gradients: exact on linear models, through jagged losses, away from points without gradient."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit import streams
from robustkit.attacks import BIM, PGD, SecondOrder
from robustkit.classifier import Classifier
from robustkit.errors import BadInput
from robustkit.threats import load_threat

COUNT, SIZE = 24, 36


def drawn(purpose: str, *shape: int) -> Tensor:
    return streams.normal(streams.row_keys(0, purpose, torch.arange(1)), shape)[0]


def images(spread: float) -> Tensor:
    return 0.5 + spread * (streams.uniform(streams.row_keys(0, "images", torch.arange(COUNT)), (1, 6, 6)) - 0.5)


class Bowl(nn.Module):
    """Two classes; the gap rises with the square of the image's part along `v`, and is flat at grey."""

    def __init__(self) -> None:
        super().__init__()
        self.v = drawn("bowl", SIZE)

    def forward(self, x: Tensor) -> Tensor:
        gap = ((x.flatten(1) - 0.5) @ self.v).square() - 0.05
        return torch.stack([-gap, gap], dim=1)


class Jagged(nn.Module):
    """Linear with fine ripples on top whose slope hides that of the line."""

    def __init__(self) -> None:
        super().__init__()
        self.w = drawn("jagged", SIZE)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        gap = (flat - 0.5) @ self.w + 0.02 * torch.sin(400 * flat).sum(1)
        return torch.stack([-gap, gap], dim=1)


class Counting(nn.Module):
    """Counts the rows that go forward, and backward to the input, all by itself."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("seen", torch.zeros(2, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.seen[0] += len(x)
        if x.requires_grad:
            x.register_hook(self._back)
        return self.inner(x)  # type: ignore[no-any-return]

    def _back(self, gradient: Tensor) -> None:
        self.seen[1] += len(gradient)


@pytest.mark.parametrize("threat", ["linf:0.02", "linf:0.3", "l2:0.05", "l2:0.6"])
def test_on_a_linear_model_the_best_point_of_the_ball(threat: str) -> None:
    layer = nn.Linear(SIZE, 2)
    layer.weight.data, layer.bias.data = drawn("linear", 2, SIZE), torch.zeros(2)
    model, x, family = nn.Sequential(nn.Flatten(), layer), images(0.2), load_threat(threat)
    y = Classifier(model).logits(x).argmax(1)
    found = SecondOrder(steps=40)(model, x, y, threat=family, stop="never")
    direction = (layer.weight[1 - y] - layer.weight[y]).detach().double()
    dual = direction.norm(p=1 if family.name == "linf" else 2, dim=1)
    gain = ((found.adversarial - x).flatten(1).double() * direction).sum(1)
    share = gain / (dual * float(family.eps))
    assert float(share.max()) <= 1 + 1e-6
    assert float(share.min()) >= (0.9999 if family.name == "linf" else 0.997)


def test_it_leaves_a_point_where_the_gradient_is_zero() -> None:
    x, y = torch.full((COUNT, 1, 6, 6), 0.5), torch.zeros(COUNT, dtype=torch.int64)
    plain = BIM(steps=20)(Bowl(), x, y, threat="l2:0.2")
    assert not bool(plain.success.any()), "there is no gradient to follow"
    found = SecondOrder(steps=20, random_start=False)(Bowl(), x, y, threat="l2:0.2")
    assert bool(found.success.all())
    along = ((found.adversarial - x).flatten(1) @ Bowl().v).abs() / ((found.adversarial - x).flatten(1).norm(dim=1) * Bowl().v.norm())
    assert float(along.min()) > 0.9, "the direction of largest curvature"


def test_it_sees_the_slope_behind_the_ripples() -> None:
    model = Jagged()
    x = images(0.2)
    gap = model(x)[:, 1]
    x, y = x[gap.abs() < 1.5], (gap > 0).long()[gap.abs() < 1.5]
    assert len(x) > 10
    threat = "linf:0.08"
    plain = PGD(steps=40)(model, x, y, threat=threat)
    found = SecondOrder(steps=40)(model, x, y, threat=threat)
    assert float(found.success.float().mean()) > 0.9
    assert float(found.success.float().mean()) > float(plain.success.float().mean()) + 0.3


def test_every_draw_is_counted() -> None:
    module = Counting(nn.Sequential(nn.Flatten(), nn.Linear(SIZE, 3)))
    classifier = Classifier(module)
    x = images(0.2)[:16]
    y = classifier.logits(x).argmax(1)
    counters = dict(classifier.module.named_buffers())["seen"]
    counters.zero_()
    classifier.forwards = classifier.backwards = 0
    found = SecondOrder(steps=5, draws=7, restarts=2)(classifier, x, y, threat="linf:0")
    assert set(found.queries.tolist()) == {2 * (5 * (7 + 1) + 1)}
    assert set(found.gradients.tolist()) == {2 * 5 * 7}
    assert counters.tolist() == [classifier.forwards, classifier.backwards]
    assert classifier.backwards == int(found.gradients.sum())
    assert classifier.forwards == int(found.queries.sum()) + 1 + 16, "the model's check and the clean pass come on top"


def test_without_noise_it_is_pgd() -> None:
    """Steps that end on the boundary, so that the last point is the highest loss, which PGD would keep."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIZE, 12), nn.Tanh(), nn.Linear(12, 4))
    x = images(0.2)
    y = Classifier(model).logits(x).argmax(1)
    options: dict[str, Any] = {"steps": 4, "step_size": Fraction(1, 4), "random_start": False}
    plain = PGD(**options)(model, x, y, threat="l2:0.1", stop="never")
    found = SecondOrder(**options, draws=2, sigma=Fraction(1, 10**7))(model, x, y, threat="l2:0.1", stop="never")
    assert torch.allclose(plain.parameters, found.parameters, atol=1e-6)


@pytest.mark.parametrize("bad", [{"draws": 0}, {"sigma": Fraction(0)}, {"steps": 0}])
def test_bad_values(bad: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="second-order"):
        SecondOrder(**bad)
