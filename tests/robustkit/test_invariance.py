"""Neither the size of a batch nor a row's place in it changes one bit: of bounds, forward and backward passes, attacks.

Once more under other instruction sets, which stand in for other machines (`pytest -m slow`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from two_networks import ResNet18, SmallViT

from robustkit import registry
from robustkit.attacks.pgd import PGD
from robustkit.classifier import Classifier
from robustkit.samples import Outcome, Samples
from robustkit.sharing import make_driver
from robustkit.threats import Linf
from robustkit.verdict.goals import Goal
from robustkit.verdict.judge import Judge

HERE = Path(__file__).resolve()


def bounded(name: str) -> nn.Sequential:
    """Sizes that fill no vector: 7, 9 and 11 values to a row."""
    torch.manual_seed(0)
    if name == "strides":
        return nn.Sequential(nn.Conv2d(2, 5, 3, 2, 1), nn.ReLU(), nn.Conv2d(5, 6, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 7))
    front = nn.Sequential(nn.Conv2d(2, 4, 3, 1, 1), nn.ReLU())
    return nn.Sequential(front, nn.Conv2d(4, 3, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 11), nn.ReLU(), nn.Linear(11, 7))


@pytest.mark.invariance
@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown", "alpha-crown:steps=3", "sound:(crown)"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["strides", "tanh"])
def test_bounds(name: str, dtype: torch.dtype, method: str) -> None:
    if method.startswith("sound") and dtype == torch.float64:
        return  # these are about float32 logits
    bound = registry.make("certifier", method).bind(Classifier(bounded(name).eval().to(dtype)), Linf("0.1"))
    x, y = torch.rand(37, 2, 11, 11, dtype=torch.float64).to(dtype), torch.arange(37) % 7
    eps = torch.linspace(0.005, 0.1, 37, dtype=torch.float64)
    whole = bound(x, y, eps)
    assert bool(torch.isfinite(whole).all())
    for rows in (1, 16, 23):
        assert torch.equal(torch.cat([bound(*part) for part in zip(x.split(rows), y.split(rows), eps.split(rows))]), whole)
    order = torch.randperm(37)
    assert torch.equal(bound(x[order], y[order], eps[order]), whole[order])


@pytest.mark.invariance
@pytest.mark.parametrize("make", [ResNet18, SmallViT])
def test_attacks(make: Any) -> None:
    torch.manual_seed(0)
    judge = Judge(Classifier(make().eval()), Linf("0.01"), Goal("untargeted"))
    x = torch.rand(20, 3, 32, 32)
    logits = judge.logits(x)
    eps, none = torch.full((20,), 0.01, dtype=torch.float64), torch.full((20,), -1)
    samples = Samples(torch.arange(20), logits.argmax(1), none, logits, eps, lambda at: x[at])

    def run(at: Tensor, size: int) -> Outcome:
        found: list[Outcome] = []
        make_driver(PGD(steps=3), judge, batch_size=size).run(samples.pick(at), found.append)
        joined = Outcome.join(found)
        return joined.pick(joined.at.argsort())

    everything = run(torch.arange(20), 32)
    order = torch.randperm(20)
    for at, size in ((torch.arange(20), 16), (order, 32), (torch.tensor([13, 4]), 1)):
        found = run(at, size)
        for field, value in vars(found).items():
            if field != "at":
                assert torch.equal(value, getattr(everything, field)[at]), field


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting", ["MKL_CBWR=COMPATIBLE", "MKL_ENABLE_INSTRUCTIONS=AVX2", "ONEDNN_MAX_CPU_ISA=AVX2", "ATEN_CPU_CAPABILITY=default"]
)
def test_on_other_machines(setting: str) -> None:
    name, value = setting.split("=")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "invariance and not slow", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=HERE.parents[2], env=os.environ | {name: value}, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]
