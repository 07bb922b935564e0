"""Rules for activations, and for what does nothing in eval mode."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.certify import ops
from robustkit.certify.rules import Build, Value, operation


def _plain(kind: type[ops.Op] | None, build: Build, *arguments: Any, **options: Any) -> Value:
    """An activation without settings, or (kind None) nothing at all; as a module or a function."""
    x: Value = next(a for a in (*arguments, *options.values()) if isinstance(a, Value))
    return x if kind is None else build.add(kind(), x)


operation(nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")(partial(_plain, ops.ReLU))
operation(nn.Sigmoid, F.sigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_")(partial(_plain, ops.Sigmoid))
operation(nn.Tanh, F.tanh, torch.tanh, torch.tanh_, "tanh", "tanh_")(partial(_plain, ops.Tanh))
operation(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)(partial(_plain, None))
operation("contiguous", "clone", torch.clone)(partial(_plain, None))


@operation(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
def _dropout(build: Build, x: Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> Value:
    if training:
        raise build.refuse("it is random also in eval mode; pass training=self.training")
    return x


@operation(F.leaky_relu, F.leaky_relu_)
def _leaky_relu(build: Build, x: Value, negative_slope: float = 0.01, inplace: bool = False) -> Value:
    if negative_slope < 0:
        raise build.refuse(f"negative_slope={negative_slope} makes it no increasing function")
    return build.add(ops.LeakyReLU(float(negative_slope)), x)


@operation(nn.LeakyReLU)
def _leaky_relu_module(build: Build, module: nn.LeakyReLU, x: Value) -> Value:
    return _leaky_relu(build, x, module.negative_slope)


@operation(torch.clamp, torch.clip, "clamp", "clamp_", "clip")
def _clamp(build: Build, x: Value, min: Any = None, max: Any = None) -> Value:
    if isinstance(min, (Tensor, Value)) or isinstance(max, (Tensor, Value)):
        raise build.refuse("only constant numbers as limits are known")
    return build.add(ops.Clamp(min, max), x)


@operation(F.hardtanh)
def _hardtanh(build: Build, x: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Value:
    return build.add(ops.Clamp(min_val, max_val), x)


@operation(F.relu6)
def _relu6(build: Build, x: Value, inplace: bool = False) -> Value:
    return build.add(ops.Clamp(0.0, 6.0), x)


@operation(nn.Hardtanh, nn.ReLU6)
def _hardtanh_module(build: Build, module: nn.Hardtanh, x: Value) -> Value:
    return build.add(ops.Clamp(module.min_val, module.max_val), x)
