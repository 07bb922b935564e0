"""Linear models, where everything is known in closed form: the best point in a ball, the nearest boundary.

For logits W x + b the margin of class k over the label y grows by at most eps |w_k - w_y|_1 within
an l_inf ball and eps |w_k - w_y|_2 within an l_2 ball; where the box is in the way, the optimum is
found by bisection on the Lagrange multiplier.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from robustkit import streams
from robustkit.attacks.apgd import APGD
from robustkit.attacks.bim import BIM
from robustkit.attacks.fab import FAB
from robustkit.attacks.fgsm import FGSM
from robustkit.attacks.pgd import PGD
from robustkit.classifier import Classifier
from robustkit.driver import Driver
from robustkit.methods import Attack
from robustkit.radius import search_radius
from robustkit.samples import Outcome, Samples
from robustkit.threats import L0, L1, L2, Linf, Threat
from robustkit.verdict.goals import Goal
from robustkit.verdict.judge import Judge

COUNT = 24
FAMILIES: dict[str, type[Threat]] = {"linf": Linf, "l2": L2}


class Linear:
    """A linear model with `classes` classes, and images `spread` around grey with the labels it gives them."""

    def __init__(self, classes: int, spread: float = 0.2, seed: int = 0, shape: tuple[int, int, int] = (1, 6, 6)) -> None:
        size = math.prod(shape)

        def drawn(purpose: str, *sizes: int) -> Tensor:
            return streams.normal(streams.row_keys(seed, f"{purpose}/{classes}", torch.arange(1)), sizes)[0]

        self.weight = drawn("weight", classes, size)
        layer = nn.Linear(size, classes)
        layer.weight.data, layer.bias.data = self.weight, -0.5 * self.weight.sum(1) + 0.3 * drawn("bias", classes)
        self.model = nn.Sequential(nn.Flatten(), layer)
        keys = streams.row_keys(seed, "images", torch.arange(8 * COUNT))
        x = 0.5 + spread * (streams.uniform(keys, shape) - 0.5)
        first, second = Classifier(self.model).logits(x).topk(2).values.unbind(1)
        self.x = x[first - second > 0.3][:COUNT]  # so near to a boundary rounding decides
        assert len(self.x) == COUNT
        self.logits = Classifier(self.model).logits(self.x)
        self.y = self.logits.argmax(1)

    def distances(self, threat: Threat) -> Tensor:
        """(N,) to the nearest boundary, where the box is not in the way."""
        rows = torch.arange(COUNT)
        gap = self.logits[rows, self.y][:, None] - self.logits
        norm = (self.weight[self.y][:, None] - self.weight[None]).norm(p=1 if threat.name == "linf" else 2, dim=2)
        away = gap / norm
        away[rows, self.y] = torch.inf
        found: Tensor = away.amin(1)
        return found

    def gain(self, image: Tensor) -> Tensor:
        """(N,) for two classes: how much further the other logit is ahead at `image` than at x."""
        direction = (self.weight[1 - self.y] - self.weight[self.y]).double()
        return ((image.double() - self.x.double()).flatten(1) * direction).sum(1)

    def best_gain(self, threat: Threat) -> Tensor:
        """(N,) the most that `gain` can be within the ball and the box."""
        direction = (self.weight[1 - self.y] - self.weight[self.y]).double()
        low, high = -self.x.flatten(1).double(), 1 - self.x.flatten(1).double()
        eps = float(threat.eps)
        if threat.name == "linf":
            return (torch.minimum(torch.maximum(direction.sign() * eps, low), high) * direction).sum(1)
        slope, room = direction.abs(), torch.where(direction > 0, high, -low)
        if threat.name == "l0":
            return (slope * room).view(self.x.shape).sum(1).flatten(1).topk(int(eps), dim=1).values.sum(1)
        if threat.name == "l1":  # the values that gain most are filled up first
            slope, order = slope.sort(dim=1, descending=True)
            room = room.gather(1, order)
            return (slope * (eps - (room.cumsum(1) - room)).clamp(min=0).minimum(room)).sum(1)
        least, most = torch.zeros(COUNT, 1, dtype=torch.float64), torch.full((COUNT, 1), 1e6, dtype=torch.float64)
        for _ in range(100):
            middle = (least + most) / 2
            over = torch.minimum(torch.maximum(middle * direction, low), high).norm(dim=1, keepdim=True) > eps
            least, most = torch.where(over, least, middle), torch.where(over, middle, most)
        return (torch.minimum(torch.maximum(least * direction, low), high) * direction).sum(1)


def gained(two: Linear, attack: Attack, threat: Threat) -> Tensor:
    """(N,) share of the best gain that the attack's highest-loss point reaches."""
    result = attack(two.model, two.x, two.y, threat=threat, stop="never")
    assert bool(threat.contains(two.x, result.parameters).all())
    return two.gain(result.adversarial) / two.best_gain(threat)


# ---- two classes: the best point of a ball


@pytest.mark.parametrize("eps", ["0.02", "0.3"])
@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attack", [FGSM, PGD, BIM])
def test_the_best_point_of_a_ball_is_found(attack: type[FGSM | PGD], loss: str, family: str, eps: str) -> None:
    share = gained(Linear(2), attack(loss="ce" if loss == "ce" else "margin"), FAMILIES[family](eps))
    assert float(share.max()) <= 1 + 1e-6
    assert float(share.min()) >= (0.9999 if family == "linf" or attack is not PGD else 0.997)


@pytest.mark.parametrize("eps", ["0.02", "0.3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_apgd_finds_the_best_point_of_a_ball(family: str, eps: str) -> None:
    share = gained(Linear(2), APGD(restarts=1), FAMILIES[family](eps))
    assert 0.9999 <= float(share.min()) <= float(share.max()) <= 1 + 1e-6


@pytest.mark.parametrize("eps", ["0.05", "0.3", "1"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attack", [PGD(), APGD(restarts=1)], ids=lambda a: a.name)
def test_the_best_point_is_found_where_the_box_is_in_the_way(attack: Attack, family: str, eps: str) -> None:
    share = gained(Linear(2, spread=1.0), attack, FAMILIES[family](eps))
    assert float(share.max()) <= 1 + 1e-6
    assert float(share.min()) >= (0.9999 if family == "linf" else 0.98)


@pytest.mark.parametrize("spread", [0.2, 1.0])
@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 16, 16)])
@pytest.mark.parametrize("eps", ["0.5", "3", "12"])
@pytest.mark.parametrize("family", [L1, L0])
def test_the_best_sparse_change_is_found(family: type[Threat], eps: str, shape: tuple[int, int, int], spread: float) -> None:
    threat = family(max(1, int(float(eps))) if family is L0 else eps)
    share = gained(Linear(2, spread=spread, shape=shape), PGD(), threat)
    assert float(share.max()) <= 1 + 1e-6
    assert float(share.min()) >= (0.99 if family is L0 else 0.92)  # l1: equal steps along what gains most, whatever it gains
    assert float(share.mean()) >= 0.97


# ---- the nearest boundary


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("classes", "attack", "above"),
    [
        (2, FGSM(), 1.001),
        (2, PGD(), 1.005),
        (2, APGD(restarts=1), 1.001),
        (2, FAB(steps=10), 1.01),
        (3, PGD(loss="dlr", restarts=10), 1.05),
        (4, APGD("dlr-targeted", steps=40, restarts=1), 1.01),
        (7, APGD("dlr-targeted", steps=40, restarts=1), 1.02),
        (10, FAB(steps=30), 1.03),
    ],
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_just_below_the_nearest_boundary_nothing_just_above_everything(classes: int, attack: Attack, above: float, family: str) -> None:
    linear = Linear(classes)
    judge = Judge(Classifier(linear.model), FAMILIES[family](1), Goal())
    distance = linear.distances(judge.threat).double()
    assert float(distance.max()) < 0.4  # the box is not in the way
    for factor, expected in ((0.999, False), (above, True)):
        parts: list[Outcome] = []
        work = Samples(torch.arange(COUNT), linear.y, torch.full((COUNT,), -1), linear.logits, distance * factor, lambda at: linear.x[at])
        Driver(attack, judge).run(work, parts.append)
        found = Outcome.join(parts)
        assert sorted(found.at.tolist()) == list(range(COUNT))
        assert found.success.tolist() == [expected] * COUNT


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attack", [PGD(steps=40), FGSM()], ids=lambda a: a.name)
def test_a_radius_search_finds_the_distance(attack: Attack, family: str) -> None:
    two = Linear(2)
    threat = FAMILIES[family](1)
    judge = Judge(Classifier(two.model), threat, Goal())
    eps = torch.zeros(COUNT, dtype=torch.float64)
    work = Samples(torch.arange(COUNT), two.y, torch.full((COUNT,), -1), two.logits, eps, lambda at: two.x[at])
    most = float(threat.unbounded((1, 6, 6)))
    found = search_radius(lambda: Driver(attack, judge), work, eps, torch.full_like(eps, torch.inf), most)
    assert bool(found.success.all())
    assert torch.equal(found.at, torch.arange(COUNT))
    ratio = found.size / two.distances(threat)
    assert float(ratio.min()) >= 1 - 1e-6
    assert float(ratio.max()) <= 1.02
    assert torch.equal(found.size, threat.size(two.x, found.parameters))
    assert bool((two.model(threat.apply(two.x, found.parameters)).argmax(1) != two.y).all())
    assert bool((found.queries > 0).all())


def test_a_radius_search_keeps_what_is_known() -> None:
    """A sample held up to `low` is only searched above it, one broken at `high` only below it."""
    two = Linear(2)
    threat = Linf(1)
    judge = Judge(Classifier(two.model), threat, Goal())
    distance = two.distances(threat).double()
    eps = torch.zeros(COUNT, dtype=torch.float64)
    work = Samples(torch.arange(COUNT), two.y, torch.full((COUNT,), -1), two.logits, eps, lambda at: two.x[at])
    near = search_radius(lambda: Driver(PGD(steps=10), judge), work, 0.9 * distance, 1.1 * distance, 1.0)
    assert float((near.size[near.success] / distance[near.success]).max()) <= 1.02
    assert bool(near.success.any())
    settled = search_radius(lambda: Driver(PGD(steps=10), judge), work, 0.999 * distance, distance, 1.0)
    assert not bool(settled.success.any())
    assert int(settled.queries.sum()) == 0
    assert torch.isinf(settled.size).all()
