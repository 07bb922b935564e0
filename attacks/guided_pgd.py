"""PGD that starts towards the nearest training image of the class it aims at.

The start of the attacks on (deep) nearest neighbours, Sitawarin & Wagner 2019 and 2020,
https://arxiv.org/abs/1903.08333 and https://arxiv.org/abs/2003.06878: far from every image of
another class, neighbours give no direction. Their loss, distances in feature space to guide images
in a differentiable form, is the surrogate that a deep kNN declares (robustkit.defenses.deep_knn);
here its margin is raised, at the budget instead of with a penalty on the size of the change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from robustkit.attacks import starting
from robustkit.attacks.pgd import PGD
from robustkit.attacks.targets import likeliest_wrong
from robustkit.classifier import Classifier
from robustkit.data import Data
from robustkit.errors import BadInput
from robustkit.methods import Rows, State
from robustkit.numerics import choose
from robustkit.threats import Threat
from robustkit.views import GradientView


@dataclass(frozen=True)
class GuidedPGD(PGD):
    """PGD aimed at the likeliest wrong classes, each started towards the nearest training image of that class.

    Fields: as pgd, and targets, the classes tried one after another in every restart; random_start
    applies from the second restart on.
    """

    loss: Literal["ce", "margin", "dlr"] = "margin"
    targets: int = 3

    name = "guided-pgd"
    threats = ("linf", "l2", "l1", "l0")
    paper = "Sitawarin & Wagner 2020"
    version = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets < 1:
            raise BadInput(f"{self.name}: targets is at least 1, found {self.targets}")

    def attempts(self, classes: int) -> int:
        return super().attempts(classes) * min(self.targets, classes - 1)

    def target(self, logits: Tensor, y: Tensor, attempt: Tensor) -> Tensor:
        return likeliest_wrong(logits, y, attempt, self.targets)

    def prepare(self, pool: Callable[[], Data], classifier: Classifier, threat: Threat, eps: float, seed: int) -> dict[str, Any]:
        classes = classifier.classes or self.targets + 1
        return starting.classified(pool, classifier) | {"tries": min(self.targets, classes - 1)}

    def init(self, rows: Rows, view: GradientView, threat: Threat) -> State:  # type: ignore[override]
        change, _ = starting.to_target(rows, view.shared["pool"]())
        start = threat.project(rows.x, change, rows.eps)
        if self.random_start:
            middle = threat.project(rows.x, (start + threat.random(rows.x, rows.eps, rows.key)) / 2, rows.eps)
            start = choose(rows.attempt >= view.shared["tries"], middle, start)
        return {"p": start}
