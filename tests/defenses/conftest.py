"""A little real data and quick trainings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit import streams
from robustkit.data import Data, load_data
from robustkit.defenses import Minibatch, Trained, train
from robustkit.models import architecture_text, build
from robustkit.models.weights import read_checkpoint


@pytest.fixture(scope="session")
def digits() -> Data:
    """256 training digits, 1x8x8."""
    return load_data("digits:n=256,split=train")


@pytest.fixture
def network(digits: Data) -> nn.Sequential:
    """The small network of the digits, untrained."""
    return build(architecture_text("digits-cnn", digits.shape, 10))


@pytest.fixture
def batch(digits: Data) -> Minibatch:
    """All of `digits` as the last minibatch of a training."""
    return Minibatch(digits.x, digits.y, digits.index, streams.row_keys(0, "test", digits.index), 1.0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Weights are promised to be the same for the same number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quick(digits: Data, tmp_path: Path) -> Callable[..., Trained]:
    """train(recipe, file name, ...) on the digits into a temporary folder."""

    def run(recipe: Any, name: str = "model.safetensors", **options: Any) -> Trained:
        return train(recipe, options.pop("data", digits), out=tmp_path / name, **options)

    return run


@pytest.fixture
def weights() -> Callable[[Trained | Path], dict[str, Tensor]]:
    """The tensors of a trained file."""
    return lambda found: read_checkpoint(found.path if isinstance(found, Trained) else found).tensors
