"""Rules for pooling, reductions and everything that moves values within a sample."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.certify import ops
from robustkit.certify.rules import Build, Value, operation


def _function(kind: type[Any], function: Callable[..., Any], build: Build, x: Value, *args: Any, **kwargs: Any) -> Value:
    """A call that is kept as it is, with its constant arguments bound."""
    if kwargs.pop("return_indices", False) or any(isinstance(a, (Value, Tensor)) for a in (*args, *kwargs.values())):
        raise build.refuse("only the form with constant arguments and one result is known")
    return build.add(kind(lambda v: function(v, *args, **kwargs)), x)


def _module(kind: type[Any], build: Build, module: nn.Module, x: Value) -> Value:
    if getattr(module, "return_indices", False):
        raise build.refuse("return_indices=True is not known")
    return build.add(kind(module.forward), x)


_AVERAGES: tuple[Any, ...] = (
    F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d
)  # fmt: skip
_MAXIMA: tuple[Any, ...] = (
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d,
    torch.max_pool1d, torch.max_pool2d, torch.max_pool3d,
)  # fmt: skip
for _f in _AVERAGES:
    operation(_f)(partial(_function, ops.Average, _f))
for _f in _MAXIMA:
    operation(_f)(partial(_function, ops.MaxPool, _f))
operation(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)(partial(_module, ops.Average))
operation(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)(partial(_module, ops.Average))
operation(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)(partial(_module, ops.MaxPool))
operation(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)(partial(_module, ops.MaxPool))
operation(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)(partial(_module, ops.Select))


@operation(torch.mean, "mean")
def _mean(build: Build, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    return _reduce(torch.mean, build, x, dim, keepdim)


@operation(torch.sum, "sum")
def _sum(build: Build, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    return _reduce(torch.sum, build, x, dim, keepdim)


def _reduce(function: Callable[..., Tensor], build: Build, x: Value, dim: Any, keepdim: bool) -> Value:
    dims = [dim] if isinstance(dim, int) else list(dim or [0])
    if any(d % (len(x.shape) + 1) == 0 for d in dims):
        raise build.refuse("it goes over the batch; name dimensions of the sample")
    return build.add(ops.Average(lambda v: function(v, dim=dims, keepdim=keepdim)), x)


@operation(torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, "flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten")
def _reshape(build: Build, x: Value, *args: Any, **kwargs: Any) -> Value:
    return build.add(ops.Reshape(build.shape), x)


@operation(nn.Flatten, nn.Unflatten)
def _reshape_module(build: Build, module: nn.Module, x: Value) -> Value:
    return build.add(ops.Reshape(build.shape), x)


@operation(torch.cat, torch.concat)
def _cat(build: Build, values: Any, dim: int = 0) -> Value:
    if not all(isinstance(v, Value) for v in values):
        raise build.refuse("only computed values can be joined, no constants")
    return build.add(ops.Concat(dim % (len(build.shape) + 1)), *values)


@operation(F.pad)
def _pad(build: Build, x: Value, pad: Any, mode: str = "constant", value: float | None = None) -> Value:
    if value or len(pad) > 2 * len(x.shape):
        raise build.refuse("only padding of the sample with zeros or its own values is known")
    return build.add(ops.Select(lambda v: F.pad(v, tuple(pad), mode, value)), x)


@operation(operator.getitem)
def _getitem(build: Build, x: Value, index: Any) -> Value:
    first = index[0] if isinstance(index, tuple) else index
    if first not in (slice(None), Ellipsis):
        raise build.refuse("it picks rows of the batch; begin the index with `:`")
    return build.add(ops.Select(lambda v: v[index]), x)


@operation(torch.permute, "permute", torch.transpose, "transpose")
def _permute(build: Build, x: Value, *dims: Any) -> Value:
    order = tuple(dims[0]) if isinstance(dims[0], (tuple, list)) else dims
    rank = len(x.shape) + 1
    if len(order) == 2 and rank > 2:
        swapped = list(range(rank))
        swapped[order[0]], swapped[order[1]] = swapped[order[1]], swapped[order[0]]
        order = tuple(swapped)
    if order[0] % rank:
        raise build.refuse("it moves the batch dimension")
    return build.add(ops.Select(lambda v: v.permute(order)), x)
