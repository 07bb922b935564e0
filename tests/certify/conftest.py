"""Small random networks, in float64, that between them hold every operation certifiers know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Functional(nn.Module):
    """Functional and method forms, sizes asked for in forward, shortcuts by slicing and padding."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(6, 5))

    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        if x.dim() == 3:
            x = x.unsqueeze(0)
        x = F.relu(self.one(x * scale), inplace=True)
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        x = F.max_pool2d(self.two(x).tanh(), 2) + shortcut
        x = F.dropout(torch.sigmoid(x), training=self.training)
        x = torch.cat([x, x.clamp(min=0.1)], dim=1).view(x.size(0), 2, 6, -1).permute(0, 1, 3, 2)
        x = x.mean(dim=(1, 2)).contiguous()
        return torch.neg(1 - x) @ self.weight


class Residual(nn.Module):
    """Pre-activation blocks with batch norm, an in-place relu that the shortcut sees, a difference."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.conv, self.last = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x - self.norm(self.conv(self.relu(x)))
        y = self.other(self.conv(x))
        y += x
        out: Tensor = self.last(F.adaptive_avg_pool2d(F.leaky_relu(self.relu(y), 0.2), 1).flatten(1))
        return out


class Branches(nn.Module):
    """Values that are used again after an activation has seen them, as they are and reshaped."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(18, 6), nn.Linear(6, 6), nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x.flatten(1))
        wide = x.view(-1, 2, 3)
        y = self.two(wide.relu().flatten(1)) + x.relu()
        out: Tensor = self.last(torch.cat([x, y, y.relu()], 1))
        return out


class Normalising(nn.Module):
    """Normalises by itself in front of a padded convolution, whose zeros then stand for the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.3, 0.6]).view(1, 2, 1, 1))
        self.std = torch.tensor([0.25, 0.5]).view(2, 1, 1)
        self.net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU6(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 4))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net((x - self.mean) / self.std)
        return out


IMAGE = (2, 3, 3)


def _mlp(activation: nn.Module, *last: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(18, 9), activation, nn.Dropout(), nn.Linear(9, 7), activation, nn.Linear(7, 4), *last)


def _conv() -> nn.Module:
    first = nn.Conv2d(2, 4, 3, stride=2, padding=2, dilation=2, groups=2)
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(4, 6, 3, padding="same"), nn.ReLU(), nn.Flatten(), nn.Linear(54, 5))


def _conv1d() -> nn.Module:
    return nn.Sequential(nn.Flatten(2), nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool1d(3), nn.Flatten(), nn.Linear(12, 3))


def _pools() -> nn.Module:
    front = [nn.Conv2d(2, 4, 3), nn.MaxPool2d(3, 1, 1), nn.ReLU(), nn.AvgPool2d(2, 2, 1), nn.AdaptiveMaxPool2d(2)]
    return nn.Sequential(*front, nn.ZeroPad2d(1), nn.Conv2d(4, 3, 3), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten())


def _norms() -> nn.Module:
    front = [nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)]
    back = [nn.Linear(64, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.Linear(8, 4), nn.BatchNorm1d(4)]
    return nn.Sequential(*front, nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(), nn.BatchNorm1d(64), *back)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(18, 4)), IMAGE),
    "two-linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(18, 9), nn.Linear(9, 4)), IMAGE),
    "branches": (Branches, IMAGE),
    "relu": (lambda: _mlp(nn.ReLU()), IMAGE),
    "sigmoid": (lambda: _mlp(nn.Sigmoid()), IMAGE),
    "leaky": (lambda: _mlp(nn.LeakyReLU(0.3)), IMAGE),
    "tanh-last": (lambda: _mlp(nn.Identity(), nn.Tanh()), IMAGE),
    "conv": (_conv, (2, 6, 6)),
    "conv1d": (_conv1d, IMAGE),
    "pools": (_pools, (2, 6, 6)),
    "norms": (_norms, (2, 6, 6)),
    "functional": (Functional, (2, 8, 8)),
    "residual": (Residual, (2, 5, 5)),
    "normalising": (Normalising, (2, 6, 6)),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, tuple[int, ...]]:
    """A network of NETWORKS in eval mode and float64 with random weights and statistics, and its input shape."""
    make, shape = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = make().double().eval()
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                assert part.running_mean is not None and part.running_var is not None
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
                if part.affine:
                    nn.init.uniform_(part.weight, -2, 2)
                    nn.init.normal_(part.bias)
    return module, shape


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=sorted(NETWORKS))
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[int, ...]]:
    """Every kind of network in turn."""
    return build(request.param)


@pytest.fixture
def make_network() -> Callable[..., Any]:
    """`build`, for tests that want one network by name."""
    return build
