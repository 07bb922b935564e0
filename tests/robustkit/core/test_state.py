"""What a model remembers: counters and statistics are seen wherever they are kept, stored activations are none."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm, weight_norm
from torch.nn.utils.parametrizations import weight_norm as parametrised

from robustkit.classifier import frozen_copy
from robustkit.core.state import changed, snapshot

TOLD = [0]
"""A counter outside of every model."""


class Does(nn.Module):
    """A linear layer whose forward does something with its input and its output, too."""

    def __init__(self, also: Callable[[Any, Tensor, Tensor], object] = lambda *_: None) -> None:
        super().__init__()
        self.layer, self.also = nn.Linear(6, 3), also
        self.calls, self.kept, self.told = 0, {}, SimpleNamespace(calls=0)  # type: ignore[var-annotated]
        self.numbers = itertools.count()
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.layer(x)
        self.also(self, x, z)
        return z


def left_behind(model: Any) -> list[str]:
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(x)
        before = snapshot(model)
        model(x)
        return changed(before, snapshot(model))


def _count_in_a_closure() -> Callable[..., object]:
    calls = [0]

    def also(*_: object) -> None:
        calls[0] += 1

    return also


def _count_outside(*_: object) -> None:
    TOLD[0] += 1


def _shared(model: Any, *_: object) -> None:
    type(model).shared = getattr(type(model), "shared", 0) + 1


STATEFUL: dict[str, Callable[..., object]] = {
    "counter": lambda m, *_: setattr(m, "calls", m.calls + 1),
    "counter in an object": lambda m, *_: setattr(m.told, "calls", m.told.calls + 1),
    "counter in a dictionary": lambda m, *_: m.kept.update(calls=m.kept.get("calls", 0) + 1),
    "counter in a closure": _count_in_a_closure(),
    "counter outside": _count_outside,
    "counter of the class": _shared,
    "counter of a partial": functools.partial(lambda calls, *_: calls.append(0), []),
    "iterator": lambda m, *_: next(m.numbers),
    "running mean": lambda m, x, z: m.mean.mul_(0.99).add_(0.01 * x.mean(0)),
    "running mean behind data": lambda m, x, z: setattr(m.mean, "data", 0.99 * m.mean + 0.01 * x.mean(0)),
    "weights that move": lambda m, *_: m.layer.weight.data.mul_(0.999),
    "growing list": lambda m, x, z: m.kept.setdefault("all", []).append(0),
}


@pytest.mark.parametrize("also", STATEFUL.values(), ids=STATEFUL.keys())
def test_state_is_seen(also: Callable[..., object]) -> None:
    assert left_behind(frozen_copy(Does(also)))


STATELESS: dict[str, Callable[..., object]] = {
    "nothing": lambda *_: None,
    "stored activation": lambda m, x, z: setattr(m, "last", z),
    "stored activation in a buffer": lambda m, x, z: m.mean.copy_(x.mean(0)),
    "stored activations": lambda m, x, z: m.kept.update({"x": x, "z": [z, float(z.sum())]}),
    "stored not a number": lambda m, x, z: setattr(m, "last", z * torch.nan),
    "cache by shape": lambda m, x, z: m.kept.setdefault(tuple(x.shape), torch.arange(len(x))),
}


@pytest.mark.parametrize("also", STATELESS.values(), ids=STATELESS.keys())
def test_what_is_only_stored_is_no_state(also: Callable[..., object]) -> None:
    assert left_behind(frozen_copy(Does(also))) == []


LAYERS: list[Callable[[], nn.Module]] = [
    lambda: weight_norm(nn.Linear(6, 3)),
    lambda: spectral_norm(nn.Linear(6, 3)),
    lambda: parametrised(nn.Linear(6, 3)),
    lambda: nn.LayerNorm(6),
    lambda: nn.BatchNorm1d(6),
]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_layers_of_torch_keep_none_in_eval_mode(layer: Callable[[], nn.Module]) -> None:
    assert left_behind(frozen_copy(nn.Sequential(layer()))) == []


def test_batch_norm_in_training_mode_keeps_statistics() -> None:
    assert left_behind(nn.Sequential(nn.BatchNorm1d(6)).train())[0].startswith("0.running_mean")


def test_plain_functions_are_looked_into() -> None:
    count, weight = _count_in_a_closure(), torch.ones(6, 3)

    def model(x: Tensor) -> Tensor:
        count()
        return x @ weight

    assert left_behind(model)
    assert left_behind(lambda x: x @ weight) == []


def test_a_module_that_refers_to_itself_ends() -> None:
    model = Does()
    model.kept["me"], model.kept["list"] = model, [model.kept]
    assert left_behind(model) == []
