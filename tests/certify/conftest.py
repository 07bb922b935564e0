"""Small random networks, in float64, that between them hold every operation certifiers know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import Bounds, LinearConstraint, milp
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


def _transposed() -> nn.Module:
    front = [nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 4, 3, 2, 1, 1, groups=2), nn.ReLU()]
    return nn.Sequential(*front, nn.Flatten(2), nn.ConvTranspose1d(4, 2, 2, 2), nn.Flatten(), nn.Linear(144, 3))


def _strides() -> nn.Module:
    """Windows that grow over three convolutions, kernels that are no multiple of their stride, values that no window sees."""
    front = [nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 4, 3, 2), nn.LeakyReLU(0.1), nn.Conv2d(4, 4, 2), nn.ReLU()]
    return nn.Sequential(*front, nn.Flatten(), nn.Linear(4, 3))


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
    "steep-leaky": (lambda: _mlp(nn.LeakyReLU(1.4)), IMAGE),
    "elu": (lambda: _mlp(nn.ELU(1.5)), IMAGE),
    "gelu": (lambda: _mlp(nn.GELU()), IMAGE),
    "gelu-tanh": (lambda: _mlp(nn.GELU("tanh")), IMAGE),
    "silu": (lambda: _mlp(nn.SiLU()), IMAGE),
    "softplus": (lambda: _mlp(nn.Softplus(2.0)), IMAGE),
    "hardtanh": (lambda: _mlp(nn.Hardtanh(-0.2, 0.3)), IMAGE),
    "tanh-last": (lambda: _mlp(nn.Identity(), nn.Tanh()), IMAGE),
    "conv": (_conv, (2, 6, 6)),
    "conv1d": (_conv1d, IMAGE),
    "strides": (_strides, (2, 10, 10)),
    "transposed": (_transposed, (2, 6, 6)),
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


def _sample(shape: tuple[int, ...], count: int = 4, corners: bool = True) -> Tensor:
    drawn = torch.rand(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return torch.cat([drawn[: count // 2], drawn[count // 2 :].round()]) if corners else drawn


@pytest.fixture
def sample() -> Callable[..., Tensor]:
    """(shape, count=4, corners=True) -> the same random float64 images every time, with `corners` half of them in a corner of the box."""
    return _sample


@pytest.fixture
def full() -> Callable[[int, float], Tensor]:
    """(count, eps) -> (count,) float64 budgets."""
    return lambda count, eps: torch.full((count,), eps, dtype=torch.float64)


@pytest.fixture
def make_network() -> Callable[..., Any]:
    """`build`, for tests that want one network by name."""
    return build


def _exact_minimum(layers: list[tuple[np.ndarray, np.ndarray]], low: np.ndarray, high: np.ndarray, c: np.ndarray) -> float:
    """min c . logits over the box of a ReLU network, by a big-M encoding whose M comes from weight norms."""
    sizes = [len(low)] + [len(b) for _, b in layers]
    hidden = sum(sizes[1:-1])
    count = sum(sizes[:-1]) + hidden  # inputs and activations, then one binary per hidden neuron
    rows, uppers, at, scale = [], [], 0, float(max(abs(low).max(), abs(high).max()))
    binary = sum(sizes[:-1])
    for layer, (weight, bias) in enumerate(layers[:-1]):
        scale = scale * float(abs(weight).sum(1).max()) + float(abs(bias).max())
        after = at + sizes[layer]
        for i in range(sizes[layer + 1]):
            z = np.zeros(count)
            z[at:after] = weight[i]
            a, d = np.zeros(count), np.zeros(count)
            a[after + i], d[binary] = 1, 1
            rows += [z - a, a - z + scale * d, a - scale * d]  # a >= z + b; a <= z + b + M (1 - d); a <= M d
            uppers += [-bias[i], bias[i] + scale, 0.0]
            binary += 1
        at = after
    weight, bias = layers[-1]
    objective = np.zeros(count)
    objective[at : at + sizes[-2]] = c @ weight
    lows = np.concatenate([low, np.zeros(count - len(low))])
    highs = np.concatenate([high, np.full(sum(sizes[1:-1]), np.inf), np.ones(hidden)])
    integral = np.concatenate([np.zeros(count - hidden), np.ones(hidden)])
    constraints = LinearConstraint(np.array(rows), -np.inf, np.array(uppers))
    found = milp(objective, constraints=constraints, bounds=Bounds(lows, highs), integrality=integral)
    assert found.status == 0, found.message
    return float(found.fun + c @ bias)


@pytest.fixture
def exact_minimum() -> Callable[..., float]:
    """(layers [(weight, bias)], low, high, c) -> the least c . logits of a ReLU network over a box."""
    return _exact_minimum


def _least_found(module: nn.Module, x: Tensor, eps: float, norm: str, y: Tensor, count: int = 30, steps: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(1)

    def scaled(step: Tensor) -> Tensor:
        flat = step.flatten(-3)
        if norm == "linf":
            return step.sign()
        if norm == "l2":
            return (flat / flat.norm(dim=-1, keepdim=True).clamp(min=1e-12)).view_as(step)
        most = flat.abs().argmax(-1, keepdim=True)
        return torch.zeros_like(flat).scatter(-1, most, flat.gather(-1, most).sign()).view_as(step)

    def margins(p: Tensor) -> Tensor:
        logits = module(p)
        return logits.gather(1, y.repeat(len(p) // len(y))[:, None]) - logits

    drawn = torch.randn(count, *x.shape, dtype=x.dtype, generator=generator)
    size = {"linf": drawn.abs().flatten(2).amax(2), "l2": drawn.flatten(2).norm(dim=2), "l1": drawn.abs().flatten(2).sum(2)}[norm]
    drawn = torch.cat([eps * drawn / size.view(count, -1, 1, 1, 1), eps * scaled(drawn)])
    with torch.no_grad():
        best = margins((x + drawn).clamp(0, 1).flatten(0, 1)).view(len(drawn), *y.shape, -1).amin(0)
    for j in range(best.shape[1]):
        point = x.clone()
        for step in range(steps):
            point.requires_grad_()
            value = margins(point)[:, j]
            (gradient,) = torch.autograd.grad(value.sum(), point)
            best[:, j] = torch.minimum(best[:, j], value.detach())
            corner = (x - eps * scaled(gradient)).clamp(0, 1)
            point = point.detach() + (corner - point.detach()) * (1.0 if step == 0 else 2 / (step + 2))
            with torch.no_grad():
                best[:, j] = torch.minimum(best[:, j], margins(corner)[:, j])
    return best


@pytest.fixture
def least_found() -> Callable[..., Tensor]:
    """(module, x, eps, norm, y) -> (N, K) least z_y - z_j that sampling and Frank-Wolfe steps find in the ball within [0,1]."""
    return _least_found
