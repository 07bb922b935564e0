"""Random networks in float32, small enough to attack by the hundred; together they hold every operation certifiers know."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky relu": lambda: nn.LeakyReLU(0.1),
    "steep leaky relu": lambda: nn.LeakyReLU(1.4),
    "elu": lambda: nn.ELU(1.2),
    "gelu": nn.GELU,
    "tanh gelu": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
    "softplus": lambda: nn.Softplus(2.0),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "hardtanh": lambda: nn.Hardtanh(-0.5, 0.7),
    "relu6": nn.ReLU6,
}
Make = Callable[[Callable[[], nn.Module]], tuple[nn.Module, tuple[int, ...]]]


class Residual(nn.Module):
    """A block around a shortcut, and one that is taken off."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(2, 4, 3, padding=1), act
        self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x - 0.5 * self.norm(self.conv(self.act(x)))
        x = x + self.conv(self.act(x))
        out: Tensor = self.last(F.adaptive_avg_pool2d(self.act(x), 1).flatten(1))
        return out


class Pieces(nn.Module):
    """Slices, padding, joining, permuting, averages over dimensions, constants, clamping."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.one, self.two, self.act = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1), act
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.one(2.0 * x - 0.3))
        y = self.two(x) + F.pad(x[:, :, 1:, 1:], (1, 0, 0, 1))
        y = torch.cat([y.clamp(-0.4, 0.9), self.act(y)], 2).permute(0, 1, 3, 2)
        out: Tensor = self.norm(y.mean(dim=(2, 3))) @ self.weight
        return out


def _dense(act: Callable[[], nn.Module]) -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(nn.Flatten(), nn.Linear(18, 12), act(), nn.Linear(12, 10), act(), nn.Linear(10, 8), act(), nn.Linear(8, 4)), (
        2,
        3,
        3,
    )


def _conv(act: Callable[[], nn.Module]) -> tuple[nn.Module, tuple[int, ...]]:
    front = [nn.Conv2d(2, 4, 3, 2, 2, 2, 2), act(), nn.Conv2d(4, 6, 3, padding="same"), nn.BatchNorm2d(6), act()]
    return nn.Sequential(nn.BatchNorm2d(2), *front, nn.Flatten(), nn.Linear(54, 5)), (2, 6, 6)


def _maxima(act: Callable[[], nn.Module]) -> tuple[nn.Module, tuple[int, ...]]:
    front = [nn.Conv2d(2, 4, 3, padding=1), nn.MaxPool2d(3, 2, 1), act(), nn.Conv2d(4, 4, 2), act(), nn.AdaptiveMaxPool2d(2)]
    return nn.Sequential(*front, nn.Flatten(), nn.Linear(16, 3)), (2, 6, 6)


def _averages(act: Callable[[], nn.Module]) -> tuple[nn.Module, tuple[int, ...]]:
    front = [nn.Conv2d(2, 4, 3), act(), nn.AvgPool2d(2, 2, 1), nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3), act()]
    return nn.Sequential(*front, nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(), nn.Linear(8, 3), nn.BatchNorm1d(3)), (2, 6, 6)


def _line(act: Callable[[], nn.Module]) -> tuple[nn.Module, tuple[int, ...]]:
    front = [nn.Flatten(2), nn.Conv1d(2, 4, 3, padding=1), act(), nn.MaxPool1d(3), nn.Flatten(), nn.Linear(12, 6), act()]
    return nn.Sequential(*front, nn.Linear(6, 3)), (2, 3, 3)


def _transposed(act: Callable[[], nn.Module]) -> tuple[nn.Module, tuple[int, ...]]:
    front = [nn.Conv2d(2, 4, 3, 2, 1), act(), nn.ConvTranspose2d(4, 2, 3, 2, 1, 1, groups=2), act()]
    return nn.Sequential(*front, nn.Flatten(), nn.Linear(72, 3)), (2, 6, 6)


FAMILIES: dict[str, Make] = {
    "dense": _dense,
    "conv": _conv,
    "maxima": _maxima,
    "averages": _averages,
    "1-d": _line,
    "transposed": _transposed,
    "residual": lambda act: (Residual(act()), (2, 5, 5)),
    "pieces": lambda act: (Pieces(act()), (2, 6, 6)),
}


def networks(rounds: int, seed: int = 0) -> Iterator[tuple[str, str, nn.Module, tuple[int, ...]]]:
    """(family, activation, module, image shape) of every pair, `rounds` times with other weights."""
    for turn in range(rounds):
        for number, (family, make) in enumerate(FAMILIES.items()):
            for place, (name, act) in enumerate(ACTIVATIONS.items()):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed + ((turn * len(FAMILIES) + number) * len(ACTIVATIONS) + place))
                    module, shape = make(act)
                    _settle(module.eval())
                yield family, name, module, shape


def _settle(module: nn.Module) -> None:
    """Statistics and scales of batch norm, and weights large enough that logits differ."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            assert part.running_mean is not None and part.running_var is not None
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
            nn.init.uniform_(part.weight, -1.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.3)
        elif isinstance(part, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)):
            part.weight.data.mul_(1.5)
