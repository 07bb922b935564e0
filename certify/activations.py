"""Softplus, ELU, GELU and SiLU as operations of the graph."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.certify import ops
from robustkit.certify.rules import Build, Value, operation


@dataclass(frozen=True, eq=False)
class Softplus(ops.Monotone):
    """log(1 + exp(beta x)) / beta; torch's own is x above a threshold, where float32 makes no difference."""

    beta: float = 1.0

    def forward(self, *inputs: Tensor) -> Tensor:
        return F.softplus(inputs[0], self.beta, 50.0)


@dataclass(frozen=True, eq=False)
class ELU(ops.Monotone):
    """x where positive, alpha (exp(x) - 1) elsewhere, alpha >= 0."""

    alpha: float = 1.0

    def forward(self, *inputs: Tensor) -> Tensor:
        return F.elu(inputs[0], self.alpha)


class Dipping(ops.Op):
    """Falls to a least value, then rises; its derivative is monotone left of, between and right of two bends."""

    lowest: float
    """Where the least value is."""
    bend: float
    """The derivative is extreme at plus and minus this."""

    @abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """f'(x)"""


@dataclass(frozen=True, eq=False)
class GELU(Dipping):
    """x times the normal distribution function, or its tanh approximation."""

    approximate: Literal["none", "tanh"] = "none"

    @property
    def lowest(self) -> float:  # type: ignore[override]
        return -0.7517915246935645 if self.approximate == "none" else -0.7524614220710162

    @property
    def bend(self) -> float:  # type: ignore[override]
        return math.sqrt(2) if self.approximate == "none" else 1.418504008790828

    def forward(self, *inputs: Tensor) -> Tensor:
        return F.gelu(inputs[0], approximate=self.approximate)

    def derivative(self, x: Tensor) -> Tensor:
        if self.approximate == "none":
            spread: Tensor = torch.special.ndtr(x)
            return spread + x * torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
        scale = math.sqrt(2 / math.pi)
        inner = torch.tanh(scale * (x + 0.044715 * x.pow(3)))
        return 0.5 * (1 + inner) + 0.5 * x * (1 - inner.square()) * scale * (1 + 0.134145 * x.square())


class SiLU(Dipping):
    """x times sigmoid(x)"""

    lowest, bend = -1.2784645427610738, 2.399357280520171

    def forward(self, *inputs: Tensor) -> Tensor:
        return F.silu(inputs[0])

    def derivative(self, x: Tensor) -> Tensor:
        share = torch.sigmoid(x)
        return share * (1 + x * (1 - share))


# ---- what calls become


@operation(F.softplus)
def _softplus_call(build: Build, x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    if beta <= 0 or threshold < 15:
        raise build.refuse(f"beta={beta}, threshold={threshold}: expected beta above 0 and a threshold of at least 15")
    return build.add(Softplus(float(beta)), x)


@operation(nn.Softplus)
def _softplus_module(build: Build, module: nn.Softplus, x: Value) -> Value:
    return _softplus_call(build, x, module.beta, module.threshold)


@operation(F.elu, F.elu_)
def _elu_call(build: Build, x: Value, alpha: float = 1.0, inplace: bool = False) -> Value:
    if alpha < 0:
        raise build.refuse(f"alpha={alpha} makes it no increasing function")
    return build.add(ELU(float(alpha)), x)


@operation(nn.ELU)
def _elu_module(build: Build, module: nn.ELU, x: Value) -> Value:
    return _elu_call(build, x, module.alpha)


@operation(F.gelu)
def _gelu(build: Build, x: Value, approximate: Literal["none", "tanh"] = "none") -> Value:
    return build.add(GELU(approximate), x)


@operation(nn.GELU)
def _gelu_module(build: Build, module: Any, x: Value) -> Value:
    return _gelu(build, x, module.approximate)


def _silu(build: Build, *arguments: Any, **options: Any) -> Value:
    return build.add(SiLU(), next(a for a in (*arguments, *options.values()) if isinstance(a, Value)))


operation(nn.SiLU, F.silu)(_silu)
