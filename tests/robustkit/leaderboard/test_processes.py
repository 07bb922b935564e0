"""Two processes at once leave a whole board; a killed one leaves it as before or as after."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustkit.leaderboard import Leaderboard
from robustkit.leaderboard import board as module
from robustkit.leaderboard.ledger import NEXT

SUBMIT = """
import sys
from robustkit.leaderboard import Leaderboard
try:
    Leaderboard(sys.argv[1]).submit(sys.argv[2], name=sys.argv[3])
except Exception as problem:
    sys.exit(str(problem))
"""


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def test_two_processes_at_once(empty: Leaderboard, runs: Path) -> None:
    given = [("standard", "a"), ("certified", "b"), ("standard", "c")]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SUBMIT, str(empty.path), str(runs / run), name], env=environment(), stderr=subprocess.PIPE, text=True
        )
        for run, name in given
    ]
    told = [(process.communicate()[1], process.returncode) for process in started]
    assert sorted(code for _, code in told) == [0, 0, 1]
    assert all("is the same model" in text for text, code in told if code)
    assert len(empty.entries()) == 2
    assert all(one.ok for one in empty.verify())
    assert not list(empty.path.glob(".step-*"))


def submit_until(board: Leaderboard, run: Path, at: int) -> int | None:
    """Submit in a process that is killed right before its write, rename or sync number `at`; None, or how many there were."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside idle threads: the child only submits
        child = os.fork()
    if child == 0:  # pragma: no cover
        calls = 0

        def counted(do: Callable[..., Any]) -> Callable[..., Any]:
            def step(*arguments: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return do(*arguments, **options)

            return step

        try:
            module.write_atomic, module._sync, os.replace = map(counted, (module.write_atomic, module._sync, os.replace))  # type: ignore[assignment]
            board.submit(run, name="x")
            os.write(writing, str(calls).encode())
        finally:
            os._exit(0)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as file:
        told = file.read()
    assert os.WIFSIGNALED(status) == (told == b""), status
    return int(told) if told else None


def test_killed_in_the_middle_of_a_submit(empty: Leaderboard, runs: Path, tmp_path: Path) -> None:
    """Killed before every single write, rename and sync in turn: the board is as before or as after, never between."""
    outcomes = []
    for at in range(1, 40):
        board = Leaderboard(shutil.copytree(empty.path, tmp_path / f"{at}"))
        done = submit_until(board, runs / "standard", at)
        assert all(one.ok for one in board.verify(level="files"))
        before = len(board.entries())
        with board.changing():
            pass
        assert not list(board.path.glob(".step-*")) and not (board.path / NEXT).exists() and not list(board.path.glob(".*.tmp"))
        held = len(board.entries())
        assert held in (before, before + 1)
        assert {path.name for path in (board.path / "entries").glob("*")} == {entry.id for entry in board.entries()}
        assert all(one.ok for one in board.verify(level="files"))
        if held == 0:
            board.submit(runs / "standard", name="x")
        assert [entry.name for entry in board.entries()] == ["x"]
        outcomes.append(held)
        if done is not None:
            break
    assert done is not None and 8 < done < at + 1
    assert outcomes == sorted(outcomes) and set(outcomes) == {0, 1}
    assert all(one.ok for one in board.verify())
