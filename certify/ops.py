"""The typed operations every traced network is made of.

Values are tensors (N, ...). Two families carry all generic rules:

- `Affine`: y = A x + b. `forward` computes it, `magnitude` computes |A| w; the adjoint that linear
  relaxations need is the vector-Jacobian product of `forward`.
- `Monotone`: elementwise or pooling functions that never decrease in any input, so the ends of an
  interval go to the ends of its image.

Operations hold tensors, never modules: they are values of one moment (see graph.Graph.network).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustkit.certify.products import convolved, product


class Op(ABC):
    """One operation of the graph."""

    @abstractmethod
    def forward(self, *inputs: Tensor) -> Tensor:
        """The value (N, ...) for input values (N, ...)."""


class Input(Op):
    """The image."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0]


class Affine(Op):
    """y = A x + b."""

    @abstractmethod
    def magnitude(self, *widths: Tensor) -> Tensor:
        """|A| w for non-negative widths w."""


@dataclass(frozen=True, eq=False)
class Linear(Affine):
    """Fully connected on the last dimension."""

    weight: Tensor
    """(out, in)"""
    bias: Tensor | None = None

    @cached_property
    def absolute(self) -> Tensor:
        """|W|, computed once for this value of the weights."""
        return self.weight.abs()

    def forward(self, *inputs: Tensor) -> Tensor:
        return product(inputs[0], self.weight, self.bias)

    def magnitude(self, *widths: Tensor) -> Tensor:
        return product(widths[0], self.absolute)

    def squares(self, variances: Tensor) -> Tensor:
        """(A * A) v: squared row norms for v = 1."""
        return product(variances, self.weight.square())


@dataclass(frozen=True, eq=False)
class Conv(Affine):
    """Convolution over 1, 2 or 3 dimensions with zero padding."""

    weight: Tensor
    """(out, in / groups, *kernel)"""
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int

    @cached_property
    def absolute(self) -> Tensor:
        """|W|, computed once for this value of the weights."""
        return self.weight.abs()

    @property
    def padded(self) -> bool:
        """Whether zeros are added around the input."""
        return self.padding != "valid" if isinstance(self.padding, str) else any(self.padding)

    @cached_property
    def before(self) -> tuple[int, ...]:
        """Zeros added in front of the input, in every dimension."""
        if not isinstance(self.padding, str):
            return self.padding
        spans = [d * (k - 1) for d, k in zip(self.dilation, self.weight.shape[2:])]
        return tuple(span // 2 if self.padding == "same" else 0 for span in spans)

    @property
    def interleaved(self) -> Tensor:
        """The kernel (C s^2, O, k/s, k/s) whose plain convolution gives the s x s interleaved parts of the transposed one."""
        out, channels, *size = self.weight.shape
        step, parts = self.stride[0], [-(-k // self.stride[0]) for k in size]
        filled = F.pad(self.weight, (0, parts[1] * step - size[1], 0, parts[0] * step - size[0]))
        split = filled.view(out, channels, parts[0], step, parts[1], step).permute(1, 3, 5, 0, 2, 4)
        return split.reshape(channels * step * step, out, *parts).flip(2, 3)

    @cached_property
    def matrices(self) -> dict[tuple[int, int], Tensor]:
        """Transposed convolutions of small windows as matrices, kept by the window's size."""
        return {}

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        function: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[weight.dim() - 3]
        return convolved(lambda x: function(x, weight, bias, self.stride, self.padding, self.dilation, self.groups), x, weight)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._convolve(inputs[0], self.weight, self.bias)

    def magnitude(self, *widths: Tensor) -> Tensor:
        return self._convolve(widths[0], self.absolute)

    def squares(self, variances: Tensor) -> Tensor:
        """(A * A) v: squared row norms for v = 1."""
        return self._convolve(variances, self.weight.square())


@dataclass(frozen=True, eq=False)
class Scale(Affine):
    """x * scale + shift elementwise (batch norm, input normalisation, constants); no shape change."""

    scale: Tensor
    """Broadcasts against one sample, with a sample's number of dimensions."""
    shift: Tensor
    parts: Tensor | None = None
    """Sizes of the numbers that the shift is a sum of, where it is one: rounding errors grow with them."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.addcmul(self.shift, inputs[0], self.scale)

    def magnitude(self, *widths: Tensor) -> Tensor:
        return widths[0] * self.scale.abs()

    def squares(self, variances: Tensor) -> Tensor:
        """(A * A) v: squared row norms for v = 1."""
        return variances * self.scale.square()


class Copy(Affine):
    """Linear with no bias and no negative coefficient, so that |A| w = A w."""

    def magnitude(self, *widths: Tensor) -> Tensor:
        return self.forward(*widths)


@dataclass(frozen=True, eq=False)
class Reshape(Copy):
    """The same values in another shape (flatten, view, squeeze, ...)."""

    shape: tuple[int, ...]
    """Of one sample."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].reshape(len(inputs[0]), *self.shape)

    def squares(self, variances: Tensor) -> Tensor:
        """(A * A) v: squared row norms for v = 1."""
        return self.forward(variances)


@dataclass(frozen=True, eq=False)
class Average(Copy):
    """Mean, sum or average pooling within a sample."""

    function: Callable[[Tensor], Tensor]

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(inputs[0])


@dataclass(frozen=True, eq=False)
class Select(Copy):
    """Values of one sample picked, reordered or surrounded by zeros (slicing, permutation, padding)."""

    function: Callable[[Tensor], Tensor]

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(inputs[0])


@dataclass(frozen=True, eq=False)
class Concat(Copy):
    """Inputs joined along a dimension of the sample."""

    dim: int
    """Counted with the batch dimension, at least 1."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, self.dim)


@dataclass(frozen=True, eq=False)
class Sum(Affine):
    """left + alpha * right (residual connections)."""

    alpha: float = 1.0

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.add(inputs[0], inputs[1], alpha=self.alpha)

    def magnitude(self, *widths: Tensor) -> Tensor:
        return torch.add(widths[0], widths[1], alpha=abs(self.alpha))


class Monotone(Op):
    """Never decreases in any of its inputs."""


class ReLU(Monotone):
    """max(x, 0)"""

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.relu(inputs[0])


@dataclass(frozen=True, eq=False)
class LeakyReLU(Monotone):
    """x where positive, slope * x elsewhere, slope >= 0."""

    slope: float

    def forward(self, *inputs: Tensor) -> Tensor:
        return F.leaky_relu(inputs[0], self.slope)


class Sigmoid(Monotone):
    """1 / (1 + exp(-x))"""

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.sigmoid(inputs[0])


class Tanh(Monotone):
    """Hyperbolic tangent."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.tanh(inputs[0])


@dataclass(frozen=True, eq=False)
class Clamp(Monotone):
    """x held between two constants (ReLU6, hardtanh, clipped images)."""

    low: float | None
    high: float | None

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.clamp(inputs[0], self.low, self.high)


@dataclass(frozen=True, eq=False)
class MaxPool(Monotone):
    """Maximum over windows of a sample."""

    function: Callable[..., Any]

    def forward(self, *inputs: Tensor) -> Tensor:
        found: Tensor = self.function(inputs[0])
        return found
