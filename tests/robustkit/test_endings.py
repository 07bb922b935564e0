"""How a command ends when the user, the memory or the disk ends it: one line, no traceback."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from robustkit.cli import commands, main

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes\nmore"


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError(ALLOCATOR), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nMore"), "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), "runs/x: No space left on device"),
    ],
)
def test_full_memory_and_full_disks_end_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], problem: Exception, told: str
) -> None:
    def full(_: object) -> int:
        raise problem

    monkeypatch.setattr(commands, "list", full)
    assert main(["list", "attacks"]) == 1
    shown = capsys.readouterr().err
    assert told in shown
    assert shown.count("\n") == 1


def test_mistakes_of_robustkit_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(_: object) -> int:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(commands, "list", wrong)
    with pytest.raises(RuntimeError, match="shape"):
        main(["list", "attacks"])


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_prints_no_traceback_whenever_it_comes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "robustkit", "evaluate", "--data", "digits:n=20", "--attack", "pgd", "--out", str(tmp_path / "run")]
    for wait in (0.3, 0.8, 1.6, 3.0):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert "Traceback" not in told
        assert process.returncode in (0, 130, -signal.SIGINT)
        if process.returncode == 130:
            assert "interrupted" in told
