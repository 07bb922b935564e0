"""Boundary attack: exact distances of linear models, exact queries, decisions only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit import load_data, load_model, streams
from robustkit.attacks import Boundary
from robustkit.attacks.boundary import RATIOS
from robustkit.attacks.sampling import LowFrequency
from robustkit.classifier import Classifier
from robustkit.errors import BadInput
from robustkit.methods import Rows
from robustkit.samples import Outcome, Samples
from robustkit.smallest import SmallestDriver
from robustkit.threats import load_threat
from robustkit.verdict.goals import Goal
from robustkit.verdict.judge import Judge
from robustkit.views import View

COUNT, SIDE = 24, 6


class Plane(nn.Module):
    """Two classes, split by a plane through the grey image; images are near grey, so that the box is not in the way."""

    def __init__(self, smooth: bool = False) -> None:
        super().__init__()
        slope = streams.normal(streams.row_keys(3, "slope", torch.arange(1)), (SIDE * SIDE,))[0]
        if smooth:
            slope = LowFrequency(RATIOS[0]).draw(streams.row_keys(1, "slope", torch.arange(1)), 1, (1, SIDE * 2, SIDE * 2)).flatten()
        self.slope = slope
        side = SIDE * 2 if smooth else SIDE
        drawn = streams.uniform(streams.row_keys(0, "images", torch.arange(COUNT)), (1, side, side))
        x = 0.5 + 0.1 * (drawn - 0.5)
        self.y = self(x).argmax(1)
        away = (slope / slope.norm()).view_as(x[:1]) * (self.y.view(-1, 1, 1, 1) * 2 - 1)
        self.x = x + 0.3 * away

    def forward(self, x: Tensor) -> Tensor:
        value = (x - 0.5).flatten(1) @ self.slope
        return torch.stack([-value, value], 1)

    def distance(self, norm: str) -> Tensor:
        value = ((self.x - 0.5).flatten(1) @ self.slope).abs()
        return (value / (self.slope.norm() if norm == "l2" else self.slope.abs().sum())).double()


def smallest(attack: Boundary, model: Plane, norm: str) -> Outcome:
    """What one run with an unlimited budget finds, in sample order."""
    threat = load_threat(f"{norm}:1")
    judge = Judge(Classifier(model), threat, Goal())
    eps = torch.full((COUNT,), float(threat.unbounded(tuple(model.x.shape[1:]))), dtype=torch.float64)
    samples = Samples(torch.arange(COUNT), model.y, torch.full((COUNT,), -1), model(model.x), eps, lambda at: model.x[at])
    parts: list[Outcome] = []
    SmallestDriver(attack, judge, stop="smallest", pool=None).run(samples, parts.append)
    found = Outcome.join(parts)
    return found.pick(found.at.argsort())


@pytest.mark.parametrize(("norm", "queries", "above"), [("l2", 2000, 1.05), ("l2", 6000, 1.005), ("linf", 6000, 1.1)])
def test_it_walks_to_the_nearest_point_of_a_plane(norm: str, queries: int, above: float) -> None:
    model = Plane()
    found = smallest(Boundary(queries), model, norm)
    ratio = found.size / model.distance(norm)
    assert bool(found.success.all())
    assert float(ratio.min()) >= 1 - 1e-5
    assert float(ratio.max()) <= above
    assert int(found.queries.max()) <= queries


def test_low_frequencies_are_faster_where_the_model_is_smooth() -> None:
    model = Plane(smooth=True)
    plain, smooth, auto = (
        (smallest(Boundary(900, sampler=s), model, "l2").size / model.distance("l2")).median()  # type: ignore[arg-type]
        for s in ("gaussian", "low-frequency:1/4", "auto")
    )
    assert float(smooth) < float(plain)
    assert float(auto) < float(plain)
    assert float(smooth) < 1.02


def test_auto_takes_turns_and_halves() -> None:
    attack = Boundary(6000 + 27, sampler="auto")  # type: ignore[arg-type]
    assert attack.walks == 4 and attack.iterations == 6000
    count = 3
    steps, turns = torch.zeros(count, dtype=torch.int64), []
    zero, x = torch.zeros(count, dtype=torch.int64), torch.zeros(count, 1, 4, 4)
    rows = Rows(zero, zero, x, zero, zero - 1, zero.double(), zero, steps, torch.ones(len(zero)))
    state = {"order": torch.arange(4).repeat(count, 1), "size": torch.tensor([[4.0, 3, 2, 1], [1, 2, 3, 4], [2, 1, 4, 3]])}
    for step in range(640):
        rows.steps = steps + step
        state["order"], walk = attack._turn(rows, state)
        turns.append(walk)
    seen = torch.stack(turns, 1)
    for row, best in enumerate(([3, 2], [0, 1], [1, 0])):
        assert torch.bincount(seen[row, :400], minlength=4).tolist() == [100] * 4
        assert torch.bincount(seen[row, 400:600], minlength=4)[best].tolist() == [100, 100]
        assert seen[row, 600:].unique().tolist() == best[:1]


@pytest.mark.parametrize("ratio", range(4))
def test_every_walk_has_its_own_frequencies(ratio: int) -> None:
    import numpy as np
    import scipy.fft

    attack = Boundary(sampler="auto")  # type: ignore[arg-type]
    keys = streams.row_keys(0, "walks", torch.arange(5))
    noise = attack._varied(keys, torch.full((5,), ratio), (1, 64, 32)).double().numpy()
    spectrum = scipy.fft.dctn(noise, axes=(2, 3), norm="ortho")
    height, width = LowFrequency(RATIOS[ratio]).sides((1, 64, 32))
    inside = spectrum[:, :, :height, :width].copy()
    spectrum[:, :, :height, :width] = 0
    assert np.abs(spectrum).max() < 1e-5
    assert np.abs(inside).min() > 1e-6


# ---- on a network


def images(count: int, purpose: str = "images") -> Tensor:
    return streams.uniform(streams.row_keys(0, purpose, torch.arange(count)), (1, 8, 8))


@pytest.fixture(scope="module")
def network() -> Classifier:
    return load_model("zoo:digits-standard")


@pytest.fixture(scope="module")
def labelled(network: Classifier) -> tuple[Tensor, Tensor]:
    """Digits and what the model takes them for."""
    x, _ = load_data("digits:n=200,split=train")
    return x, network.logits(x).argmax(1)


@pytest.mark.parametrize(
    ("family", "goal", "noise"),
    [
        ("l2:1", "untargeted", "gaussian"),
        ("l2:1.5", "targeted:next", "auto"),
        ("linf:0.2", "untargeted", "(low-frequency:1/2)"),
        ("linf:0.3", "targeted:next", "gaussian"),
    ],
)
def test_witnesses_batches_and_queries(
    family: str, goal: str, noise: str, network: Classifier, labelled: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustkit.registry import make

    x, y = labelled[0][:6], labelled[1][:6]
    attack, threat = make("attack", f"boundary:400,sampler={noise}"), load_threat(family)
    asked: dict[int, int] = {}
    for name, points in (("_forward", lambda p: 1), ("_many", lambda p: p.shape[1])):
        original = getattr(View, name)

        def counted(self: View, p: Tensor, *near: Any, original: Any = original, points: Any = points) -> Tensor:
            for index, done in zip(self.rows.index.tolist()[:1], self.book["done"].tolist()):
                asked[index] = asked.get(index, 0) + (0 if done else points(p))
            found: Tensor = original(self, p, *near)
            return found

        monkeypatch.setattr(View, name, counted)
    alone = [
        attack(network, x[i : i + 1], y[i : i + 1], threat=threat, goal=goal, pool=labelled, index=torch.tensor([i])) for i in range(len(x))
    ]
    for i, one in enumerate(alone):
        assert int(one.queries) == asked.get(i, -1) + 1 or int(one.queries) == 0
    together = attack(network, x, y, threat=threat, goal=goal, pool=labelled)
    for name in ("adversarial", "success", "size", "queries", "parameters"):
        assert torch.equal(torch.cat([getattr(one, name) for one in alone]), getattr(together, name)), name
    hit = together.success
    assert bool(hit.any())
    assert int(together.queries.max()) <= 400
    assert bool(threat.contains(x[hit], together.parameters[hit]).all())
    predicted = network.logits(together.adversarial[hit]).argmax(1)
    assert bool((predicted != y[hit]).all() if goal == "untargeted" else (predicted == (y[hit] + 1) % 10).all())


def test_only_classes_are_used(network: Classifier, labelled: tuple[Tensor, Tensor]) -> None:
    class Cubed(nn.Module):
        """The same classes, other scores."""

        def forward(self, x: Tensor) -> Tensor:
            return network.module(x) * 7 - 3

    x, y = labelled[0][:16], labelled[1][:16]
    one, other = (Boundary(300)(model, x, y, threat="l2:1", pool=labelled) for model in (network.module, Cubed()))
    assert torch.equal(one.parameters, other.parameters)


def test_where_noise_is_not_misclassified_the_walk_starts_at_another_image() -> None:
    class Dark(nn.Module):
        """Class 1 is for nearly black images alone."""

        def forward(self, x: Tensor) -> Tensor:
            value = 0.2 - x.flatten(1).mean(1)
            return torch.stack([-value, value], 1)

    x = 0.25 + 0.1 * images(6)
    pool = torch.cat([x, torch.zeros(1, 1, 8, 8)])
    result = Boundary(400)(Dark(), x, torch.zeros(6, dtype=torch.int64), threat="l2:2", pool=(pool, torch.tensor([0] * 6 + [1])))
    assert bool(result.success.all())


def test_words() -> None:
    assert Boundary.minimum_norm and not Boundary.bounded
    assert str(Boundary(sampler="auto").spec) == str(Boundary(sampler="auto").spec)  # type: ignore[arg-type]
    for wrong in ({"queries": 20}, {"side": 0.0}, {"restarts": 0}, {"sampler": "nothing"}):
        with pytest.raises(BadInput):
            Boundary(**wrong)  # type: ignore[arg-type]
