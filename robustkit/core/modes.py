"""The mode of every layer: which of them compute something else in training mode, and which are in it."""

from __future__ import annotations

from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

_WITHOUT = ("torch.nn.modules.transformer", "torch.nn.parallel", "torch._", "torch.fx", "robustkit.models.archives")
"""Modules of layers that read their mode only to choose a faster way, or to hand it on."""

_SCRIPTED = ("Dropout", "BatchNorm", "InstanceNorm", "RReLU")
"""Kinds of layers with a mode in scripted models, of which only the name of the class is left."""


def layers_in_training(model: Any) -> list[str]:
    """Names and kinds of the layers with a mode that are in training mode; none of what is no nn.Module."""
    if not isinstance(model, nn.Module):
        return []
    return [f"{name or 'model'}: {type(part).__name__}" for name, part in model.named_modules() if part.training and has_mode(part)]


def has_mode(layer: nn.Module) -> bool:
    """Whether a layer itself computes something else in training mode; what its parts do is theirs."""
    if isinstance(layer, nn.modules.dropout._DropoutNd):
        return layer.p > 0
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm):
        return layer.track_running_stats
    if isinstance(layer, (nn.MultiheadAttention, nn.RNNBase)):
        return layer.dropout > 0
    if isinstance(layer, nn.RReLU):
        return layer.lower != layer.upper
    if isinstance(layer, torch.jit.ScriptModule):
        return any(kind in str(getattr(layer, "original_name", "")) for kind in _SCRIPTED)
    if type(layer).__module__.startswith(_WITHOUT):
        return False
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return True
    return any(_looks(kind) for kind in type(layer).__mro__ if kind not in nn.Module.__mro__)


def _looks(kind: type) -> bool:
    """Whether a class sets what its mode means (`train`), or one of its functions reads or sets it (`self.training`)."""
    if "train" in vars(kind) and not kind.__module__.startswith("torch."):
        return True
    functions = (_function(member) for member in vars(kind).values())
    return any(_names(found.__code__, "training") for found in functions if found is not None)


def _function(member: Any) -> FunctionType | None:
    found = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    return found if isinstance(found, FunctionType) else None


def _names(code: CodeType, word: str) -> bool:
    return word in code.co_names or any(isinstance(part, CodeType) and _names(part, word) for part in code.co_consts)


def statistics(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The buffers of the layers with a mode, and copies: a forward in training mode overwrites them."""
    return [(buffer, buffer.clone()) for part in model.modules() if has_mode(part) for buffer in part.buffers(recurse=False)]


def hold_eval(model: nn.Module) -> list[str]:
    """Put all layers in eval mode, and hold those with a mode there whatever a forward sets; the layers that were in training mode."""
    found = layers_in_training(model)
    for part in model.modules():
        part.training = False
        if has_mode(part):
            part.register_forward_pre_hook(_to_eval)
    return found


def _to_eval(layer: nn.Module, _: Any) -> None:
    layer.training = False
