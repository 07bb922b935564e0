"""How a linear form goes backward through an affine operation: the vector-Jacobian product.

For y = A x + b a form c . y becomes (A^T c) . x. That product is the same for every affine
operation and is computed from `forward` alone, so a new one needs nothing here. The rules below
say the same in a faster way for those that networks are mostly made of. Constants are left out:
bounds are taken around a reference point whose values are known (see backward.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustkit.certify import ops
from robustkit.certify.forms import Dense, Form, Groups, Windows, densify
from robustkit.certify.products import convolved
from robustkit.certify.products import product as times

AdjointRule = Callable[[Any, Form, list[tuple[int, ...]], tuple[int, ...], Groups], list[Form]]
ADJOINT_RULES: dict[type[ops.Op], AdjointRule] = {}

MATRIX = 1 << 17
"""Values up to which a convolution of windows is one matrix."""


def adjoint_rule(*kinds: type[Any]) -> Callable[[AdjointRule], AdjointRule]:
    """Register rule(op, form, shapes of the inputs, shape of the result, groups) -> one form per input."""

    def register(rule: AdjointRule) -> AdjointRule:
        ADJOINT_RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


def adjoint(op: ops.Affine, form: Form, inputs: list[tuple[int, ...]], result: tuple[int, ...], groups: Groups) -> list[Form]:
    """The forms on the inputs (of these shapes) that a form on the result stands for."""
    for kind in type(op).__mro__:
        if kind in ADJOINT_RULES:
            return ADJOINT_RULES[kind](op, form, inputs, result, groups)
    raise AssertionError(f"{type(op).__name__} is not affine")


@adjoint_rule(ops.Affine)
def product(op: ops.Affine, form: Form, inputs: list[tuple[int, ...]], result: tuple[int, ...], groups: Groups) -> list[Form]:
    """The vector-Jacobian product by automatic differentiation, for every affine operation."""
    coef = densify(form, result, groups).coef
    differentiate = torch.is_grad_enabled()
    with torch.enable_grad():
        at = [torch.zeros(len(coef), *shape, dtype=coef.dtype, device=coef.device, requires_grad=True) for shape in inputs]
        found = torch.autograd.grad(op.forward(*at), at, coef, create_graph=differentiate, allow_unused=True)
    return [Dense(torch.zeros_like(x) if g is None else g) for x, g in zip(at, found)]


@adjoint_rule(ops.Linear)
def _linear(op: ops.Linear, form: Form, inputs: list[tuple[int, ...]], result: tuple[int, ...], groups: Groups) -> list[Form]:
    return [Dense(times(densify(form, result, groups).coef, op.weight.t()))]


@adjoint_rule(ops.Reshape)
def _reshape(op: ops.Reshape, form: Form, inputs: list[tuple[int, ...]], result: tuple[int, ...], groups: Groups) -> list[Form]:
    coef = densify(form, result, groups).coef
    return [Dense(coef.reshape(len(coef), *inputs[0]))]


@adjoint_rule(ops.Sum)
def _sum(op: ops.Sum, form: Form, inputs: list[tuple[int, ...]], result: tuple[int, ...], groups: Groups) -> list[Form]:
    if inputs[0] != inputs[1]:
        return product(op, form, inputs, result, groups)
    return [form, form if op.alpha == 1 else replace(form, coef=form.coef * op.alpha)]


@adjoint_rule(ops.Scale)
def _scale(op: ops.Scale, form: Form, inputs: list[tuple[int, ...]], result: tuple[int, ...], groups: Groups) -> list[Form]:
    if isinstance(form, Windows) and op.scale.shape[1:] != (1, 1):
        form = form.dense(result, groups)
    return [replace(form, coef=form.coef * op.scale)]


@adjoint_rule(ops.Conv)
def _conv(op: ops.Conv, form: Form, inputs: list[tuple[int, ...]], result: tuple[int, ...], groups: Groups) -> list[Form]:
    if len(inputs[0]) != 3:
        return product(op, form, inputs, result, groups)
    if isinstance(form, Windows):
        return [_windows(op, form.cleaned(result, groups), inputs[0], groups)]
    return [Dense(transposed(op, form.coef, op.before, (inputs[0][1], inputs[0][2])))]


def _windows(op: ops.Conv, form: Windows, shape: tuple[int, ...], groups: Groups) -> Form:
    size = [(k - 1) * s + d * (w - 1) + 1 for k, s, d, w in zip(form.size, op.stride, op.dilation, op.weight.shape[2:])]
    many, out = math.prod(form.coef.shape[1:]), (size[0], size[1])
    if many * shape[0] * math.prod(size) <= MATRIX:
        matrix = op.matrices.get(form.size)
        if matrix is None:
            unit = torch.eye(many, dtype=form.coef.dtype, device=form.coef.device).view(many, *form.coef.shape[1:])
            matrix = transposed(op, unit, (0, 0), out).flatten(1)
            if not op.weight.requires_grad:
                op.matrices[form.size] = matrix
        coef = times(form.coef.flatten(1), matrix.t()).view(-1, shape[0], *out)
    else:
        coef = transposed(op, form.coef, (0, 0), out)
    stride = (form.stride[0] * op.stride[0], form.stride[1] * op.stride[1])
    origin = (form.origin[0] * op.stride[0] + op.before[0], form.origin[1] * op.stride[1] + op.before[1])
    wider = Windows(coef, form.grid, stride, origin)
    return wider.dense(shape, groups) if wider.covers(shape) else wider


def transposed(op: ops.Conv, coef: Tensor, before: tuple[int, ...], size: tuple[int, int]) -> Tensor:
    """The transposed convolution of coef (R, O, h, w): (R, C, *size), without the `before` first rows and columns.

    With a stride s it is one plain convolution that gives the s x s interleaved parts of the result:
    on a CPU several times faster than torch's own.
    """
    step = op.stride[0]
    if step == op.stride[1] and step > 1 and op.groups == 1 and op.dilation == (1, 1):
        weight = op.interleaved
        reach = weight.shape[2] - 1
        whole = F.pixel_shuffle(convolved(lambda x: F.conv2d(x, weight, padding=reach), coef, weight), step)
    else:
        whole = convolved(lambda x: F.conv_transpose2d(x, op.weight, None, op.stride, 0, 0, op.groups, op.dilation), coef, op.weight)
    missing = [max(0, b + n - have) for b, n, have in zip(before, size, whole.shape[2:])]
    if any(missing):  # values that no window of the convolution reaches
        whole = F.pad(whole, (0, missing[1], 0, missing[0]))
    return whole[:, :, before[0] : before[0] + size[0], before[1] : before[1] + size[1]]
