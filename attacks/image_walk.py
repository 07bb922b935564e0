"""The boundary attack from images of other classes: a walk that begins at the nearest one and needs the model's classes only.

Noise, where boundary.py begins, lies far from every image. On networks that hide their scores, where nothing
but walks and transfer is left to an attack, the nearest image of another class is the better place to begin at.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustkit.attacks import starting
from robustkit.attacks.boundary import Boundary
from robustkit.methods import Rows
from robustkit.numerics import choose
from robustkit.threats import Threat
from robustkit.views import View


@dataclass(frozen=True)
class ImageWalk(Boundary):
    """Walks along the decision boundary, from the nearest image of another class. Fields as in Boundary."""

    queries: int = 5000

    name = "image-walk"
    version = 1

    def _far(self, rows: Rows, view: View, threat: Threat) -> Tensor:
        if view.goal.targeted:
            return super()._far(rows, view, threat)
        far, there = starting.to_another(rows, view.shared["pool"]())
        return far if bool(there.all()) else choose(there, far, super()._far(rows, view, threat))
