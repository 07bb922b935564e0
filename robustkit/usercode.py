"""The user's own code, named as `package.module:callable` and imported as typed."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustkit.errors import BadInput, RobustkitError, first_line, unknown
from robustkit.torchvision_compat import declare_operators

_NAMED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True)
class UserCode:
    """What stands behind a name such as `mymodule:make`."""

    name: str
    target: Any
    sha256: str | None
    """Hash of the module's source file, taken before it was imported; None without a file."""

    def call(self) -> Any:
        """The target's return value, called without arguments; raises BadInput naming the user's exception."""
        try:
            with current_folder():
                return self.target()
        except RobustkitError:
            raise
        except (Exception, SystemExit) as problem:
            raise BadInput(f"{self.name}() failed: {_line(problem)}: it must be callable without arguments") from problem


def is_named(text: str) -> bool:
    """Whether the text has the form module:callable or package.module:callable."""
    return _NAMED.fullmatch(text) is not None


def import_named(text: str, kind: str) -> UserCode:
    """Import `module:callable`, the current folder included in the search; raises BadInput.

    Args:
        text: as the user typed it.
        kind: "model" or "data", for messages.
    """
    module_name, _, attribute = text.partition(":")
    declare_operators()  # the user's module may import torchvision
    with current_folder():
        try:
            sha256 = _source_hash(module_name, text, kind)
            target: Any = importlib.import_module(module_name)
        except RobustkitError:
            raise
        except (Exception, SystemExit) as problem:
            raise BadInput(f"{kind} {text!r}: importing {module_name} failed: {_line(problem)}") from problem
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise unknown(f"object of {module_name}", attribute, [n for n in dir(target) if not n.startswith("_")])
        target = getattr(target, part)
    return UserCode(text, target, sha256)


@contextmanager
def current_folder() -> Iterator[None]:
    """Python's search path with the current folder first, as for `python -m`; at its end afterwards.

    At the end, so that the user's code may still import its neighbours later and yet no file of
    the current folder can stand in for a library that robustkit imports.
    """
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
        if here not in sys.path and "" not in sys.path:
            sys.path.append(here)


def _source_hash(module: str, text: str, kind: str) -> str | None:
    """sha256 of the source file behind a module name; raises BadInput where there is no such module."""
    if module in sys.modules:
        origin = getattr(sys.modules[module], "__file__", None)
    else:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError as problem:
            if problem.name is None or not module.startswith(problem.name):
                raise
            found = None
        if found is None:
            hint = f"; write {module[:-3]}:..., without .py" if module.endswith(".py") else ""
            raise BadInput(f"{kind} {text!r}: there is no module {module!r} in {os.getcwd()} nor installed{hint}")
        origin = found.origin if found.has_location else None
    return hashlib.sha256(Path(origin).read_bytes()).hexdigest() if origin else None


def _line(problem: BaseException) -> str:
    """One line that names an exception."""
    name, line = type(problem).__name__, first_line(problem)
    return name if line == name else f"{name}: {line}"
