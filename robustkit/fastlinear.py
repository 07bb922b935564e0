"""Faster linear layers on x86 CPUs: the same numbers up to rounding.

torch multiplies dense matrices with MKL, which keeps its fastest kernels from other makers' processors;
oneDNN, which torch has for convolutions, does not: there it is twice as fast. Rounding differs from
torch's in the last bits, but not with the batch. Attacks search through such layers, bounds are
propagated with `linear`; the Judge uses the unchanged network.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LEAST = 1024
"""Fewest weights of a layer for which the call pays."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b for x (..., in) and weights (out, in): torch's own where oneDNN has nothing to offer or a gradient is wanted."""
    graph = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return functional.linear(x, weight, bias) if graph or not serves(x, weight) else _product(x, weight, bias)


def linear_of_inputs(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same for weights that stand: a gradient of x may be wanted too, the first one."""
    if weight.requires_grad or not serves(x, weight):
        return functional.linear(x, weight, bias)
    if x.requires_grad and torch.is_grad_enabled():
        found: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return found
    return _product(x, weight, bias)


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN has something to offer for inputs and weights like these."""
    fits = x.device.type == "cpu" and x.dtype == torch.float32 and weight.numel() >= LEAST
    return fits and not torch.is_autocast_enabled("cpu") and _has_onednn()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


class _Linear(torch.autograd.Function):
    """A linear layer whose backward computes the input gradient only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        if torch._C._functorch.is_batchedtensor(gradients[0]):  # several gradients at once: no rule of vmap for oneDNN's operation
            return gradients[0] @ weight, None, None
        return _product(gradients[0], weight.t(), None), None, None


class FastLinear(nn.Linear):
    """nn.Linear by oneDNN, forward and input gradient, for float32 inputs and frozen weights."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear_of_inputs(input, self.weight, self.bias)


def gains(module: nn.Module) -> bool:
    """Whether a layer becomes faster: a plain linear one of some size, on an x86 CPU whose torch has oneDNN."""
    if type(module) is not nn.Linear or module.weight.dtype != torch.float32 or module.weight.numel() < LEAST:
        return False
    return _has_onednn()


@cache
def _has_onednn() -> bool:
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")
