"""A network as a short list of typed operations: what every bound is computed on.

`trace(module)` gives a Graph, bound to the live module; `graph.network(shape, dtype)` reads the
weights as they are now and gives a Network: immutable, with input normalisation and batch norm
folded into neighbouring affine operations where that is exact, dropout and identities gone. In
training the network is read anew for every batch, so nothing derived from weights goes stale, and
gradients flow to the module's own parameters.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from robustkit.certify import activations, ops, rules, rules_affine, rules_elementwise, rules_shape, transposed  # noqa: F401 - rules register themselves
from robustkit.certify.fold import alive, fold
from robustkit.certify.tracing import ROWS, Recording, fetch, record
from robustkit.errors import BadInput, first_line


@dataclass(frozen=True, eq=False)
class Node:
    """One operation and where its inputs come from."""

    op: ops.Op
    inputs: tuple[int, ...]
    """Numbers of earlier nodes."""
    shape: tuple[int, ...]
    """Of one sample of the result."""
    place: str
    """Where it stands in the user's model, for messages."""


@dataclass(frozen=True, eq=False)
class Network:
    """Operations in topological order; node 0 is the Input, the last node the logits (N,K)."""

    nodes: tuple[Node, ...]

    @property
    def classes(self) -> int:
        """Number of logits K."""
        return self.nodes[-1].shape[0]

    @cached_property
    def consumers(self) -> Counter[int]:
        """How many times each node's value is used, the output counting once."""
        return Counter([i for node in self.nodes for i in node.inputs] + [len(self.nodes) - 1])

    @property
    def head(self) -> ops.Linear | None:
        """The last layer where it is fully connected: specifications are merged with it."""
        last = self.nodes[-1].op
        return last if isinstance(last, ops.Linear) else None

    @property
    def largest(self) -> int:
        """Values of one sample in the largest intermediate result."""
        return max(torch.Size(node.shape).numel() for node in self.nodes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,K) for x (N, *shape) in the network's dtype."""
        values = [x]
        for node in self.nodes[1:]:
            values.append(node.op.forward(*(values[i] for i in node.inputs)))
        return values[-1]


class Graph:
    """The traced form of a live module, whatever its weights are at the moment.

    Args:
        module: images (N, *shape) -> logits (N,K). Taken in eval mode; never changed.
        mean, std: normalisation in front of the module, broadcasting against images, or None.
    """

    def __init__(self, module: nn.Module, mean: Tensor | None = None, std: Tensor | None = None) -> None:
        if not isinstance(module, nn.Module):
            raise BadInput(f"{type(module).__name__} is no nn.Module: certifiers must see inside the model")
        self.module = module
        self.mean = torch.zeros_like(std) if mean is None and std is not None else mean
        self.std = torch.ones_like(mean) if std is None and mean is not None else std
        self._recordings: dict[tuple[int, ...], Recording] = {}

    def network(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, *, copy: bool = False, folded: bool = True) -> Network:
        """The operations for images of `shape` with the module's present weights in `dtype`.

        Differentiable with respect to the module's parameters; `copy` takes a snapshot instead
        that later training does not change. `folded` says whether scales are folded into their
        neighbours. The first call for a shape traces the module.
        Raises BadInput for what cannot be traced or has no rule.
        """
        shape = tuple(shape)
        if shape not in self._recordings:
            self._trace(shape)
        if not copy:
            return self._lower(self._recordings[shape], shape, dtype, copy, folded)
        with torch.no_grad():
            return self._lower(self._recordings[shape], shape, dtype, copy, folded)

    def _trace(self, shape: tuple[int, ...]) -> None:
        """Record, then check on the example that the operations compute what the module computes."""
        weight = next((p for p in self.module.parameters() if p.is_floating_point()), torch.zeros(()))
        example = torch.rand(ROWS, *shape, generator=torch.Generator().manual_seed(0)).to(weight)
        normalised = example if self.mean is None or self.std is None else (example - _stand(self.mean, shape)) / _stand(self.std, shape)
        recording = record(self.module, normalised.to(weight))
        with torch.no_grad():
            network = self._lower(recording, shape, weight.dtype, False)
            ours, theirs = network.forward(example), recording.truth
            theirs = theirs.to(ours.dtype) if isinstance(theirs, Tensor) else theirs  # under autocast another one
        if len(network.nodes[-1].shape) != 1:
            raise BadInput(
                f"the model {self._name} returns shape {tuple(theirs.shape)}: expected logits ({ROWS}, classes) for {ROWS} images"
            )
        size = _scale(theirs)
        if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * min(1 + size, 100 * size), equal_nan=True):
            gap = float((ours - theirs).abs().max())
            raise BadInput(
                f"the model {self._name} does not compute what its layers say (largest difference {gap:.3g}): "
                "certifiers need it without hooks, randomness, hidden in-place changes or rows that depend on each other"
            )
        self._recordings[shape] = recording

    @property
    def _name(self) -> str:
        return type(self.module).__name__

    def _lower(self, recording: Recording, shape: tuple[int, ...], dtype: torch.dtype, copy: bool, folded: bool = True) -> Network:
        build = Builder(self.module, recording.constants, dtype, copy)
        x = build.start(shape)
        if self.mean is not None and self.std is not None:
            mean, std = build.cast(_stand(self.mean, shape)), build.cast(_stand(self.std, shape))
            x = build.add(ops.Scale(1 / std, -mean / std), x)
        values: dict[fx.Node, Any] = {}
        for node in recording.nodes:
            values[node] = x if node.op == "placeholder" else build.lower(node, values)
        output = values[recording.nodes[-1]]
        if not isinstance(output, rules.Value):
            raise BadInput(
                f"the model {self._name} returns {type(output).__name__}: expected one tensor of logits that depends on the image"
            )
        return Network(tuple(fold(build.nodes, output.index) if folded else alive(build.nodes, output.index)))


def _stand(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Values per channel, broadcasting against one sample."""
    return values.reshape(-1, *[1] * (len(shape) - 1))


class Builder:
    """Turns recorded calls into nodes, with the live module's weights."""

    def __init__(self, module: nn.Module, constants: dict[str, Tensor], dtype: torch.dtype, copy: bool) -> None:
        self.module, self.constants, self.dtype, self.copy = module, constants, dtype, copy
        self.nodes: list[Node] = []
        self.shape: tuple[int, ...] = ()
        self.call, self.place = "input", ""

    def start(self, shape: tuple[int, ...]) -> rules.Value:
        """The Input node."""
        self.shape = shape
        return self.add(ops.Input())

    def add(self, op: ops.Op, *inputs: rules.Value, shape: tuple[int, ...] | None = None) -> rules.Value:
        """Append an operation; `shape` of one sample where it is not that of the call's result."""
        value = rules.Value(len(self.nodes), self.shape if shape is None else shape)
        self.nodes.append(Node(op, tuple(i.index for i in inputs), value.shape, self.place))
        return value

    def cast(self, tensor: Tensor) -> Tensor:
        """A weight in the dtype of the graph, on the device of the module."""
        device = next((p.device for p in self.module.parameters()), tensor.device)
        return tensor.to(device=device, dtype=self.dtype, copy=self.copy)

    def refuse(self, reason: str) -> BadInput:
        """The error for a form of the call that has no rule."""
        return BadInput(f"certifiers cannot handle {self.call} ({self.place}): {reason}")

    def lower(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """The Value (or constant) of one recorded call."""
        args: Any = map_arg(node.args, lambda n: values[n])
        kwargs: Any = map_arg(node.kwargs, lambda n: values[n])
        if node.op == "output":
            return args[0]
        if node.op == "get_attr":
            path = str(node.target)
            return self.constants[path] if path in self.constants else fetch(self.module, path.removeprefix("model."))
        root = _Prefix(self.module)
        rule, self.call, self.place = rules.for_call(node, root), rules.name_of(node, root), node.meta["place"]
        if rule is None:
            raise BadInput(
                f"certifiers do not know the operation {self.call} ({self.place}): known are {rules.KNOWN}; "
                "replace it, or register a rule with robustkit.certify.operation"
            )
        shape = node.meta["shape"]
        if not shape or shape[0] != ROWS:
            raise self.refuse("its result does not keep one row per image")
        self.shape = shape[1:]
        if node.op == "call_module":
            args = (root.get_submodule(str(node.target)), *args)
        try:
            found = rule(self, *args, **kwargs)
        except BadInput:
            raise
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, ZeroDivisionError) as problem:
            raise self.refuse(f"this form of the call is not known ({first_line(problem)})") from problem
        if rules.in_place(node, root) and isinstance(node.args[0], fx.Node):
            values[node.args[0]] = found
        return found


class _Prefix:
    """Looks submodules up in the live module by the names that tracing gave them."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def get_submodule(self, path: str) -> nn.Module:
        return self.module.get_submodule(path.removeprefix("model").removeprefix("."))


def trace(module: nn.Module, *, mean: Tensor | None = None, std: Tensor | None = None) -> Graph:
    """The Graph of a live module (lazily: the work is done when the first images come); raises BadInput."""
    return Graph(module, mean, std)


def _scale(logits: Tensor) -> float:
    """The largest logit (R,K) of those classes whose logits depend on the image: others may be masked by a large number."""
    found = logits.nan_to_num(0, 0, 0)
    alive = (found != found[:1]).any(0)
    return float((found[:, alive] if bool(alive.any()) else found).abs().max())
