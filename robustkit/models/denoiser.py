"""Denoising autoencoders as layers of a network, Lamb et al. 2018, https://arxiv.org/abs/1804.02485.

`dae(features,hidden[,kKERNEL][,noise=SIGMA][,always])` in the architecture grammar: Gaussian noise,
an encoder, and the decoder with the same weights transposed; fully connected over all values of a
sample, or with a kernel as convolutions over the channels `features` of a map, which keep its size.

Deliberate deviation: noise only in training. The reference implementation also draws it at test
time, which makes the model random without saying so; `always` asks for that, and then the network
declares it and draws from the keys it is given, so that no row depends on another.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustkit import streams
from robustkit.surface import Surface


class Denoiser(nn.Module):
    """leaky(W^T leaky(W (h + noise) + b) + c), of the shape of h: (N,features), or anything of that many values.

    Keys in the state dict: encoder.weight, encoder.bias, bias.
    """

    def __init__(self, features: int, hidden: int, kernel: int = 0, noise: float = 0.1, always: bool = False, slope: float = 0.01) -> None:
        super().__init__()
        if kernel and kernel % 2 == 0:
            raise ValueError(f"k{kernel}: expected an odd kernel, which keeps the size of a map")
        if not 0 <= noise < 1000:
            raise ValueError(f"noise={noise}: expected a standard deviation of at least 0")
        self.kernel, self.noise, self.always, self.slope = kernel, noise, always, slope
        self.encoder = nn.Conv2d(features, hidden, kernel, padding=kernel // 2) if kernel else nn.Linear(features, hidden)
        self.bias = nn.Parameter(torch.zeros(features))
        self.keys: Tensor | None = None
        """(N,) keys of the next forward's noise; without them torch's global generator draws it."""

    @property
    def random(self) -> bool:
        """Whether it draws noise when deployed."""
        return self.always and self.noise > 0

    def forward(self, h: Tensor) -> Tensor:
        if self.noise > 0 and (self.training or self.always):
            h = h + self.noise * self._drawn(h)
        if self.kernel:
            code = functional.leaky_relu(self.encoder(h), self.slope)
            return functional.leaky_relu(functional.conv_transpose2d(code, self._weight, self.bias, padding=self.kernel // 2), self.slope)
        flat = h.flatten(1) if h.dim() > 2 else h
        code = functional.leaky_relu(self.encoder(flat), self.slope)
        decoded = functional.leaky_relu(torch.matmul(code, self._weight) + self.bias, self.slope)
        return decoded.view(-1, *h.shape[1:]) if h.dim() > 2 else decoded

    @property
    def _weight(self) -> Tensor:
        return self.encoder.weight

    def _drawn(self, h: Tensor) -> Tensor:
        if self.keys is None:
            return torch.randn_like(h)
        return streams.normal(self.keys, tuple(h.shape[1:])).to(h)

    def extra_repr(self) -> str:
        return f"noise={self.noise}, {'always' if self.always else 'in training'}"


class Drawing(nn.Sequential):
    """A chain with layers that draw when deployed, each from its own keys; its answer is a vote over draws."""

    takes_keys = True
    adaptive_surface = Surface(random="vote")

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        parts = denoisers(self)
        try:
            for number, part in enumerate(parts.values()):
                part.keys = None if keys is None else streams.child(keys, number)
            found: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return found
        finally:
            for part in parts.values():
                part.keys = None


def denoisers(network: nn.Module) -> dict[str, Denoiser]:
    """The denoising autoencoders of a network by module name, in the order of its modules."""
    return {name: part for name, part in network.named_modules() if isinstance(part, Denoiser)}


def drawing(network: nn.Sequential) -> nn.Sequential:
    """The chain itself, or where layers of it draw when deployed, one that says so and hands them keys."""
    return Drawing(*network) if any(part.random for part in denoisers(network).values()) else network
