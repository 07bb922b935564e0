"""Every error a user can cause or cure, with the exit code the command line ends with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RobustkitError(Exception):
    """Base of all robustkit errors. `exit_code` is what the command line returns."""

    exit_code = 1


class BadInput(RobustkitError, ValueError):
    """The input is wrong: the message says what was wrong, what was expected, how to fix it."""

    exit_code = 2


class Missing(RobustkitError, LookupError):
    """Something needed is not here (data, weights, device, optional package)."""

    exit_code = 3


class OutOfTime(RobustkitError):
    """The time limit was reached; everything finished so far is saved."""

    exit_code = 4


def first_line(problem: BaseException) -> str:
    """The first line of what an exception says, its class where it says nothing."""
    lines = str(problem).strip().splitlines()
    return lines[0].strip() if lines else type(problem).__name__


def unknown(kind: str, name: str, known: Iterable[str]) -> BadInput:
    """The error for a name that does not exist, with the nearest one that does."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return BadInput(f"unknown {kind} {name!r}: {hint}known: {', '.join(names) or 'none'}")
