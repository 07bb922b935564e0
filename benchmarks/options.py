"""What the benchmarks' command lines have in common: --threads, --cpu-time and --json."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch


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
