"""Progress on stderr and the time limit, in one place that all stages tick."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from robustkit.errors import BadInput, OutOfTime

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str | float | None) -> float | None:
    """Seconds from 90, 90s, 30m or 2h; raises BadInput."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+\.?\d*)\s*([smhd]?)\s*", text) if isinstance(text, str) else None
    limit = float(match[1]) * _UNITS[match[2] or "s"] if match else text
    if isinstance(limit, str) or not 0 < limit < math.inf:
        raise BadInput(f"time limit {text!r}: expected for example 90s, 30m or 2h")
    return limit


class Clock:
    """Counts finished samples on a progress bar, and raises OutOfTime past the deadline."""

    def __init__(self, limit: float | None = None, show: bool | None = None) -> None:
        self.deadline = None if limit is None else time.monotonic() + limit
        self.show = sys.stderr.isatty() if show is None else show
        self.bar: Any = None

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[None]:
        """A bar for one stage; none when stderr is no terminal."""
        with tqdm(total=total, desc=name, unit="sample", leave=False, file=sys.stderr, disable=not self.show) as self.bar:
            yield
        self.bar = None

    def tick(self, finished: int = 0) -> None:
        """`finished` more samples are through; raises OutOfTime past the deadline."""
        if self.bar is not None and finished:
            self.bar.update(finished)
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise OutOfTime("the time limit was reached")
