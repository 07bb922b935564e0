"""Where data sets are looked for: the folder a user names, ROBUSTKIT_DATA, then ~/.cache/robustkit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from robustkit.errors import Missing


def bases(root: str | Path | None) -> list[Path]:
    """The folders to search, in order, whether they exist or not."""
    named = [Path(root)] if root is not None else []
    variable = os.environ.get("ROBUSTKIT_DATA")
    if variable:
        named.append(Path(variable))
    return [Path(os.path.expanduser(base)) for base in [*named, Path("~/.cache/robustkit")]]


def places(root: str | Path | None, folders: tuple[str, ...]) -> list[Path]:
    """Every base folder itself and its sub-folders `folders`."""
    return [place for base in bases(root) for place in (base, *(base / folder for folder in folders))]


def find(root: str | Path | None, folders: tuple[str, ...], holds: Callable[[Path], bool]) -> Path | None:
    """The first place for which `holds` is true."""
    return next((place for place in places(root, folders) if holds(place)), None)


def missing(name: str, root: str | Path | None, expected: str, cure: str) -> Missing:
    """The error that says where a data set was looked for and how to get it."""
    looked = ", ".join(str(base.absolute()) for base in bases(root))
    return Missing(
        f"the data set {name} is not here: looked for {expected} in {looked} and their sub-folder {name}/; "
        f"nothing is downloaded by itself: {cure}, then give its folder with --data-root or ROBUSTKIT_DATA"
    )
