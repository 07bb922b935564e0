"""The clock: progress where there is a terminal, and a limit that is kept."""

from __future__ import annotations

import math
import time

import pytest

from robustkit.clock import Clock, seconds
from robustkit.errors import BadInput, OutOfTime


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), (" 1 d ", 86400), (5, 5), (0.5, 0.5), (None, None)]
)
def test_times(text: str | float | None, expected: float | None) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "0", "0s", "-1", "1e3", "h", "2 hours", "nan", 0, -1.0, math.nan, math.inf])
def test_bad_times_are_refused(text: str | float) -> None:
    with pytest.raises(BadInput, match="time limit"):
        seconds(text)


def test_the_limit_ends_the_work() -> None:
    clock = Clock(1e-9)
    time.sleep(0.001)
    with pytest.raises(OutOfTime):
        clock.tick()
    Clock(3600).tick(5)
    Clock().tick()


def test_no_bar_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with clock.stage("attack", 10):
        clock.tick(10)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_stderr_that_is_closed_whatever_happens(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock(show=True)

    def work() -> None:
        with clock.stage("attack", 10):
            clock.tick(3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    told = capsys.readouterr()
    assert told.out == ""
    assert "attack" in told.err
    clock.tick(1)
    assert capsys.readouterr().err == ""
