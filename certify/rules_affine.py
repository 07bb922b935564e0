"""Rules for what is affine: linear layers, convolutions, batch norm, arithmetic with constants."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.certify import ops
from robustkit.certify.rules import Build, Value, operation


@operation(F.linear)
def _linear(build: Build, x: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
    return build.add(ops.Linear(build.cast(weight), None if bias is None else build.cast(bias)), x)


@operation(nn.Linear)
def _linear_module(build: Build, module: nn.Linear, x: Value) -> Value:
    return _linear(build, x, module.weight, module.bias)


@operation(operator.matmul, torch.matmul, "matmul")
def _matmul(build: Build, x: Any, weight: Any) -> Value:
    if not isinstance(x, Value) or not isinstance(weight, Tensor) or weight.dim() != 2:
        raise build.refuse("only a traced value times a constant matrix is linear")
    return _linear(build, x, weight.T)


def _each(size: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    found = (size,) if isinstance(size, int) else tuple(size)
    return found * dims if len(found) == 1 else found


@operation(F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d)
def _conv(
    build: Build,
    x: Value,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Value:
    dims = weight.dim() - 2
    pad = padding if isinstance(padding, str) else _each(padding, dims)
    shift = None if bias is None else build.cast(bias)
    return build.add(ops.Conv(build.cast(weight), shift, _each(stride, dims), pad, _each(dilation, dims), groups), x)


@operation(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _conv_module(build: Build, module: nn.Conv2d, x: Value) -> Value:
    if module.padding_mode != "zeros":
        raise build.refuse(f"padding_mode={module.padding_mode!r}, only zeros is known")
    return _conv(build, x, module.weight, module.bias, module.stride, module.padding, module.dilation, module.groups)


@operation(F.batch_norm)
def _batch_norm(
    build: Build,
    x: Value,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Value:
    if training or mean is None or var is None:
        raise build.refuse("it normalises by the statistics of the batch, so rows depend on each other; use running statistics")
    scale = torch.rsqrt(build.cast(var) + eps)
    scale = scale if weight is None else scale * build.cast(weight)
    shift = -build.cast(mean) * scale
    parts = shift.abs() if bias is None else shift.abs() + build.cast(bias).abs()
    shift = shift if bias is None else shift + build.cast(bias)
    per_channel = (-1, *[1] * (len(x.shape) - 1))
    return build.add(ops.Scale(*(t.view(per_channel) for t in (scale, shift, parts))), x)


@operation(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def _batch_norm_module(build: Build, module: nn.BatchNorm2d, x: Value) -> Value:
    return _batch_norm(build, x, module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps)


def _scale(build: Build, x: Value, scale: Any, shift: Any) -> Value:
    """x * scale + shift for numbers or constant tensors that do not depend on the sample."""
    parts = []
    for part in (scale, shift):
        part = build.cast(torch.as_tensor(part))
        rank = len(x.shape)
        if part.dim() > rank and part.shape[0] == 1:
            part = part.squeeze(0)
        part = part.view(*[1] * (rank - part.dim()), *part.shape) if part.dim() <= rank else part
        if part.dim() != rank or any(size not in (1, wide) for size, wide in zip(part.shape, x.shape)):
            raise build.refuse(f"the constant of shape {tuple(part.shape)} does not fit one sample {x.shape}")
        parts.append(part)
    return build.add(ops.Scale(parts[0], parts[1]), x, shape=x.shape)


@operation(operator.add, operator.iadd, torch.add, "add", "add_")
def _add(build: Build, x: Any, y: Any, *, alpha: float = 1) -> Value:
    if isinstance(x, Value) and isinstance(y, Value):
        if len(x.shape) != len(y.shape):
            raise build.refuse(f"shapes {x.shape} and {y.shape} have different numbers of dimensions")
        return build.add(ops.Sum(float(alpha)), x, y)
    return _scale(build, x, 1.0, y * alpha) if isinstance(x, Value) else _scale(build, y, alpha, x)


@operation(operator.sub, operator.isub, torch.sub, "sub", "sub_")
def _sub(build: Build, x: Any, y: Any, *, alpha: float = 1) -> Value:
    return _add(build, x, y, alpha=-alpha)


@operation(operator.mul, operator.imul, torch.mul, "mul", "mul_")
def _mul(build: Build, x: Any, y: Any) -> Value:
    if isinstance(x, Value) and isinstance(y, Value):
        raise build.refuse("the product of two computed values is not known")
    return _scale(build, x, y, 0.0) if isinstance(x, Value) else _scale(build, y, x, 0.0)


@operation(operator.truediv, operator.itruediv, torch.div, "div", "div_")
def _div(build: Build, x: Any, y: Any) -> Value:
    if isinstance(y, Value):
        raise build.refuse("dividing by a computed value is not known")
    return _scale(build, x, 1.0 / y, 0.0)


@operation(operator.neg, torch.neg, "neg")
def _neg(build: Build, x: Value) -> Value:
    return _scale(build, x, -1.0, 0.0)
