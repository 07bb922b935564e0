"""The command line: `robustkit COMMAND`. Answers go to stdout, progress and errors to stderr.

Exit codes: 0 done, 1 a gate failed or a contradiction was found, 2 bad input, 3 something is
missing, 4 incomplete but resumable, 130 interrupted after saving.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

_interrupts: list[int] = []
"""Signals of Ctrl-C so far: libraries turn the exception into others, above all while they are imported."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; user errors end in one line, never a traceback."""
    from robustkit.errors import RobustkitError

    try:
        from robustkit.cli.arguments import parser

        chosen = parser().parse_args(arguments)
        from robustkit.cli import commands

        code: int = getattr(commands, chosen.run)(chosen)
        sys.stdout.flush()
        return code
    except RobustkitError as problem:
        if os.environ.get("ROBUSTKIT_DEBUG"):
            raise
        return _told(str(problem), problem.exit_code)
    except KeyboardInterrupt:
        return _told("interrupted", 130)
    except BrokenPipeError:
        _close_stdout()
        return 0
    except (MemoryError, OSError, RuntimeError) as problem:
        if _interrupts:
            return _told("interrupted", 130)
        line = _in_one_line(problem)
        if line is None or os.environ.get("ROBUSTKIT_DEBUG"):
            raise
        return _told(line, 1)
    except Exception:
        if _interrupts:
            return _told("interrupted", 130)
        raise


def run() -> NoReturn:
    """The console script: `main`, and no traceback either while Python starts or ends."""

    def interrupted(number: int, frame: Any) -> None:
        _interrupts.append(number)
        raise KeyboardInterrupt

    def unraisable(about: Any) -> None:
        if about.exc_type is KeyboardInterrupt:  # it came where Python can only print it: again, a moment later
            os.kill(os.getpid(), signal.SIGINT)
        else:
            sys.__unraisablehook__(about)

    try:
        signal.signal(signal.SIGINT, interrupted)
        sys.unraisablehook = unraisable
        code = main()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:
        code = _told("interrupted", 130)
    raise SystemExit(code)


def _told(text: str, code: int) -> int:
    """Print one line on stderr; returns the exit code."""
    from robustkit.core.plain_text import printable

    print(f"robustkit: {printable(' '.join(text.split()))}", file=sys.stderr)
    return code


def _in_one_line(problem: Exception) -> str | None:
    """What to say where memory or a disk is full, None for what is a mistake of robustkit."""
    if isinstance(problem, OSError):
        if problem.strerror is None:
            return None
        _close_stdout() if problem.filename is None else None
        return f"{problem.filename or 'the output'}: {problem.strerror}"
    from robustkit.errors import first_line
    from robustkit.memory import out_of_memory

    if not out_of_memory(problem):
        return None
    first = first_line(problem)[:200]
    return f"out of memory ({first}): close other programs, or use a smaller --batch-size or fewer images"


def _close_stdout() -> None:
    """Python writes what is left when it ends, which would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
