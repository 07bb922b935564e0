"""Attacks in the l1 ball against linear programs: the nearest boundary of a linear model, the box included."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linprog
from small_cases import images
from torch import Tensor, nn

from robustkit import streams
from robustkit.attacks import APGDL1, FAB
from robustkit.attacks.fab import nearest_on_plane
from robustkit.classifier import Classifier
from robustkit.driver import Driver
from robustkit.methods import Attack
from robustkit.samples import Outcome, Samples
from robustkit.threats import L1
from robustkit.threats.sparse import signs_of_largest
from robustkit.verdict.goals import Goal
from robustkit.verdict.judge import Judge

COUNT, SIZE = 12, 64


def shortest(x: Tensor, w: Tensor, goal: float) -> float:
    """The smallest l1 norm of a change d with w d >= goal that leaves x (D,) in the box."""
    rise, fall = (1 - x).tolist(), x.tolist()
    bounds = [(0.0, most) for most in rise + fall]
    found = linprog([1.0] * len(bounds), A_ub=[(-w).tolist() + w.tolist()], b_ub=[-goal], bounds=bounds)
    return float(found.fun) if found.success else float("inf")


class Linear:
    """A linear model, images of which the box is in the way of many values, and the distances of their boundaries."""

    def __init__(self, classes: int) -> None:
        layer, x = nn.Linear(SIZE, classes), images(4 * COUNT)
        layer.weight.data = streams.normal(streams.row_keys(0, "weight", torch.arange(classes)), (SIZE,))
        layer.bias.data = -0.5 * layer.weight.sum(1)
        self.model = nn.Sequential(nn.Flatten(), layer.requires_grad_(False))
        first, second = self.model(x).topk(2).values.unbind(1)
        self.x = x[first - second > 1][:COUNT]
        self.logits = self.model(self.x)
        self.y = self.logits.argmax(1)
        self.distance = torch.full((COUNT,), torch.inf, dtype=torch.float64)
        weight = layer.weight.double()
        for row, own in enumerate(self.y.tolist()):
            for other in set(range(classes)) - {own}:
                gap = float(self.logits[row, own].double() - self.logits[row, other].double())
                away = shortest(self.x[row].flatten().double(), weight[other] - weight[own], gap)
                self.distance[row] = min(float(self.distance[row]), away)


@pytest.mark.parametrize(
    ("classes", "attack", "above"),
    [(2, APGDL1(restarts=1), 1.01), (5, APGDL1("dlr-targeted", restarts=1), 1.01), (5, FAB(steps=20), 1.02), (10, FAB(steps=30), 1.02)],
    ids=["ce", "dlr-targeted", "fab", "fab-10"],
)
def test_just_below_the_nearest_boundary_nothing_just_above_everything(classes: int, attack: Attack, above: float) -> None:
    linear = Linear(classes)
    judge = Judge(Classifier(linear.model), L1(1), Goal())
    for factor, expected in ((0.999, False), (above, True)):
        parts: list[Outcome] = []
        eps, nobody = linear.distance * factor, torch.full((COUNT,), -1)
        Driver(attack, judge).run(Samples(torch.arange(COUNT), linear.y, nobody, linear.logits, eps, lambda at: linear.x[at]), parts.append)
        assert Outcome.join(parts).success.tolist() == [expected] * COUNT


def test_the_nearest_point_of_a_plane_is_that_of_a_linear_program() -> None:
    draws = streams.row_keys(1, "planes", torch.arange(20))
    x, w = streams.uniform(draws, (SIZE,)), streams.normal(draws, (SIZE,))
    value = streams.normal(streams.child(draws, 1), (1,))[:, 0] * 20
    d = nearest_on_plane(x, w, value, "l1")
    assert float((x + d).min()) >= -1e-6 and float((x + d).max()) <= 1 + 1e-6
    away = torch.sign(value)[:, None] * -w
    best = torch.tensor([shortest(*case) for case in zip(x.double(), away.double(), value.abs().tolist())])
    reachable = best.isfinite()
    assert 10 < int(reachable.sum()) < 20
    torch.testing.assert_close(d.abs().sum(1)[reachable], best[reachable], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((d * w).sum(1)[reachable], -value[reachable], rtol=1e-4, atol=1e-4)
    furthest = torch.where(away > 0, 1 - x, -x)
    torch.testing.assert_close(d[~reachable], furthest[~reachable])


@pytest.mark.parametrize("steps", [3, 10, 100])
def test_every_point_lies_in_the_ball_of_its_step(steps: int) -> None:
    attack, x, seen = APGDL1(steps=steps, restarts=1), images(8), []
    eps, threat = torch.full((8,), 2.0, dtype=torch.float64), L1(2)
    assert len(attack.radii) == steps + 1 and set(attack.radii) == {1.0, 2.0, 3.0} and attack.radii[-1] == 1.0
    if steps == 100:
        assert [attack.radii.count(radius) for radius in (3.0, 2.0, 1.0)] == [30, 30, 41]

    class Watching(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            seen.append(threat.size(x, image[:8].detach() - x))
            return torch.stack([image.flatten(1).sum(1) + 1000, image.flatten(1)[:, 0]], 1)

    attack(Watching(), x, torch.zeros(8, dtype=torch.int64), threat=threat)
    points = torch.stack(seen[-steps - 1 :])
    assert bool((points <= eps * torch.tensor(attack.radii, dtype=torch.float64)[:, None] + 1e-5).all())


def test_a_sparse_step_has_as_many_values_as_asked_for() -> None:
    gradient = streams.normal(streams.row_keys(2, "gradient", torch.arange(4)), (3, 4, 4))
    step = signs_of_largest(gradient, torch.tensor([0.0, 1.0, 7.5, 1000.0]))
    assert (step != 0).flatten(1).sum(1).tolist() == [1, 1, 7, 48]
    torch.testing.assert_close(step.abs().flatten(1).sum(1), torch.ones(4))
    assert bool((step.sign() * gradient >= 0).all())
    largest = gradient.abs() >= gradient.abs().flatten(1).amax(1)[:, None, None, None]
    assert bool((step[1] != 0).eq(largest[1]).all())
    assert not bool(signs_of_largest(torch.zeros(2, 1, 3, 3), torch.tensor([1.0, 4.0])).any())
