"""Defenses around a model, as a user names them: `NAME:(MODEL),option=value`, for example knn:(zoo:mnist-standard),bank=2000.

A wrapper is a frozen dataclass of options with a method `wrap` from a Classifier to a Classifier. The
core finds it by name: the table `WRAPPERS` of the defenses, then installed entry points.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from robustkit import registry
from robustkit.classifier import Classifier
from robustkit.errors import BadInput
from robustkit.spec import Spec, parse


def is_wrapper(name: str) -> bool:
    """Whether a wrapper of this name is registered."""
    return name in registry.table("wrapper")


def split(name: str, rest: str) -> tuple[str, Spec]:
    """The wrapped model's specification and the options of `(MODEL),option=value`; raises BadInput."""
    if not rest.startswith("("):
        raise BadInput(f"{name}:{rest}: which model? write {name}:(MODEL),option=value, for example {name}:(zoo:mnist-standard)")
    depths = list(itertools.accumulate({"(": 1, ")": -1}.get(letter, 0) for letter in rest))
    if 0 not in depths:
        raise BadInput(f"{name}:{rest}: a bracket is open: write {name}:(MODEL),option=value")
    at = depths.index(0)
    inner, options = rest[1:at], rest[at + 1 :].strip()
    if options and not options.startswith(","):
        raise BadInput(f"{name}:{rest}: {options!r} follows the model: write {name}:({inner}),option=value")
    options = options.removeprefix(",").strip()
    return inner, parse(f"{name}:{options}" if options else name)


def wrapped_model(name: str, rest: str, load: Callable[[str], Classifier]) -> Classifier:
    """The model that wrapper `name` makes of the one named in `rest`; raises BadInput."""
    inner, spec = split(name, rest)
    wrapper: Any = registry.make("wrapper", spec)
    made = wrapper.wrap(load(inner))
    assert isinstance(made, Classifier)
    return made
