"""What makes an object of the user's what it is: a digest of its class, its code, its parameters and all they hold.

Two models may share their weights, two threats their name and budget, and yet compute something else: the
results of one must never be read back for the other. What counts is what decides the answer: the byte code
of the user's own functions (comments and line numbers do not matter, other releases of Python may), their
defaults, closures and the globals that they name, and every attribute. Of libraries only names count.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import sys
import types
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (type(None), bool, int, float, complex, str, bytes, Fraction, PurePath, torch.dtype, torch.device, torch.Size, range, slice)
_LIBRARIES = frozenset({"robustkit", "torch", "torchvision", "numpy", "scipy", "sklearn", "foolbox", "eagerpy", "safetensors"})
_MOST, _DEEPEST = 200_000, 60
"""Objects that are looked at, and levels: enough for any network, and an end for what has none."""

_SKIPPED = frozenset({"training", "__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "_abc_impl", "__firstlineno__"})


def identity(*things: Any) -> str:
    """Hex digest (32 signs) of what decides how objects behave. The same in another process with the same Python."""
    reader = _Reader()
    for thing in things:
        reader.read(thing, 0)
    return reader.made.hexdigest()[:32]


def from_library(kind: Any) -> bool:
    """Whether a class or function is none of the user's own."""
    top = str(getattr(kind, "__module__", "") or "").partition(".")[0]
    return top in _LIBRARIES or (top in sys.stdlib_module_names and top != "__main__")


def _name(kind: Any) -> str:
    return f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', type(kind).__qualname__)}"


class _Reader:
    """Walks an object and hashes what it meets, each object once."""

    def __init__(self) -> None:
        self.made = hashlib.sha256()
        self.seen: dict[int, int] = {}
        self.kept: list[Any] = []
        """What was met, so that no address is used twice."""

    def say(self, text: str) -> None:
        self.made.update(text.encode("utf-8", "surrogatepass") + b"\n")

    def read(self, value: Any, depth: int) -> None:
        if isinstance(value, (*_PLAIN, enum.Enum)):
            return self.say(f"{type(value).__name__} {value!r}")
        if id(value) in self.seen:
            return self.say(f"again {self.seen[id(value)]}")
        self.seen[id(value)] = len(self.seen)
        self.kept.append(value)
        if depth > _DEEPEST or len(self.seen) > _MOST:
            return self.say(f"further {_name(type(value))}")
        self._object(value, depth + 1)

    def all(self, values: Iterable[Any], depth: int) -> None:
        for value in values:
            self.read(value, depth)

    def mapping(self, values: Mapping[Any, Any], depth: int) -> None:
        keys = sorted(values) if all(isinstance(key, str) for key in values) else list(values)
        self.say(f"mapping {len(keys)}")
        for key in keys:
            self.read(key, depth)
            self.read(values[key], depth)

    def _object(self, value: Any, depth: int) -> None:
        if isinstance(value, Tensor):
            self._array(value.detach().cpu().contiguous())
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            self.say(f"array {value.dtype.str} {value.shape}")
            self.made.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, types.ModuleType):
            self.say(f"module {value.__name__}")
        elif isinstance(value, functools.partial):
            self.all((value.func, value.args, value.keywords), depth)
        elif isinstance(value, types.MethodType):
            self.all((value.__func__, value.__self__), depth)
        elif isinstance(value, (staticmethod, classmethod)):
            self.read(value.__func__, depth)
        elif isinstance(value, property):
            self.all((value.fget, value.fset), depth)
        elif isinstance(value, functools.cached_property):
            self.read(value.func, depth)
        elif isinstance(value, types.FunctionType):
            self._function(value, depth)
        elif isinstance(value, type):
            self._class(value, depth)
        elif isinstance(value, Mapping):
            self.mapping(value, depth)
        elif isinstance(value, (list, tuple)):
            self.say(f"{type(value).__name__} {len(value)}")
            self.all(value, depth)
        elif isinstance(value, (set, frozenset)):
            self.say(f"set {sorted(map(repr, value))}")
        elif isinstance(value, nn.Module):
            self._module(value, depth)
        else:
            self._instance(value, depth)

    def _array(self, value: Tensor) -> None:
        self.say(f"tensor {value.dtype} {tuple(value.shape)} {value.layout}")
        if value.layout == torch.strided and not value.is_quantized and not value.is_meta:
            self.made.update(value.reshape(-1).view(torch.uint8).numpy().data)
        else:
            self.say(repr(value))

    def _function(self, value: types.FunctionType, depth: int) -> None:
        self.say(f"function {_name(value)}")
        if from_library(value):
            return
        self._code(value.__code__, depth)
        self.all((value.__defaults__, value.__kwdefaults__), depth)
        for cell in value.__closure__ or ():
            try:
                self.read(cell.cell_contents, depth)
            except ValueError:
                self.say("empty cell")
        for name in _names(value.__code__):
            if name in value.__globals__:
                self.read(value.__globals__[name], depth)

    def _code(self, code: types.CodeType, depth: int) -> None:
        self.say(f"code {code.co_name} {code.co_names} {code.co_varnames} {code.co_freevars}")
        self.made.update(code.co_code)
        for constant in code.co_consts:
            self._code(constant, depth) if isinstance(constant, types.CodeType) else self.read(constant, depth)

    def _class(self, value: type, depth: int) -> None:
        self.say(f"class {_name(value)}")
        if from_library(value):
            return
        self.all(value.__bases__, depth)
        self.mapping({name: one for name, one in vars(value).items() if name not in _SKIPPED and not _generated(one)}, depth)

    def _module(self, value: nn.Module, depth: int) -> None:
        kind, held = type(value), dict(vars(value))
        self.read(kind, depth)
        for name in ("_parameters", "_buffers", "_modules"):
            self.mapping(held.pop(name, {}), depth)
        hooks = [hook for name in list(held) if "hooks" in name for hook in _values(held.pop(name))]
        self.all(hooks, depth)
        code = held.get("_code") or (getattr(value, "code", None) if isinstance(value, torch.jit.ScriptModule) else None)
        self.say(str(code))  # of a graph: two may have the same class
        self.mapping(_attributes(kind, held, plain=from_library(kind)), depth)

    def _instance(self, value: Any, depth: int) -> None:
        kind = type(value)
        self.read(kind, depth)
        top = kind.__module__.partition(".")[0]
        if top in sys.stdlib_module_names and top != "__main__":
            return  # locks, files, loggers
        held = dict(getattr(value, "__dict__", {}))
        held |= {name: getattr(value, name) for one in kind.__mro__ for name in _slots(one) if hasattr(value, name)}
        self.mapping(_attributes(kind, held, plain=top == "robustkit" and not held.get("__dataclass_fields__")), depth)


def _attributes(kind: type, held: Mapping[str, Any], *, plain: bool) -> dict[str, Any]:
    """Attributes that are no cache; of a library's object those that are plain, or the user's own functions and networks."""
    cached = {name for one in kind.__mro__ for name, held_ in vars(one).items() if isinstance(held_, functools.cached_property)}
    found = {str(name): value for name, value in held.items() if name not in _SKIPPED and name not in cached}
    if not plain:
        return found
    own = (*_PLAIN, tuple, nn.Module, types.FunctionType, types.MethodType, functools.partial)
    return {name: value for name, value in found.items() if isinstance(value, own) or not from_library(type(value))}


def _names(code: types.CodeType) -> list[str]:
    """Names that a function and those inside it look up."""
    inner = [name for constant in code.co_consts if isinstance(constant, types.CodeType) for name in _names(constant)]
    return sorted({*code.co_names, *inner})


def _generated(value: Any) -> bool:
    """Methods that dataclasses write: they follow from the fields, and their code is no file's."""
    return isinstance(value, types.FunctionType) and value.__code__.co_filename == "<string>"


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _values(hooks: Any) -> list[Any]:
    return list(hooks.values()) if isinstance(hooks, Mapping) else []
