"""Transposed convolution as an operation of the graph; its adjoint is the general one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.certify import ops
from robustkit.certify.products import convolved
from robustkit.certify.rules import Build, Value, operation


@dataclass(frozen=True, eq=False)
class ConvTranspose(ops.Affine):
    """Transposed convolution over 1, 2 or 3 dimensions."""

    weight: Tensor
    """(in, out / groups, *kernel)"""
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    dilation: tuple[int, ...]

    @cached_property
    def absolute(self) -> Tensor:
        """|W|, computed once for this value of the weights."""
        return self.weight.abs()

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        function: Callable[..., Tensor] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[weight.dim() - 3]
        options = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return convolved(lambda x: function(x, weight, bias, *options), x, weight)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._convolve(inputs[0], self.weight, self.bias)

    def magnitude(self, *widths: Tensor) -> Tensor:
        return self._convolve(widths[0], self.absolute)


def _each(size: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    found = (size,) if isinstance(size, int) else tuple(size)
    return found * dims if len(found) == 1 else found


@operation(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
@operation(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
def _conv_transpose(
    build: Build,
    x: Value,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    output_padding: int | tuple[int, ...] = 0,
    groups: int = 1,
    dilation: int | tuple[int, ...] = 1,
) -> Value:
    dims = weight.dim() - 2
    steps, pad, more = (_each(size, dims) for size in (stride, padding, output_padding))
    shift = None if bias is None else build.cast(bias)
    return build.add(ConvTranspose(build.cast(weight), shift, steps, pad, more, groups, _each(dilation, dims)), x)


@operation(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def _conv_transpose_module(build: Build, module: nn.ConvTranspose2d, x: Value, output_size: None = None) -> Value:
    if output_size is not None or module.padding_mode != "zeros":
        raise build.refuse("only the form without output_size, padded with zeros, is known")
    sizes = (module.stride, module.padding, module.output_padding)
    return _conv_transpose(build, x, module.weight, module.bias, *sizes, module.groups, module.dilation)  # type: ignore[arg-type]
