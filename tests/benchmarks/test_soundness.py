"""The soundness run: its exact optimiser, the operations it covers, and that planted bugs make it fail."""

from __future__ import annotations

import importlib
import json
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robustkit.certify import ops, relax, trace
from robustkit.certify.activations import ELU, GELU, SiLU, Softplus
from robustkit.certify.transposed import ConvTranspose


@pytest.fixture(scope="module")
def soundness(their_folder: None) -> Any:
    return importlib.import_module("soundness")


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 7, 11])
def test_the_optimiser_finds_nothing_worse_than_points_and_lies_in_the_box(soundness: Any, seed: int) -> None:
    module, shape = soundness.small_network(seed)
    layers = soundness.matrices(module, shape)
    generator = np.random.default_rng(seed)
    centre = generator.random(int(np.prod(shape)))
    low, high = np.maximum(centre - 0.2, 0), np.minimum(centre + 0.2, 1)
    single = torch.from_numpy(centre).float().view(1, *shape)
    with torch.no_grad():
        assert soundness.forward(layers, single.double().flatten().numpy()) == pytest.approx(module(single)[0].numpy(), abs=1e-5)
    row = np.array([1.0, -1.0, 0.0])
    point = soundness.least_point(layers, low, high, row)
    assert bool((point >= low).all()) and bool((point <= high).all())
    drawn = low + (high - low) * np.concatenate([generator.random((300, len(low))), generator.integers(0, 2, (300, len(low)))])
    assert float(row @ soundness.forward(layers, point)) <= min(float(row @ soundness.forward(layers, p)) for p in drawn) + 1e-6


def test_every_operation_occurs() -> None:
    networks = importlib.import_module("random_networks")
    seen = set()
    for _, _, module, shape in networks.networks(1):
        seen |= {type(node.op) for node in trace(module).network(shape, folded=False).nodes}
    pieces = {ops.Linear, ops.Conv, ops.Scale, ops.Reshape, ops.Average, ops.Select, ops.Concat, ops.Sum, ops.MaxPool, ConvTranspose}
    assert seen >= pieces | {ops.ReLU, ops.LeakyReLU, ops.Sigmoid, ops.Tanh, ops.Clamp, Softplus, ELU, GELU, SiLU}


def _flat(op: Any, low: Tensor, high: Tensor, at: Tensor, choice: Any, rule: Any = relax.LINE_RULES[ops.ReLU]) -> relax.Lines:
    lines: relax.Lines = rule(op, low, high, at, choice)
    return lines._replace(upper_slope=lines.upper_slope * 0.5)


def test_a_planted_bug_shows_in_both_parts(soundness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def tallies() -> tuple[int, int]:
        exact: Any = defaultdict(soundness.Tally)
        soundness.exact_part(3, exact)
        attacked: Any = defaultdict(soundness.Tally)
        networks = importlib.import_module("random_networks")
        first = [made for made in networks.networks(1) if made[1] == "relu"][:1]
        with monkeypatch.context() as patch:
            patch.setattr(networks, "networks", lambda rounds: iter(first))
            soundness.attack_part(1, 6, attacked)
        return tuple(sum(t.errors + t.below for t in part.values()) for part in (exact, attacked))  # type: ignore[return-value]

    for name in ("METHODS", "OFTEN", "EXACT"):
        monkeypatch.setattr(soundness, name, ("crown", "sound:(crown)"))
    assert tallies() == (0, 0)
    monkeypatch.setitem(relax.LINE_RULES, ops.ReLU, _flat)
    assert min(tallies()) > 0


def test_the_command_prints_its_figures(soundness: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert soundness.main(["--exact", "2", "--rounds", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["violations"] == 0 and {case["against"] for case in found["cases"]} == {"exact"}
    assert soundness.main(["--exact", "1", "--rounds", "0"]) == 0
    assert "0 violations" in capsys.readouterr().out
