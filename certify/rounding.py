"""Rounding of the deployed network: how far float32 may be off at every node, whatever the order of summation.

A bound in real arithmetic says nothing of the float32 logits that a user sees: networks can be built
whose certified float32 forward errs (Jia & Rinard 2021, arXiv 2003.03021; Zombori et al. 2021, ICLR).
Here the values that certificates speak of are the rounded ones. Let v_k be the value that
the float32 network has at node k for an image of the input set, and u = 2^-24. Then

    v_k = f_k(v_i) + e,    |e| <= E_k = gamma(n) T_k + n tiny,    gamma(n) = n u / (1 - n u)

For a sum of n products gamma(n) bounds the error in any order, with or without fused multiply-add,
relative to T_k, the sum of the terms' sizes |A| |v_i| + |b| (Higham, Accuracy and Stability of Numerical
Algorithms, 2002, 3.1 and 4.2); |v_i| is read off the intervals known so far, and `tiny` is what underflow
loses, flushed to zero or not. A node's error is thus a small box that the adversary may move in as
well, and nothing else changes:

- intervals: v_k lies in f_k(interval of v_i) widened by E_k;
- backward bounds: c . v_k >= c . f_k(v_i) - |c| . E_k, one more constant at every node that is passed.

The bounds are computed in float64, with u' = 2^-53 and errors of their own. Forward they are those
above. Backward, a rounded A^T c is off by at most gamma'(m) |A|^T |c|, which the values make no more than
gamma'(m) |c| . |A| |v|; constants and least values are sums of such terms. All of it is at most
gamma'(m) |c| . T_k at the node it comes from, where m counts the operations of the whole computation.
So E_k contains gamma'(m) T_k too, with m from the sizes of all nodes; against u it is hardly seen.

What is taken for granted: exp, tanh, erf and the functions made of them are within 8 units in the last
place of their terms (tests compare them with exact values); kernels sum products and do not transform
them (no Winograd, FFT or TF32 kernels); the module runs as written, one operation after another, so that
nodes are not folded into each other here either; constants that it computes in forward are those of the trace.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from robustkit.certify import ops
from robustkit.certify.activations import ELU, GELU, SiLU, Softplus
from robustkit.certify.graph import Network, Node
from robustkit.certify.interval import Interval
from robustkit.certify.transposed import ConvTranspose
from robustkit.errors import BadInput

SINGLE, DOUBLE = 2.0**-24, 2.0**-53
"""Unit roundoff of the deployed network and of the bounds."""

TINY = 2.0**-120
"""More than the underflow of one operation loses."""

LARGEST = 2.0**126
"""Sums of terms above this may overflow in float32: nothing is proven there."""

LIBRARY = 16
"""Roundings that an activation made of library functions counts as."""

LINES = 2.0**-40
"""More than the points at which lines touch curved activations are off by, as a share of what lines are computed from."""

Rule = Callable[[Any, list[Tensor], Tensor], tuple[int, Tensor]]
RULES: dict[type[ops.Op], Rule] = {}


def rounding_rule(*kinds: type[Any]) -> Callable[[Rule], Rule]:
    """Register rule(op, sizes of the inputs, size of the result) -> (n, T) for operation types and their subclasses.

    The float32 result is then within gamma(n) T of the exact function of its float32 inputs. Sizes are
    upper bounds of absolute values, (N, ...) float64; T has the shape of the result.
    """

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


def gamma(count: float, unit: float) -> float:
    """Largest relative error of `count` roundings, infinite where the theory ends."""
    return count * unit / (1 - count * unit) if count * unit < 0.5 else float("inf")


@rounding_rule(ops.Linear)
def _linear(op: ops.Linear, sizes: list[Tensor], result: Tensor) -> tuple[int, Tensor]:
    found = op.magnitude(*sizes)
    return op.weight.shape[1] + 2, found if op.bias is None else found + op.bias.abs()


@rounding_rule(ops.Conv, ConvTranspose)
def _conv(op: ops.Conv | ConvTranspose, sizes: list[Tensor], result: Tensor) -> tuple[int, Tensor]:
    found, spread = op.magnitude(*sizes), op.weight.shape[2:].numel()
    terms = spread * (op.weight.shape[1] if isinstance(op, ops.Conv) else op.weight.shape[0] // op.groups)
    return terms + 2, found if op.bias is None else found + op.bias.abs().view(-1, *[1] * (found.dim() - 2))


@rounding_rule(ops.Scale)
def _scale(op: ops.Scale, sizes: list[Tensor], result: Tensor) -> tuple[int, Tensor]:
    """The scale and the shift may have been made in float32 from a few numbers each."""
    return LIBRARY, op.magnitude(*sizes) + (op.shift.abs() if op.parts is None else op.parts)


@rounding_rule(ops.Sum)
def _sum(op: ops.Sum, sizes: list[Tensor], result: Tensor) -> tuple[int, Tensor]:
    return 4, op.magnitude(*sizes)


@rounding_rule(ops.Average)
def _average(op: ops.Average, sizes: list[Tensor], result: Tensor) -> tuple[int, Tensor]:
    return window(op, tuple(sizes[0].shape[1:]), sizes[0].device) + 3, op.forward(*sizes)


@lru_cache(maxsize=256)
def window(op: ops.Average, shape: tuple[int, ...], device: torch.device) -> int:
    """The most values that one result averages: it sees a box of them, so each dimension is counted by itself."""
    count = 1
    for d, size in enumerate(shape, start=1):
        noticed: Tensor | int = 0
        for i in range(size):
            image = torch.zeros(1, *shape, dtype=torch.float64, device=device)
            image.narrow(d, i, 1).fill_(1)
            noticed = noticed + (op.forward(image) > 0)
        count *= max(1, int(torch.as_tensor(noticed).max()))
    return count


@rounding_rule(ops.Reshape, ops.Select, ops.Concat, ops.ReLU, ops.MaxPool)
def _exact(op: ops.Op, sizes: list[Tensor], result: Tensor) -> tuple[int, Tensor]:
    return 0, op.forward(*sizes)


@rounding_rule(ops.Clamp)
def _clamp(op: ops.Clamp, sizes: list[Tensor], result: Tensor) -> tuple[int, Tensor]:
    """Limits such as 0.1 are rounded."""
    return 2, sizes[0] + max((abs(end) for end in (op.low, op.high) if end is not None), default=0.0)


@rounding_rule(ops.LeakyReLU)
def _leaky(op: ops.LeakyReLU, sizes: list[Tensor], result: Tensor) -> tuple[int, Tensor]:
    return 4, sizes[0] * op.slope


@rounding_rule(ops.Sigmoid, ops.Tanh)
def _relative(op: ops.Op, sizes: list[Tensor], result: Tensor) -> tuple[int, Tensor]:
    return LIBRARY, result


@rounding_rule(ELU)
def _elu(op: ELU, sizes: list[Tensor], result: Tensor) -> tuple[int, Tensor]:
    return LIBRARY, result + op.alpha


@rounding_rule(Softplus)
def _softplus(op: Softplus, sizes: list[Tensor], result: Tensor) -> tuple[int, Tensor]:
    return LIBRARY, result + sizes[0] + 1 / op.beta


@rounding_rule(GELU, SiLU)
def _gated(op: ops.Op, sizes: list[Tensor], result: Tensor) -> tuple[int, Tensor]:
    return LIBRARY, sizes[0]


def _rule(node: Node) -> Rule:
    for kind in type(node.op).__mro__:
        if kind in RULES:
            return RULES[kind]
    raise BadInput(
        f"no rounding error is known for {type(node.op).__name__} ({node.place}): register one with "
        "robustkit.certify.rounding_rule, or leave out --sound"
    )


def check_rounding(network: Network) -> None:
    """Raises BadInput for the first operation whose rounding is not known."""
    for node in network.nodes[1:]:
        _rule(node)


def effort(network: Network) -> float:
    """More than the operations that any number of the float64 bounds goes through."""
    return 2.0**16 + 8.0 * sum(torch.Size(node.shape).numel() for node in network.nodes)


def lines_apart(network: Network) -> float:
    """By which share of what they are computed from lines are moved apart: more than float64 rounds, whatever their slopes."""
    return LINES + gamma(effort(network), DOUBLE)


def size_of(found: Interval) -> Tensor:
    """Upper bound of the absolute values in an interval, and of differences of two of them."""
    return found.centre.abs() + found.width


def error_of(network: Network, number: int, inputs: list[Interval], result: Interval, reach: Tensor) -> Tensor:
    """E_k (N, *shape) of node `number`, for rounded values in these intervals; `reach` (N,) the radius of the input set."""
    node, sizes, after = network.nodes[number], [size_of(found) for found in inputs], size_of(result)
    count, terms = _rule(node)(node.op, sizes, after)
    own = gamma(effort(network) + count, DOUBLE) * (1 + reach).view(-1, *[1] * len(node.shape))
    about = terms + after
    if len(sizes) == 1 and sizes[0].shape == after.shape:
        about = about + sizes[0]
    error = (gamma(count, SINGLE) * terms if count else 0.0) + own * about + (count + 1) * TINY
    return torch.where((terms < LARGEST) & (after < LARGEST), error * (1 + 2.0**-20), torch.inf)


def input_error(network: Network, box: Interval, reach: Tensor) -> tuple[Tensor, Interval]:
    """E_0 and the input box with it: images are exact, the float64 bounds on them are not."""
    own = gamma(effort(network), DOUBLE) * (1 + reach).view(-1, *[1] * (box.centre.dim() - 1))
    error = own * (1 + size_of(box))
    return error, widened(box, error)


def widened(found: Interval, error: Tensor) -> Interval:
    """The interval with `error` more on both sides."""
    return Interval(found.centre, found.width + 2 * error)
