"""Faster input gradients on the CPU: the same numbers up to rounding, for the search only.

The input gradient of a convolution that sees few channels (the first one of an image classifier)
is a transposed convolution that CPU kernels do badly. As one matrix product and a fold it takes a
fifth of the time, which makes a whole attack step on a small network about 1.5 times as fast. The
forward is torch's own, bit for bit; the Judge and the certifiers use the unchanged network.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

FEW = 4
"""Most input channels for which the matrix product is the faster way."""


class _FewChannels(torch.autograd.Function):
    """A convolution whose backward computes the input gradient only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d) -> Tensor:
        ctx.conv, ctx.size = conv, x.shape[2:]
        ctx.save_for_backward(weight)
        return functional.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        conv: nn.Conv2d = ctx.conv
        patches = weight.flatten(1).t() @ gradients[0].flatten(2)
        found = functional.fold(patches, ctx.size, conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # type: ignore[arg-type]
        return found, None, None, None


class FewChannelConv2d(nn.Conv2d):
    """nn.Conv2d with the fast input gradient where one is asked for."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.requires_grad and torch.is_grad_enabled() and input.dim() == 4 and not weight.requires_grad:
            found: Tensor = _FewChannels.apply(input, weight, bias, self)  # type: ignore[no-untyped-call]
            return found
        slow: Tensor = super()._conv_forward(input, weight, bias)
        return slow


def fits(module: nn.Module) -> bool:
    """Whether a layer gains from it."""
    if type(module) is not nn.Conv2d or module.in_channels > FEW:
        return False
    return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def quicken(module: nn.Module) -> nn.Module:
    """The module itself, its suitable layers turned into FewChannelConv2d."""
    for layer in module.modules():
        if fits(layer):
            layer.__class__ = FewChannelConv2d
    return module
