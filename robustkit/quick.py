"""The network that attacks search with on the CPU: layers replaced by faster ones that give the same numbers up to rounding."""

from __future__ import annotations

from torch import nn

from robustkit import fastgrad, fastlinear
from robustkit.fastgrad import FastGradConv2d
from robustkit.fastlinear import FastLinear


def fits(module: nn.Module) -> bool:
    """Whether a layer has a faster form."""
    return fastgrad.gains(module) or fastlinear.gains(module)


def quicken(module: nn.Module) -> nn.Module:
    """The module itself, its suitable layers turned into their faster form; they keep their tensors."""
    for layer in module.modules():
        if fits(layer):
            layer.__class__ = FastGradConv2d if isinstance(layer, nn.Conv2d) else FastLinear
    return module
