"""Second-order attack of Li et al. 2019, https://arxiv.org/abs/1809.03113: gradients averaged over Gaussian noise.

Where the gradient vanishes or is masked, what is left of the loss is its curvature. The gradient at
a point moved by noise contains the Hessian times that noise, so an average over a few draws leans
towards the directions of largest curvature; where the loss is jagged, it smooths.

Deliberate choices: the noise is not clamped to the box; by default its typical size is half the
budget (l_inf) or the budget (l2), as the best scale moves with it. The point itself is looked at
once a step, one forward beside the draws', so that a sample leaves as soon as it falls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from robustkit import streams
from robustkit.attacks.losses import LOSSES
from robustkit.attacks.pgd import PGD
from robustkit.errors import BadInput
from robustkit.methods import Rows, State
from robustkit.threats import Threat
from robustkit.views import GradientView


@dataclass(frozen=True)
class SecondOrder(PGD):
    """PGD along gradients that are averaged over Gaussian noise.

    Fields: as in PGD, and draws, the noisy images a step, all in one forward; sigma, the standard
    deviation of the noise in units of the [0,1] box (by default half of eps in l_inf, and so that
    the noise is about as long as eps in l2).
    """

    draws: int = 8
    sigma: Fraction | None = None

    name = "second-order"
    threats = ("linf", "l2")
    paper = "Li et al. 2019"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise BadInput(f"{self.name}: draws is a whole number of at least 1, found {self.draws}")
        if self.sigma is not None and self.sigma <= 0:
            raise BadInput(f"{self.name}: sigma is a standard deviation above 0 in units of the [0,1] box, found {self.sigma}")

    @property
    def width(self) -> int:
        return self.draws

    def cost(self, classes: int) -> float:
        return self.attempts(classes) * self.steps * (2.0 * self.draws + 1)

    def step(self, rows: Rows, state: State, view: GradientView, threat: Threat) -> State:  # type: ignore[override]
        p = state["p"]
        view.scores(p)
        keys = streams.child(rows.key, rows.steps + 1)
        noise = streams.normal(keys, (self.draws, *rows.x.shape[1:])) * self._scale(rows, threat)

        def noisy(image: Tensor) -> Tensor:
            return (image[:, None] + noise).flatten(0, 1)

        gradient, _ = view.gradient(p, LOSSES[self.loss], noisy, self.draws)
        ahead = threat.step(rows.x, p, self.direction(state, gradient), rows.eps * self.share)
        return state | {"p": threat.project(rows.x, ahead, rows.eps)}

    def _scale(self, rows: Rows, threat: Threat) -> Tensor:
        """(R,1,...) standard deviation of each row's noise."""
        share = 0.5 if threat.name == "linf" else 1 / math.sqrt(rows.x[0].numel())
        scale = rows.eps * share if self.sigma is None else rows.eps * 0 + float(self.sigma)
        return scale.to(rows.x.dtype).view(-1, *[1] * rows.x.dim())
