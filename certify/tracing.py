"""Records with torch.fx what a module computes on images of one shape.

The module is really run on a few example rows while it is recorded, so sizes are plain numbers
(`x.view(x.size(0), -1)`, `if x.dim() == 3`); only branches on pixel values cannot be recorded.
What is run is a copy in eval mode that shares the module's tensors; the module is not touched.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from robustkit.certify import rules
from robustkit.classifier import frozen_copy
from robustkit.errors import BadInput, first_line

ROWS = 5
"""Example rows: a number that is rarely a number of channels, so that lost batch dimensions show."""

_LIBRARIES = (os.path.dirname(torch.__file__), os.path.dirname(os.path.abspath(__file__)))


@dataclass
class Recording:
    """What tracing found: the calls in order, and constants made in forward."""

    nodes: list[fx.Node]
    """meta: `shape` of the example result (None for what is no tensor), `place` (for messages)."""
    constants: dict[str, Tensor]
    truth: Any
    """What the module itself returns for the example."""


class _Root(nn.Module):
    """One input only, so that further arguments of the model's forward keep their defaults."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


class _Proxy(fx.Proxy):
    """A recorded value whose sizes are known."""

    @property
    def value(self) -> Tensor:
        """The example value."""
        found: Tensor = self.node.meta["value"]
        return found

    @property
    def shape(self) -> torch.Size:
        return self.value.shape

    @property
    def ndim(self) -> int:
        return self.value.dim()

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        return self.value.device

    def size(self, dim: int | None = None) -> Any:
        return self.value.size() if dim is None else self.value.size(dim)

    def dim(self) -> int:
        return self.value.dim()

    def numel(self) -> int:
        return self.value.numel()

    def __len__(self) -> int:
        return len(self.value)


class _Tracer(fx.Tracer):
    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self.example, self.running = example, False

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val  # weights stay themselves: what forward computes from them alone is a constant

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self.running else super().call_module(m, forward, args, kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if "forward" in vars(m):
            return False
        return rules.for_module(m) is not None or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> fx.Proxy:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        node = proxy.node
        node.meta["place"] = self._place(kind, target)
        self.running = True
        node.meta["value"] = self._run(node)
        self.running = False
        return proxy

    def _place(self, kind: str, target: Any) -> str:
        layer = str(target) if kind == "call_module" else next(reversed(self.module_stack), "") if self.module_stack else ""
        layer = layer.removeprefix("model").removeprefix(".")
        line = _line(sys._getframe(2))
        return " at ".join(part for part in (f"in layer {layer!r}" if layer else "in the model", line) if part)

    def _run(self, node: fx.Node) -> Any:
        args: Any = map_arg(node.args, self._value)
        kwargs: Any = map_arg(node.kwargs, self._value)
        if node.op == "placeholder":
            return self.example
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target)).forward(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs) if callable(node.target) else None

    def _value(self, node: fx.Node) -> Any:
        return fetch(self.root, str(node.target)) if node.op == "get_attr" else node.meta["value"]


def fetch(root: Any, path: str) -> Any:
    """The attribute at a dotted path."""
    for part in path.split("."):
        root = getattr(root, part)
    return root


def _line(frame: FrameType | None) -> str:
    """file:line of the user's code that is running, "" inside library code only."""
    while frame is not None and frame.f_code is not _Root.forward.__code__:
        name = frame.f_code.co_filename
        if not name.startswith((*_LIBRARIES, "<")):
            return f"{os.path.basename(name)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _raised_at(problem: BaseException) -> str:
    """The last line of the user's code that an exception went through, as " at file:line"."""
    found, step = "", problem.__traceback__
    while step is not None:
        name = step.tb_frame.f_code.co_filename
        if not name.startswith((*_LIBRARIES, "<")):
            found = f" at {os.path.basename(name)}:{step.tb_lineno}"
        step = step.tb_next
    return found


def record(module: nn.Module, example: Tensor) -> Recording:
    """Run the module once on example rows (ROWS, ...) and record its calls; raises BadInput."""
    name = type(module).__name__
    tracer = _Tracer(example.clone())
    copy = frozen_copy(module)
    for mine, theirs in zip(copy.parameters(), module.parameters()):
        mine.requires_grad_(theirs.requires_grad)
    try:
        with torch.enable_grad():
            nodes = list(tracer.trace(_Root(copy)).nodes)
            truth = copy(example.clone())
    except fx.proxy.TraceError as problem:
        raise BadInput(
            f"the model {name} cannot be traced: its forward branches on pixel values{_raised_at(problem)}; "
            "certifiers need a fixed computation: remove the branch, loop or int() on a tensor"
        ) from problem
    except Exception as problem:  # the user's own code ran: it can raise anything
        reason = first_line(problem)
        size = tuple(example.shape[1:])
        raise BadInput(f"the model {name} cannot be traced on images of shape {size}: {reason}{_raised_at(problem)}") from problem
    constants = {n: v for n, v in vars(tracer.root).items() if isinstance(v, Tensor)}
    if any(v.requires_grad for v in constants.values()):
        raise BadInput(f"the model {name} computes weights inside forward: certified training needs torch.nn.utils.parametrize for that")
    for node in nodes:
        value = node.meta.pop("value", None)
        node.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
    return Recording(nodes, constants, truth.detach() if isinstance(truth, Tensor) else truth)
