"""Losses: their values, their gradients by finite differences, and what they are not defined for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustkit import registry
from robustkit.attacks.losses import LOSSES, check_classes, cross_entropy, dlr, margin
from robustkit.errors import BadInput

NONE = torch.tensor([-1])


def logits(rows: int = 12, classes: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(z float64, y, target): every other row aims at a class that is not its label."""
    generator = torch.Generator().manual_seed(seed)
    z = 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (rows,), generator=generator)
    target = torch.where(torch.arange(rows) % 2 == 0, (y + 1) % classes, -1)
    return z, y, target


def brightness() -> tuple[torch.nn.Module, Tensor]:
    """A model that tells bright images from dark ones, and eight images."""
    layer = torch.nn.Linear(4, 2)
    layer.weight.data, layer.bias.data = torch.tensor([[-1.0], [1.0]]).expand(2, 4).clone(), torch.tensor([2.0, -2.0])
    return torch.nn.Sequential(torch.nn.Flatten(), layer), torch.rand(8, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def test_cross_entropy_is_torch_s() -> None:
    z, y, target = logits()
    expected = torch.nn.functional.cross_entropy(z, y, reduction="none")
    assert torch.allclose(cross_entropy(z, y, torch.full_like(y, -1)), expected)
    aimed = -torch.nn.functional.cross_entropy(z, target.clamp(min=0), reduction="none")
    assert torch.allclose(cross_entropy(z, y, target), torch.where(target >= 0, aimed, expected))


def test_margin_by_hand() -> None:
    z = torch.tensor([[1.0, 4, 2], [1, 4, 2], [1, 4, 2]])
    y, target = torch.tensor([1, 0, 1]), torch.tensor([-1, -1, 0])
    assert margin(z, y, target).tolist() == [-2, 3, -3]


def test_dlr_by_hand() -> None:
    z, y = torch.tensor([[7.0, 4, 2, 1]]), torch.tensor([0])
    assert dlr(z, y, NONE).item() == pytest.approx(-(7 - 4) / (7 - 2))
    assert dlr(z, torch.tensor([1]), NONE).item() == pytest.approx((7 - 4) / (7 - 2))
    assert dlr(z, y, torch.tensor([2])).item() == pytest.approx(-(7 - 2) / (7 - (2 + 1) / 2))


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.floats(-100, 100), st.integers(4, 9))
def test_dlr_does_not_depend_on_scale_and_shift(seed: int, scale: float, shift: float, classes: int) -> None:
    z, y, target = logits(classes=classes, seed=seed)
    assert torch.allclose(dlr(z, y, target), dlr(z * scale + shift, y, target), rtol=1e-5, atol=1e-7)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 9))
def test_dlr_and_margin_agree_in_sign(seed: int, classes: int) -> None:
    z, y, target = logits(classes=classes, seed=seed)
    assert torch.equal(dlr(z, y, target) > 0, margin(z, y, target) > 0)
    untargeted = torch.full_like(y, -1)
    assert torch.equal(margin(z, y, untargeted) > 0, z.argmax(1) != y)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [4, 10])
def test_gradients_by_finite_differences(name: str, classes: int) -> None:
    loss: Callable[[Tensor, Tensor, Tensor], Tensor] = LOSSES[name]
    z, y, target = logits(classes=classes)
    leaf = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, y, target).sum(), leaf)
    step = 1e-6
    for k in range(classes):
        moved = torch.zeros_like(z)
        moved[:, k] = step
        slope = (loss(z + moved, y, target) - loss(z - moved, y, target)) / (2 * step)
        assert torch.allclose(gradient[:, k], slope, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_finite_where_logits_are_extreme_or_equal(name: str) -> None:
    z = torch.tensor([[1e30, -1e30, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1e4, 1e4, 1e4, -1e4]], requires_grad=True)
    values = LOSSES[name](z, torch.tensor([0, 1, 2]), torch.tensor([-1, -1, 1]))
    (gradient,) = torch.autograd.grad(values.sum(), z)
    assert bool(torch.isfinite(values).all())
    assert bool(torch.isfinite(gradient).all())


def test_dlr_needs_three_classes_and_four_when_targeted() -> None:
    for loss, classes in (("dlr", 2), ("dlr-targeted", 3), ("dlr-targeted", 2), ("ce", 1)):
        with pytest.raises(BadInput, match="needs at least"):
            check_classes(loss, classes)
    for loss, classes in (("dlr", 3), ("dlr-targeted", 4), ("ce", 2), ("margin", 2)):
        check_classes(loss, classes)


@pytest.mark.parametrize("attack", [f"{name}:loss=dlr" for name in ("fgsm", "bim", "pgd", "apgd", "mi-fgsm", "di-fgsm")])
def test_attacks_refuse_dlr_on_two_classes(attack: str) -> None:
    model, x = brightness()
    with pytest.raises(BadInput, match="the model has 2"):
        registry.make("attack", attack)(model, x, model(x).argmax(1), threat="linf:0.1")


@pytest.mark.parametrize("spec", ["apgd:steps=4", "pgd:loss=margin,steps=2", "fab:steps=2", "fgsm", "square:queries=60"])
def test_two_classes_are_enough_for_the_others(spec: str) -> None:
    model, x = brightness()
    result = registry.make("attack", spec)(model, x, model(x).argmax(1), threat="linf:1")
    assert bool(result.success.all())


def test_dlr_on_three_classes_takes_a_target() -> None:
    z = torch.tensor([[3.0, 1.0, 0.0]])
    assert dlr(z, torch.tensor([0]), torch.tensor([2])).item() == pytest.approx(-1.0)


def test_cross_entropy_keeps_its_direction_where_the_model_is_sure() -> None:
    """float32 gradients with respect to the logits, against float64: the own logit's part is not lost."""
    logits = torch.tensor([[30.0, 5.0, 8.0, 7.9], [0.0, -25.0, -22.0, 3.0]])
    y, target = torch.tensor([0, 3]), torch.tensor([-1, -1])
    found = []
    for dtype in (torch.float32, torch.float64):
        z = logits.to(dtype).requires_grad_()
        found.append(torch.autograd.grad(cross_entropy(z, y, target).sum(), z)[0].double())
    assert torch.allclose(found[0], found[1], rtol=1e-4, atol=0)
    assert bool((found[0].sum(1).abs() < 1e-6 * found[0].abs().amax(1)).all()), "parts add up to nothing"
