"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    """One thread: these networks are too small for more, and on a busy machine threads wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two small networks trained for a moment on the digits' training split, as model specifications.

    `standard` by cross-entropy, `certified` also by interval bounds at 0.06.
    """
    from robustkit.certify import trace, worst_logits
    from robustkit.data import load_data
    from robustkit.models import build, save_model

    folder = tmp_path_factory.mktemp("models")
    architecture = "conv(1,8,3,s2,p1)-relu-flatten-linear(128,32)-relu-linear(32,10)"
    x, y = load_data("digits:split=train")
    made = {}
    for name, steps in (("standard", 40), ("certified", 120)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = build(architecture)
        graph, optimiser = trace(model), torch.optim.Adam(model.parameters(), 1e-2)
        for step in range(steps):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            if name == "certified":
                share = min(1.0, step / 80)
                worst = worst_logits(graph, x, y, 0.06 * share)
                loss = (1 - 0.7 * share) * loss + 0.7 * share * torch.nn.functional.cross_entropy(worst, y)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
        path = folder / f"{name}.safetensors"
        save_model(model, path, architecture=architecture, input_shape=(1, 8, 8), classes=10)
        made[name] = str(path)
    return made


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data (MNIST, weights trained by others); skips where it is absent."""
    named = os.environ.get("ROBUSTKIT_DATA")
    place = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (place / "mnist").is_dir():
        pytest.skip(f"real data is not at {place}: set ROBUSTKIT_DATA to its folder")
    return place
