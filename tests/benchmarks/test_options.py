"""What the benchmarks' command lines have in common."""

from __future__ import annotations

import importlib
import time
from typing import Any

import pytest
import torch

TIMED = ["pgd_speed", "ibp_speed", "certifier_speed", "autoattack_parity"]


@pytest.fixture(scope="session")
def options(their_folder: None) -> Any:
    return importlib.import_module("options")


def test_threads_are_set_and_the_clock_is_the_one_asked_for(options: Any) -> None:
    before = torch.get_num_threads()
    try:
        chosen = options.parse(options.parser("a benchmark", clock=True), ["--threads", "1", "--cpu-time", "--json"])
        assert torch.get_num_threads() == 1
        assert chosen.json
        assert options.clock_of(chosen) is time.process_time
        assert options.clock_of(options.parse(options.parser("a benchmark", clock=True), [])) is time.perf_counter
    finally:
        torch.set_num_threads(before)


def test_a_benchmark_without_a_clock_does_not_offer_cpu_time(options: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options.parse(options.parser("a benchmark"), ["--cpu-time"])
    with pytest.raises(SystemExit):
        options.parse(options.parser("a benchmark"), ["--threads", "0"])
    assert "at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", TIMED)
@pytest.mark.parametrize("threads", [[], ["--threads", "2"]])
def test_cpu_time_of_several_threads_is_refused(options: Any, name: str, threads: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        script = importlib.import_module(name)
    except ImportError as problem:
        pytest.skip(str(problem))
    with pytest.raises(SystemExit) as ended:
        script.main([*(["model"] if name == "autoattack_parity" else []), "--cpu-time", *threads])
    assert ended.value.code == 2
    assert "give --threads 1" in capsys.readouterr().err
