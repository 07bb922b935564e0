"""Goals: which class is aimed at, and what counts as success."""

from __future__ import annotations

import math

import pytest
import torch

from robustkit.errors import BadInput
from robustkit.verdict.goals import GOALS, Goal


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("name", [name for name in GOALS if name.startswith("targeted")])
def test_targets_are_other_classes(name: str, classes: int) -> None:
    y, index = torch.arange(500) % classes, torch.arange(500)
    targets = Goal(name).targets(y, index, classes, seed=0)
    assert bool(((targets >= 0) & (targets < classes) & (targets != y)).all())
    assert torch.equal(targets[200:], Goal(name).targets(y[200:], index[200:], classes, seed=0))
    if name == "targeted:next":
        assert torch.equal(targets, (y + 1) % classes)
    elif classes > 2:
        assert not torch.equal(targets, Goal(name).targets(y, index, classes, seed=1))
        counts = torch.bincount((targets - y) % classes, minlength=classes)[1:]
        assert int(counts.min()) > 500 / (classes - 1) / 2


def test_no_goal_has_no_target() -> None:
    assert Goal().targets(torch.arange(3), torch.arange(3), 10, 0).tolist() == [-1] * 3
    assert not Goal().targeted


def test_success() -> None:
    logits = torch.tensor([[1.0, 3, 2], [3, 1, 3], [math.nan, 0, 0]])
    y, target = torch.tensor([1, 0, 0]), torch.tensor([2, 2, 1])
    assert Goal().margin(logits, y, target).tolist() == [-1, 0, math.inf]
    assert Goal("targeted:next").margin(logits, y, target).tolist() == [-1, 0, -math.inf]


def test_unknown_goals_are_refused() -> None:
    with pytest.raises(BadInput, match="did you mean 'untargeted'"):
        Goal("untargetd")
