"""Fast input gradients: torch's own forward bit for bit, torch's own gradient up to rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustkit.classifier import Classifier
from robustkit.fastgrad import FastGradConv2d, gains
from robustkit.quick import quicken

GEOMETRIES = [
    (3, 1, 1, 1),
    (4, 2, 1, 1),
    (5, 3, 0, 1),
    (1, 2, 0, 1),
    (2, 3, 1, 1),
    ((3, 5), (2, 1), (0, 2), 2),
    ((6, 4), (2, 4), (3, 0), 1),
    (7, 2, 3, 2),
    (4, 4, 3, 1),
    (5, 5, 0, 1),
]


def gradient(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    out = module(leaf)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return out.detach(), torch.autograd.grad((out * weights).sum(), leaf)[0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), GEOMETRIES)
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_matches_torch(channels: int, kernel: int, stride: int, padding: int, dilation: int, bias: bool) -> None:
    plain = nn.Conv2d(channels, 8, kernel, stride, padding, dilation, bias=bias).double().requires_grad_(False)
    fast = nn.Conv2d(channels, 8, kernel, stride, padding, dilation, bias=bias).double().requires_grad_(False)
    fast.load_state_dict(plain.state_dict())
    fast.__class__ = FastGradConv2d
    x = torch.rand(5, channels, 17, 19, dtype=torch.float64)
    (out, found), (expected_out, expected) = gradient(fast, x), gradient(plain, x)
    assert torch.equal(out, expected_out)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), GEOMETRIES)
def test_images_and_gradients_may_have_their_channels_side_by_side(kernel: int, stride: int, padding: int, dilation: int) -> None:
    plain = nn.Conv2d(3, 8, kernel, stride, padding, dilation).double().requires_grad_(False)
    fast = nn.Conv2d(3, 8, kernel, stride, padding, dilation).double().requires_grad_(False)
    fast.load_state_dict(plain.state_dict())
    fast.__class__ = FastGradConv2d
    x = torch.rand(5, 3, 17, 19, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    norms = nn.Sequential(Permuting(), nn.LayerNorm(8, dtype=torch.float64, elementwise_affine=False))
    found, expected = (gradient(nn.Sequential(layer, norms), x)[1] for layer in (fast, plain))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


class Permuting(nn.Module):
    """As networks do that normalise the channels of every pixel; gradients come back in that order."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("layer", "faster"),
    [
        (nn.Conv2d(3, 4, 3), True),
        (nn.Conv2d(5, 4, 3), False),
        (nn.Conv2d(5, 4, 4, 2), True),
        (nn.Conv2d(5, 4, 3, 2), False),
        (nn.Conv2d(5, 4, 4, 2, dilation=2), False),
        (nn.Conv2d(4, 4, 3, groups=2), False),
        (nn.Conv2d(1, 4, 3, padding="same"), False),
        (nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"), False),
        (nn.Conv1d(1, 4, 3), False),
        (nn.Linear(3, 4), False),
    ],
)
def test_only_layers_that_gain(layer: nn.Module, faster: bool) -> None:
    assert gains(layer) is faster


def test_the_network_and_the_judge_keep_their_own_layers() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    classifier = Classifier(network)
    assert type(network[0]) is nn.Conv2d
    assert isinstance(classifier.module, nn.Sequential)
    assert type(classifier.module[0]) is nn.Conv2d
    assert isinstance(classifier.searcher, nn.Sequential)
    assert type(classifier.searcher[0]) is FastGradConv2d
    x = torch.rand(16, 1, 8, 8)
    before = classifier.search(x)
    assert torch.equal(before, classifier.forward(x))
    with torch.no_grad():
        network[0].weight.mul_(2)
    assert not torch.equal(classifier.search(x), before), "the searcher shares the user's weights"
    assert torch.equal(classifier.search(x), classifier.forward(x))


def test_a_network_without_such_layers_is_not_copied() -> None:
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    assert classifier.searcher is classifier.module


def test_the_gradient_follows_weights_that_are_changed_in_place() -> None:
    layer = nn.Conv2d(2, 3, 4, 2, 1).requires_grad_(False)
    quicken(layer)
    x = torch.rand(2, 2, 8, 8)
    _, before = gradient(layer, x)
    layer.weight.mul_(2)
    _, after = gradient(layer, x)
    torch.testing.assert_close(after, 2 * before)
