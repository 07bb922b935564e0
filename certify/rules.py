"""The table that says what every torch call becomes in the normalised graph.

A rule is a function (build, *arguments) with the arguments of the call; traced values arrive as
`Value`, everything else (numbers, tensors, the module of a module call) as itself. It returns the
Value that `build.add` gives. The rules themselves are in rules_affine, rules_shape and
rules_elementwise; register more with `operation`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor, fx, nn

from robustkit.certify import ops
from robustkit.errors import BadInput


@dataclass(frozen=True)
class Value:
    """A traced value: node number and shape of one sample."""

    index: int
    shape: tuple[int, ...]


class Build(Protocol):
    """What a rule works with (graph.Builder)."""

    shape: tuple[int, ...]
    """Shape of one sample of the call's result."""

    def add(self, op: ops.Op, *inputs: Value, shape: tuple[int, ...] | None = None) -> Value:
        """Append an operation; `shape` where it is not the call's."""

    def cast(self, tensor: Tensor) -> Tensor:
        """A weight in the dtype of the graph."""

    def refuse(self, reason: str) -> BadInput:
        """The error for a form of the call that has no rule."""


Rule = Callable[..., Any]
R = TypeVar("R", bound=Rule)
TABLE: dict[Any, Rule] = {}
KNOWN = (
    "linear, convolution and its transpose, batch norm in eval mode, average and max pooling, reshaping, slicing, padding, "
    "concatenation, adding, scaling by constants, relu, leaky relu, elu, gelu, silu, softplus, sigmoid, tanh, clamp"
)


def operation(*targets: Any) -> Callable[[R], R]:
    """Register a rule for module classes, functions, or method names of Tensor ("relu")."""

    def register(rule: R) -> R:
        TABLE.update(dict.fromkeys(targets, rule))
        return rule

    return register


def for_module(module: nn.Module) -> Rule | None:
    """The rule of a module, unless its class has a forward of its own."""
    for cls in type(module).__mro__:
        if cls in TABLE:
            same: bool = type(module).forward is getattr(cls, "forward", None) and "forward" not in vars(module)
            return TABLE[cls] if same else None
    return None


def for_call(node: fx.Node, root: nn.Module | Any) -> Rule | None:
    """The rule of a recorded call."""
    return for_module(root.get_submodule(str(node.target))) if node.op == "call_module" else TABLE.get(node.target)


def name_of(node: fx.Node, root: Any) -> str:
    """How a message calls the operation."""
    if node.op == "call_module":
        return type(root.get_submodule(str(node.target))).__name__
    return f"Tensor.{node.target}" if node.op == "call_method" else str(getattr(node.target, "__name__", node.target))


def in_place(node: fx.Node, root: Any) -> bool:
    """Whether the call overwrites its first argument."""
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    name = name_of(node, root)
    return bool(node.kwargs.get("inplace", False)) or (name.endswith("_") and not name.startswith("__"))
