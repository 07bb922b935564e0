"""Finds methods by name: each room's own table, then installed entry points, loaded lazily."""

from __future__ import annotations

import importlib
import warnings
from importlib.metadata import entry_points
from typing import Any

from robustkit.errors import BadInput, unknown
from robustkit.spec import Spec, build, parse

ROOMS = {"attack": "robustkit.attacks", "certifier": "robustkit.certify", "defense": "robustkit.defenses", "wrapper": "robustkit.defenses"}
_GROUPS = {kind: f"robustkit.{kind}s" for kind in ROOMS}
_TABLES = {"wrapper": "WRAPPERS"}


def table(kind: str) -> dict[str, str]:
    """name -> 'module:object' for every known method of a kind (attack, certifier, defense, wrapper)."""
    found = {e.name: e.value for e in entry_points(group=_GROUPS[kind])}
    return found | dict(getattr(importlib.import_module(ROOMS[kind]), _TABLES.get(kind, "TABLE")))


def find(kind: str, name: str) -> Any:
    """The class (or recipe) registered under `name`; raises BadInput with the nearest name."""
    known = table(kind)
    if name not in known:
        raise unknown(kind, name, known)
    module, _, attribute = known[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as problem:
        raise BadInput(f"the {kind} {name} ({known[name]}) cannot be loaded: {problem}") from problem


def every(kind: str) -> dict[str, Any]:
    """All methods of a kind that load; one broken plug-in only warns."""
    found = {}
    for name in sorted(table(kind)):
        try:
            found[name] = find(kind, name)
        except BadInput as problem:
            warnings.warn(str(problem), stacklevel=2)
    return found


def make(kind: str, text: str | Spec) -> Any:
    """An instance from a specification such as `pgd:steps=40`; raises BadInput."""
    spec = parse(text) if isinstance(text, str) else text
    found = find(kind, spec.name)
    return found.from_spec(spec) if hasattr(found, "from_spec") else build(found, spec, kind)
