"""The transfer study: its figures by definition, on models where they are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from robustkit import streams
from robustkit.attacks import PGD
from robustkit.attacks.losses import cross_entropy
from robustkit.attacks.transfer_study import alignment, gradients, transfer_study, variability
from robustkit.classifier import Classifier
from robustkit.data import Data, as_data
from robustkit.errors import BadInput

SIZE = 16


def linear(direction: Tensor, scale: float = 4.0) -> Classifier:
    """Two classes, divided by a plane through grey."""
    layer = nn.Linear(SIZE, 2)
    layer.weight.data = torch.stack([-scale * direction / 2, scale * direction / 2])
    layer.bias.data = -layer.weight @ torch.full((SIZE,), 0.5)
    return Classifier(nn.Sequential(nn.Flatten(), layer.requires_grad_(False)), classes=2, input_shape=(1, 4, 4))


def unit(*at: float) -> Tensor:
    """A direction with the given first coordinates, of length 1."""
    return torch.nn.functional.normalize(torch.tensor([*at, *[0.0] * (SIZE - len(at))]), dim=0)


@pytest.fixture(scope="module")
def data() -> Data:
    keys = streams.row_keys(0, "plane", torch.arange(60))
    y = streams.integers(keys, 2)
    x = 0.5 + 0.02 * (streams.uniform(streams.child(keys, 1), (1, 4, 4)) - 0.5)
    x[:, 0, 0, 0] = 0.5 + 0.1 * (2.0 * y - 1)
    return as_data(x, y)


def test_the_closed_form_of_planes(data: Data) -> None:
    """Planes at angles: alignment is the cosine, the size has the logistic formula, transfer follows."""
    target, turned, across, opposite = (linear(unit(*at)) for at in ((1.0,), (1.0, 1.0), (0.0, 1.0), (-1.0,)))
    rows = transfer_study(target, {"itself": target, "turned": turned, "across": across, "opposite": opposite}, data, "l2:0.16")
    found = {row.surrogate: row for row in rows}
    assert found["itself"].alignment == pytest.approx(1, abs=1e-6)
    assert found["turned"].alignment == pytest.approx(math.sqrt(0.5), abs=0.05)
    assert found["across"].alignment == pytest.approx(0, abs=0.05)
    # the opposite plane gets every image wrong; its gradient points the other way
    assert found["opposite"].alignment == pytest.approx(-1, abs=1e-6)
    gap = 4.0 * (data.x.flatten(1) - 0.5) @ unit(1.0) * (2.0 * data.y - 1)
    expected = float((4.0 * torch.sigmoid(-gap)).mean())  # |dl/dx| = scale x probability of the other class
    assert found["itself"].target_gradient == pytest.approx(expected, rel=1e-4)
    assert found["itself"].surrogate_gradient == found["itself"].target_gradient
    assert found["itself"].transfer_rate == found["itself"].white_box_rate == found["itself"].surrogate_rate == 1
    assert found["turned"].transfer_rate > 0.9, "0.16 cos 45 degrees is 0.113, more than the 0.1 to the plane"
    assert found["across"].transfer_rate == 0
    assert {row.samples for row in rows} == {60}


def test_sizes_are_dual_norms(data: Data) -> None:
    target = linear(unit(1.0, 1.0))
    rates = {t: transfer_study(target, [target], data, t)[0].target_gradient for t in ("linf:0.01", "l2:0.01", "l1:0.01")}
    assert rates["linf:0.01"] == pytest.approx(math.sqrt(2) * rates["l2:0.01"], rel=1e-4)
    assert rates["l1:0.01"] == pytest.approx(rates["l2:0.01"] / math.sqrt(2), rel=1e-4)


def test_variability_is_the_variance_of_the_loss(data: Data) -> None:
    models = [linear(unit(1.0, slope)) for slope in (0.0, 0.3, -0.4)]
    losses = torch.stack([cross_entropy(m.logits(data.x), data.y, torch.full_like(data.y, -1)) for m in models])
    expected = float((losses.square().mean(0) - losses.mean(0).square()).mean())
    assert variability(models, data) == pytest.approx(expected, rel=1e-3)
    rows = transfer_study(models[0], {"several": models, "one": models[1]}, data, "l2:0.05")
    assert rows[0].variability == pytest.approx(expected, rel=1e-3)
    assert rows[1].variability is None


def test_rates_are_those_of_the_images_themselves(data: Data) -> None:
    target, surrogate = linear(unit(1.0, 0.2)), linear(unit(1.0, -0.6))
    (row,) = transfer_study(target, [surrogate], data, "l2:0.12", attack=PGD(steps=7), seed=3)
    right = target.logits(data.x).argmax(1) == data.y
    kept = data.subset(right)
    x = PGD(steps=7)(surrogate, *kept, threat="l2:0.12", seed=3, index=kept.index, stop="never").adversarial
    assert row.transfer_rate == pytest.approx(float((target.logits(x).argmax(1) != kept.y).float().mean()))
    assert row.surrogate_rate == pytest.approx(float((surrogate.logits(x).argmax(1) != kept.y).float().mean()))
    assert row.samples == int(right.sum())


def test_alignment_leaves_out_zero_gradients() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    b = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 1.0]])
    assert alignment(a, b) == pytest.approx(0.5)
    assert alignment(a[1:2], b[1:2]) == 0.0


def test_gradients_do_not_vanish_where_the_model_is_sure(data: Data) -> None:
    """A loss of 1e-13 still has a direction: it is computed in double precision."""
    model = linear(unit(1.0), scale=300.0)
    found, _ = gradients(model, data)
    assert bool((found.norm(dim=1) > 0).all())


def test_bad_input(data: Data) -> None:
    target = linear(unit(1.0))
    with pytest.raises(BadInput, match="at least one surrogate"):
        transfer_study(target, [], data, "l2:0.1")
    with pytest.raises(BadInput, match="dual"):
        transfer_study(target, [target], data, "l0:3")
    with pytest.raises(BadInput, match="gets no image right"):
        transfer_study(linear(unit(-1.0)), [target], data, "l2:0.1")
