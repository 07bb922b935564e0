"""Jobs in processes of their own: what they say, what they raise, what is left of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from robustkit.errors import BadInput, OutOfTime, RobustkitError
from robustkit.processes import Job, Say, possible, spread

pytestmark = pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="processes share a CPU, on Linux")


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def nothing() -> None:
    pass


def test_what_every_job_says_is_heard_in_its_order() -> None:
    before = torch.get_num_threads()

    def made(number: int) -> Job:
        def job(say: Say) -> None:
            for word in range(3):
                say((word, torch.full((2,), 10.0 * number), os.getpid(), torch.get_num_threads()))

        return job

    heard: dict[int, list[Any]] = {0: [], 1: [], 2: []}
    assert spread([made(number) for number in range(3)], lambda number, what: heard[number].append(what), nothing) == []
    assert [[word for word, *_ in said] for said in heard.values()] == [[0, 1, 2]] * 3
    assert all(bool((tensor == 10.0 * number).all()) for number, said in heard.items() for _, tensor, *_ in said)
    assert len({pid for said in heard.values() for *_, pid, _ in said} | {os.getpid()}) == 4
    assert {threads for said in heard.values() for *_, threads in said} == {1}
    assert torch.get_num_threads() == before


class Awkward(Exception):
    """Does not survive being sent: it is made of two things."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what} {number}")


@pytest.mark.parametrize(
    ("problem", "kind", "message"),
    [
        (BadInput("classes 3: expected 4"), BadInput, "^classes 3: expected 4$"),
        (RuntimeError("shapes differ"), RuntimeError, "^shapes differ$"),
        (Awkward("row", 7), RobustkitError, "Awkward: .*row 7"),
    ],
)
def test_what_a_job_raises_is_raised_here_and_ends_the_others(problem: Exception, kind: type[Exception], message: str) -> None:
    def bad(say: Say) -> None:
        raise problem

    def endless(say: Say) -> None:
        time.sleep(600)

    with pytest.raises(kind, match=f"(?s){message}"):
        spread([endless, bad], lambda number, what: None, nothing)


@pytest.mark.parametrize("problem", [OutOfTime("over"), KeyboardInterrupt()])
def test_the_clock_ends_silent_jobs(problem: BaseException) -> None:
    ticks = []

    def tick() -> None:
        ticks.append(time.monotonic())
        if len(ticks) == 3:
            raise problem

    with pytest.raises(type(problem)):
        spread([lambda say: time.sleep(600)] * 2, lambda number, what: None, tick)


def test_a_killed_job_is_reported_and_the_others_go_on() -> None:
    heard = []

    def killed(say: Say) -> None:
        say("so far")
        os.kill(os.getpid(), signal.SIGKILL)

    def other(say: Say) -> None:
        time.sleep(0.3)
        say("all")

    assert spread([killed, other], lambda number, what: heard.append((number, what)), nothing) == [0]
    assert heard == [(0, "so far"), (1, "all")]


def test_jobs_do_not_outlive_a_killed_parent() -> None:
    code = """
import time
from robustkit.processes import spread
def job(say):
    import os
    print(os.getpid(), flush=True)
    time.sleep(600)
spread([job, job], lambda number, what: None, lambda: None)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        jobs = [int(parent.stdout.readline()) for _ in range(2)]
        parent.kill()
    end = time.monotonic() + 20
    while time.monotonic() < end and any(_runs(pid) for pid in jobs):
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in jobs)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_interrupt_of_the_terminal_is_the_parents_business() -> None:
    def deaf(say: Say) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        say("still here")

    heard = []
    assert spread([deaf], lambda number, what: heard.append(what), nothing) == []
    assert heard == ["still here"]


def test_nothing_is_forked_beside_other_threads_or_inside_a_job() -> None:
    assert possible()
    over = threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()
    try:
        assert not possible()
    finally:
        over.set()
        other.join()
    heard = []
    spread([lambda say: say(possible())], lambda number, what: heard.append(what), nothing)
    assert heard == [False]
