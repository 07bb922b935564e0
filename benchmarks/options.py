"""What the benchmarks have in common: --threads, --cpu-time and --json, and contenders that take turns."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from robustkit.numerics import exact_mode


def parser(about: str, *, clock: bool = False) -> argparse.ArgumentParser:
    """A parser with --threads and --json, and with --cpu-time where the benchmark has a `clock`."""
    made = argparse.ArgumentParser(description=about)
    made.add_argument("--threads", type=int, help="CPU threads (default torch's own choice)")
    if clock:
        made.add_argument("--cpu-time", action="store_true", help="count CPU seconds, for a busy machine; only with --threads 1")
    made.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    return made


def parse(made: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, with the number of threads set and seen to fit --cpu-time; exit code 2 where they do not."""
    chosen = made.parse_args(arguments)
    if chosen.threads is not None and chosen.threads < 1:
        made.error(f"--threads {chosen.threads}: expected a whole number of at least 1")
    if getattr(chosen, "cpu_time", False) and chosen.threads != 1:
        made.error("--cpu-time counts threads that wait as well: give --threads 1")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    return chosen


def clock_of(chosen: argparse.Namespace) -> Callable[[], float]:
    """Seconds as --cpu-time wants them."""
    return time.process_time if chosen.cpu_time else time.perf_counter


def in_turn(
    runs: Mapping[str, Callable[[], Any]], repeats: int, clock: Callable[[], float], device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every measured round by name, after one unmeasured round; the order changes from round to round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name in sorted(runs, reverse=bool(turn % 2)):
            with torch.no_grad(), exact_mode():
                start = clock()
                runs[name]()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if turn:
                    seconds[name].append(clock() - start)
    return seconds
