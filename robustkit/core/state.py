"""What a model remembers: buffers and attributes of its layers, and the data that its functions refer to.

Two snapshots, taken after two forwards of the same images, are equal for a model that only stores what it has
computed, and differ for one that counts its calls or keeps statistics of what it has seen.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import sys
import types
import zlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MOST = 100_000
"""Values looked at, at most: a model may refer to a whole program."""

CLONED = 1 << 22
"""Values of the largest tensor that is kept itself; larger ones, and weights, are kept as a checksum."""

NOISE = 1e-5
"""By how much of the largest value a stored activation may differ: two forwards may round otherwise."""

DEEPEST = 60
"""Steps from the model to a value, at most."""

_LIBRARIES = {"torch", "torchvision", "numpy", "scipy", "sklearn", "robustkit", *sys.stdlib_module_names} - {"__main__"}
"""Packages whose own functions and classes are not looked into."""

_WORDS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_PLACES: tuple[type, ...] = (itertools.count, itertools.cycle, type(iter([])), type(iter(())), type(iter(range(1))))
"""Iterators whose place can be read."""

Snapshot = dict[str, Any]
"""Where a value stands -> the value, or what stands for it."""


def snapshot(model: Any) -> Snapshot:
    """What a model, an nn.Module or any callable, remembers at the moment."""
    return dict(itertools.islice(_values("", model, {}), MOST))


def changed(before: Snapshot, after: Snapshot) -> list[str]:
    """Where two snapshots differ, in order."""
    places = [*before, *(place for place in after if place not in before)]
    return [place.strip(".") for place in places if not _same(before.get(place, _Missing), after.get(place, _Missing))]


class _Missing:
    """Stands for a value that is not there."""


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.shape != second.shape or first.dtype != second.dtype:
            return False
        if not first.dtype.is_floating_point or torch.equal(first, second):
            return torch.equal(first, second)
        size = first.double().nan_to_num(0.0, 0.0, 0.0).abs().max()
        return torch.allclose(first.double(), second.double(), rtol=0.0, atol=NOISE * float(size), equal_nan=True)
    if isinstance(first, float) and isinstance(second, float):
        return first == second or (math.isnan(first) and math.isnan(second)) or math.isclose(first, second, rel_tol=NOISE)
    return type(first) is type(second) and bool(first == second)


def _values(place: str, value: Any, seen: dict[int, Any], deep: int = 0) -> Iterator[tuple[str, Any]]:
    """Every value that can be reached, each object once; `seen` keeps what was looked at, so that no id is used twice."""
    if isinstance(value, _WORDS):
        yield place, value
        return
    if id(value) in seen:
        return
    seen[id(value)] = value
    if isinstance(value, (Tensor, np.ndarray)):
        yield place, _array(value)
    elif (drawing := _drawing(value)) is not None:
        yield place, drawing
    elif isinstance(value, _PLACES):
        yield place, repr(value.__reduce__()[1:] if not isinstance(value, itertools.count) else value)
    elif isinstance(value, (set, frozenset)):
        yield place, sorted(repr(one) for one in value if isinstance(one, _WORDS))
        yield f"{place}:length", len(value)
    else:
        if isinstance(value, (list, tuple, deque, dict)):
            yield f"{place}:length", len(value)
        for name, part in _parts(value) if deep < DEEPEST else ():
            yield from _values(f"{place}.{name}" if name else place, part, seen, deep + 1)


def _array(value: Tensor | np.ndarray[Any, Any]) -> Any:
    try:
        found = torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value.detach()
        if found.device.type == "meta":
            return "meta"
        if isinstance(value, nn.Parameter) or found.numel() > CLONED:
            flat = found.cpu().contiguous().flatten()
            return tuple(found.shape), zlib.crc32(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
        return found.clone()
    except (RuntimeError, TypeError, ValueError, NotImplementedError):  # quantised, sparse, texts: only that it is there
        return type(value).__name__


def _drawing(value: Any) -> Any:
    """The state of a generator of random numbers, None for anything else."""
    if isinstance(value, torch.Generator):
        return value.get_state().clone()
    if isinstance(value, random.Random):
        return repr(value.getstate())
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state(legacy=False))
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value holds or refers to, named."""
    if isinstance(value, dict):
        for number, (key, part) in enumerate(list(value.items())):
            yield str(key) if isinstance(key, (str, int)) else str(number), part
    elif isinstance(value, (list, tuple, deque)):
        yield from ((str(number), part) for number, part in enumerate(list(value)))
    elif isinstance(value, nn.Module):
        yield from _of_module(value)
    elif isinstance(value, types.MethodType):
        yield from (("", value.__self__), (value.__func__.__name__, value.__func__))
    elif isinstance(value, (staticmethod, classmethod)):
        yield "", value.__func__
    elif isinstance(value, property):
        yield from (("", one) for one in (value.fget, value.fset) if one is not None)
    elif isinstance(value, functools.partial):
        yield from (("", value.func), ("arguments", value.args), ("options", value.keywords))
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif isinstance(value, types.GeneratorType):
        frame = value.gi_frame
        yield from () if frame is None else (("at", frame.f_lasti), ("locals", dict(frame.f_locals)))
    elif isinstance(value, types.SimpleNamespace):
        yield from vars(value).items()
    elif isinstance(value, type):
        if not _of_library(value):
            yield from ((name, part) for name, part in vars(value).items() if not name.startswith("__") or callable(part))
    elif not isinstance(value, types.ModuleType) and not _of_library(type(value)):
        yield from vars(value).items() if hasattr(value, "__dict__") else ()
        slots = (name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if isinstance(name, str))
        yield from ((name, getattr(value, name)) for name in slots if name != "__dict__" and hasattr(value, name))
        yield type(value).__name__, type(value)


def _of_module(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Its parts and attributes, the mode left out (a check of its own), and what its classes share."""
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)
    yield from module.named_children()
    held = {"training", "_parameters", "_buffers", "_modules"}
    yield from ((name, part) for name, part in list(vars(module).items()) if name not in held)
    yield from ((kind.__name__, kind) for kind in type(module).__mro__ if not _of_library(kind))


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a user's function keeps: closure, defaults, attributes, and the data and functions of its module that it names."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not filled yet
            continue
    if _of_library(function):
        return
    yield from (("defaults", part) for part in (function.__defaults__, function.__kwdefaults__) if part)
    yield from vars(function).items()
    for name in _names(function.__code__):
        found = function.__globals__.get(name)
        if found is not None and not isinstance(found, types.ModuleType):
            yield name, found


def _names(code: types.CodeType) -> list[str]:
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names(part)]
    return [*code.co_names, *inner]


def _of_library(thing: Any) -> bool:
    return str(getattr(thing, "__module__", None) or "builtins").partition(".")[0] in _LIBRARIES
