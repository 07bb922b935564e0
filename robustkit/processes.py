"""Work in processes of its own: on the CPU, cores that each do their own work wait for nobody.

Processes are forked, so a job may be anything that lives in this one: nothing is copied before it
changes, and nothing has to be sent but what a job says. OpenMP's threads do not survive a fork; every
job has one thread.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from tqdm import TMonitor

from robustkit.errors import RobustkitError

Say = Callable[[Any], None]
Job = Callable[[Say], None]
"""Called with a function that says something to the parent process."""

_DEATH_SIGNAL = 1
"""Option of Linux's prctl: the signal that a process gets when its parent dies."""

_PATIENCE = 0.2
"""Seconds between two looks at the time limit while nobody says anything."""


def possible() -> bool:
    """Whether a process can be forked here safely: on Linux, without an accelerator and without other threads at work."""
    others = [one for one in threading.enumerate() if one is not threading.current_thread() and not isinstance(one, TMonitor)]
    return sys.platform == "linux" and not torch.cuda.is_available() and not multiprocessing.current_process().daemon and not others


def spread(jobs: Sequence[Job], hear: Callable[[int, Any], None], tick: Callable[[], None]) -> list[int]:
    """Do all jobs at once, each in a process of its own.

    Args:
        hear: called here with a job's number and what it says, as it says it.
        tick: called here again and again; what it, `hear` or a job raises ends all jobs and is raised.
    Returns:
        the numbers of jobs that were lost on the way (killed from outside, or out of memory).
    """
    lost: list[int] = []
    at_work: dict[Connection, tuple[int, Any]] = {}
    try:
        for number, job in enumerate(jobs):
            ear, process = _begin(job)
            at_work[ear] = number, process
        while at_work:
            tick()
            for ear in [one for one in wait(list(at_work), timeout=_PATIENCE) if isinstance(one, Connection)]:
                number, process = at_work[ear]
                try:
                    what, problem, over = pickle.loads(ear.recv_bytes())
                except EOFError:
                    lost.append(number)
                    over = True
                else:
                    if problem is not None:
                        raise problem
                    if not over:
                        hear(number, what)
                if over:
                    del at_work[ear]
                    _end(ear, process)
    finally:
        for ear, (_, process) in at_work.items():
            process.kill()
            _end(ear, process)
    return lost


def _begin(job: Job) -> tuple[Connection, Any]:
    context = multiprocessing.get_context("fork")
    ear, mouth = context.Pipe(duplex=False)
    process = context.Process(target=_do, args=(job, mouth, os.getpid()), daemon=True)
    with warnings.catch_warnings():  # Python warns of OpenMP's threads, which wait outside of any lock
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    mouth.close()
    return ear, process


def _end(ear: Connection, process: Any) -> None:
    ear.close()
    process.join()
    process.close()


def _do(job: Job, mouth: Connection, parent: int) -> None:
    """In the new process: the job, and in the end that it is over or what it raised."""
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    torch.set_num_threads(1)

    def send(what: Any, problem: BaseException | None = None, over: bool = False) -> None:
        mouth.send_bytes(pickle.dumps((what, problem, over)))

    try:
        job(send)
        send(None, over=True)
    except BaseException as problem:
        send(None, _portable(problem))


def _portable(problem: BaseException) -> BaseException:
    """The exception itself where it survives the journey, else one that says the same."""
    try:
        if type(pickle.loads(pickle.dumps(problem))) is type(problem):
            return problem
    except Exception:
        pass
    where = "".join(traceback.format_exception(problem)[-2:]).strip()
    return RobustkitError(f"{type(problem).__name__}: {where}")
