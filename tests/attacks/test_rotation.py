"""The grid attack equals going through the grid by hand; queries are exact; random points are the threat's own."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from torch import Tensor, nn

from robustkit import load_data, load_model, streams
from robustkit.attacks import RotationSearch
from robustkit.attacks.rotation import grid
from robustkit.classifier import Classifier
from robustkit.errors import BadInput
from robustkit.models import build
from robustkit.threats import Rotation


def images(count: int) -> Tensor:
    return streams.uniform(streams.row_keys(0, "images", torch.arange(count)), (1, 8, 8))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build("conv(1,6,3,s2,p1)-relu-flatten-linear(96,5)", seed=1).requires_grad_(False)


class Fixed(nn.Module):
    """Always class 0."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sum(1, keepdim=True) * 0 + torch.tensor([1.0, 0.0, 0.0])


@pytest.mark.parametrize("threat", [Rotation("1/4", 30, 2), Rotation("1/2", 30, 0), Rotation("1/4", 0, 3)], ids=lambda t: str(t.spec))
def test_the_grid_attack_is_the_grid_by_hand(threat: Rotation, network: nn.Module) -> None:
    x, classifier = images(40), Classifier(network)
    y = classifier.logits(x).argmax(1)
    found = RotationSearch(angles=7, shifts=3)(classifier, x, y, threat=threat)
    turns = [-1, -2 / 3, -1 / 3, 0, 1 / 3, 2 / 3, 1] if threat.angle else [0]
    shifts = [-1, 0, 1] if threat.shift else [0]
    fooled = torch.zeros(40, dtype=torch.bool)
    points = list(itertools.product(turns, shifts, shifts))
    for point in points:
        p = (torch.tensor([point], dtype=torch.float64) * float(threat.eps)).float().expand(40, -1)
        fooled |= classifier.logits(threat.apply(x, p)).argmax(1) != y
    assert 0 < int(fooled.sum()) < 40
    assert torch.equal(found.success, fooled)
    assert set(found.queries[~fooled].tolist()) == {len(points)}
    assert bool((found.queries[fooled] <= len(points) + 1).all())
    assert int(found.gradients.sum()) == 0
    shares = found.parameters[fooled].double() / float(threat.eps) * 3
    assert torch.allclose(shares, shares.round(), atol=1e-5)


def test_the_published_grid_goes_from_its_farthest_points_inwards() -> None:
    points = grid(Rotation(), 31, 5, torch.device("cpu"))
    assert len(points) == len({tuple(point) for point in points.tolist()}) == 775
    sizes = points.abs().amax(1)
    assert torch.equal(sizes, sizes.sort(descending=True).values)
    assert points[-1].tolist() == [0, 0, 0]
    assert sorted({round(30 * a) for a in points[:, 0].tolist()}) == list(range(-30, 31, 2))


@pytest.mark.parametrize(("attack", "points"), [(RotationSearch(angles=5, shifts=2), 20), (RotationSearch("random", tries=7), 7)])
def test_an_attack_that_fails_has_tried_every_point_once(attack: RotationSearch, points: int) -> None:
    classifier = Classifier(Fixed())
    found = attack(classifier, images(20), torch.zeros(20, dtype=torch.int64), threat=Rotation())
    assert not bool(found.success.any())
    assert set(found.queries.tolist()) == {points}


def test_random_points_are_drawn_from_the_budget(network: nn.Module) -> None:
    x, classifier, threat = images(40), Classifier(network), Rotation("0.3")
    y = classifier.logits(x).argmax(1)
    few, many = (RotationSearch("random", tries=tries)(classifier, x, y, threat=threat) for tries in (2, 40))
    assert 0 < int(few.success.sum()) < int(many.success.sum())
    assert bool((many.size[many.success] <= 0.3).all())
    assert len({tuple(p) for p in many.parameters[many.success].tolist()}) == int(many.success.sum())
    other = RotationSearch("random", tries=40)(classifier, x[20:], y[20:], threat=threat, index=torch.arange(20, 40))
    assert torch.equal(other.parameters, many.parameters[20:])


def test_targets_are_met() -> None:
    classifier, (x, y) = load_model("zoo:digits-standard"), load_data("digits:n=32")
    found = RotationSearch(angles=7, shifts=5)(classifier, x, y, threat=Rotation(angle=90, shift=4), goal="targeted:next")
    assert int(found.success.sum()) > 7
    assert torch.equal(classifier.logits(found.adversarial).argmax(1)[found.success], ((y + 1) % 10)[found.success])


@pytest.mark.parametrize(
    ("fields", "says"), [({"mode": "walk"}, "grid or random"), ({"angles": 1}, "at least 2"), ({"tries": 1}, "tries is at least 2")]
)
def test_bad_fields_are_refused(fields: dict[str, str | int], says: str) -> None:
    with pytest.raises(BadInput, match=re.escape(says)):
        RotationSearch(**fields)  # type: ignore[arg-type]


def test_other_threats_are_refused(network: nn.Module) -> None:
    with pytest.raises(BadInput, match="does not work for threat linf"):
        RotationSearch()(network, images(2), torch.zeros(2, dtype=torch.int64), threat="linf:0.1")
