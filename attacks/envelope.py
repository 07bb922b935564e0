"""Gradient ascent on a model that optimises while it answers, with its inner optimum kept warm.

Where logits are minima over latents, their gradient is that at the optimal latents, held fixed
(Danskin 1966, https://doi.org/10.1137/0114053): nothing is differentiated through the inner descent.
The optimum moves little from step to step, so that a few inner steps from the last one do, where
the model's own inference begins afresh. Attacks that go through the declared surface pay a whole
inference for every gradient; this one pays for one in `every` steps, when the deployed model is asked
and the latents are put back to what it found.

Only what the deployed model answers decides: latents gone astray may cost hits, they never make any.
For analysis by synthesis, Schott et al. 2019, https://arxiv.org/abs/1805.09190, who attacked it by
finite differences instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from torch import Tensor

from robustkit.attacks.losses import LOSSES, check_classes
from robustkit.classifier import Classifier
from robustkit.data import Data
from robustkit.errors import BadInput
from robustkit.methods import Attack, Rows, State
from robustkit.numerics import choose
from robustkit.threats import Threat
from robustkit.views import ScoreView


@dataclass(frozen=True)
class Envelope(Attack):
    """Steepest ascent on a model that optimises latents while it answers, the latents kept from step to step.

    Fields: steps; every so many of them the deployed model is asked; inner steps in the latent space for
    each; restarts, the first from the image itself; loss; step_size, the length of the first step as a
    share of eps, which falls to a tenth of it. The last point is checked as well.
    """

    steps: int = 60
    every: int = 10
    inner: int = 6
    restarts: int = 1
    loss: Literal["margin", "ce", "dlr"] = "margin"
    step_size: Fraction = Fraction(1, 5)

    name = "envelope"
    positional = ("steps",)
    access = "score"  # of the view: its gradients come from the latents, not from the model's answer
    paper = "Schott et al. 2019"
    threats = ("linf", "l2")

    def __post_init__(self) -> None:
        if min(self.steps, self.every, self.inner, self.restarts) < 1:
            found = f"{self.steps}, {self.every}, {self.inner} and {self.restarts}"
            raise BadInput(f"envelope: steps, every, inner and restarts are at least 1, found {found}")
        if self.step_size <= 0:
            raise BadInput(f"envelope: step_size is a share of eps above 0, found {self.step_size}")
        if self.loss not in LOSSES:
            raise BadInput(f"envelope: unknown loss {self.loss!r}: known: {', '.join(LOSSES)}")

    @property
    def iterations(self) -> int:
        return -(-self.steps // self.every)

    def attempts(self, classes: int) -> int:
        check_classes(self.loss, classes)
        return self.restarts

    def prepare(self, pool: Callable[[], Data], classifier: Classifier, threat: Threat, eps: float, seed: int) -> dict[str, Any]:
        if not hasattr(classifier.module, "warm"):
            why = f"the model {classifier.spec} optimises nothing while it answers"
            raise BadInput(f"envelope: {why}: it is for analysis by synthesis, such as zoo:mnist-abs; use apgd for other models")
        return {}

    def init(self, rows: Rows, view: ScoreView, threat: Threat) -> State:  # type: ignore[override]
        start = threat.random(rows.x, rows.eps, rows.key)
        return {"p": choose(rows.attempt == 0, threat.zero(rows.x), start)}

    def step(self, rows: Rows, state: State, view: ScoreView, threat: Threat) -> State:  # type: ignore[override]
        p, z = state["p"], None
        view.scores(p)
        view.classifier.backwards += self.every * len(rows)
        view.book["gradients"] = view.book["gradients"] + self.every * ~view.book["done"]
        for number in range(self.every):
            done = (rows.steps * self.every + number) / self.steps
            gradient, z = self._ascent(rows, p, view, threat, z)
            length = rows.eps * float(self.step_size) * (1 - 0.9 * done).clamp(min=0.1)
            p = threat.project(rows.x, threat.step(rows.x, p, gradient, length), rows.eps)
        return {"p": p}

    def _ascent(self, rows: Rows, p: Tensor, view: ScoreView, threat: Threat, z: Tensor | None) -> tuple[Tensor, Tensor]:
        """The envelope's gradient of the loss with respect to p, and the latents it is at: a few inner steps
        from z, or without z those that the model's own answer was made of."""
        kept: dict[str, Tensor] = {}

        def objective(image: Tensor) -> Tensor:
            logits, kept["z"] = view.classifier.module.warm(view.classifier.normalise(image), z, self.inner)  # type: ignore[operator, union-attr]
            return LOSSES[self.loss](view.goal.seen(logits, rows.y), rows.y, rows.target)

        gradient, _ = threat.gradient(rows.x, p, objective)
        return gradient, kept["z"]
