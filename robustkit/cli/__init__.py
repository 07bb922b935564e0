"""The command line: `robustkit COMMAND`. Answers go to stdout, progress and errors to stderr.

Exit codes: 0 done, 1 a gate failed or a contradiction was found, 2 bad input, 3 something is
missing, 4 incomplete but resumable, 130 interrupted after saving.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from robustkit.cli.arguments import parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; user errors end in one line, never a traceback."""
    from robustkit.core.plain_text import printable
    from robustkit.errors import RobustkitError

    try:
        chosen = parser().parse_args(arguments)
        from robustkit.cli import commands

        code: int = getattr(commands, chosen.run)(chosen)
        sys.stdout.flush()
        return code
    except RobustkitError as problem:
        if os.environ.get("ROBUSTKIT_DEBUG"):
            raise
        print(f"robustkit: {printable(' '.join(str(problem).split()))}", file=sys.stderr)
        return problem.exit_code
    except KeyboardInterrupt:
        print("robustkit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
