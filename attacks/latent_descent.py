"""Latent descent, the attack made for analysis by synthesis by Schott et al. 2019, https://arxiv.org/abs/1805.09190.

The image is moved step by step towards what the model itself reconstructs of it for a wrong class;
where the class changes the way back is halved, and begun again towards the reconstruction of the
point that was found. It asks for scores, and reads the reconstructions that the answer was made of.

Deliberate deviations: the authors move on a straight line, chosen for l2; here the reconstruction is
projected onto balls of growing size, which is the same line in l2 and the shortest way in other
norms. A wrong class is kept for a whole attempt, where theirs takes the best at every step; and
the way back is begun anew several times, where theirs is halved once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustkit.attacks.targets import likeliest_wrong
from robustkit.classifier import Classifier
from robustkit.data import Data
from robustkit.errors import BadInput
from robustkit.methods import Attack, Rows, State
from robustkit.numerics import choose
from robustkit.threats import Threat
from robustkit.views import ScoreView


@dataclass(frozen=True)
class LatentDescent(Attack):
    """Moves an image towards a model's own reconstruction of it as a wrong class, then halves the way back.

    Fields: steps towards the reconstruction; halvings of the way back, in each of several rounds;
    targets, the likeliest wrong classes tried in turn.
    """

    steps: int = 10
    halvings: int = 8
    rounds: int = 2
    targets: int = 1

    name = "latent-descent"
    positional = ("steps",)
    access = "score"
    threats = ("linf", "l2", "l1", "l0")
    paper = "Schott et al. 2019"
    bounded = False
    minimum_norm = True

    def __post_init__(self) -> None:
        if min(self.steps, self.halvings, self.rounds, self.targets) < 1:
            found = f"{self.steps}, {self.halvings}, {self.rounds} and {self.targets}"
            raise BadInput(f"latent-descent: steps, halvings, rounds and targets are at least 1, found {found}")

    @property
    def iterations(self) -> int:
        return self.steps + 1 + self.halvings * self.rounds

    def attempts(self, classes: int) -> int:
        return min(self.targets, classes - 1)

    def target(self, logits: Tensor, y: Tensor, attempt: Tensor) -> Tensor:
        return likeliest_wrong(logits, y, attempt, self.targets)

    def prepare(self, pool: Callable[[], Data], classifier: Classifier, threat: Threat, eps: float, seed: int) -> dict[str, Any]:
        if not hasattr(classifier.module, "reconstructions"):
            why = f"the model {classifier.spec} reconstructs nothing"
            raise BadInput(f"latent-descent: {why}: it is for analysis by synthesis, such as zoo:mnist-abs; use boundary for other models")
        return {}

    def init(self, rows: Rows, view: ScoreView, threat: Threat) -> State:  # type: ignore[override]
        nothing = torch.zeros_like(rows.eps)
        return {
            "p": threat.zero(rows.x),
            "way": threat.zero(rows.x),
            "low": nothing,
            "high": torch.full_like(nothing, torch.inf),
            "best": threat.zero(rows.x),
        }

    def step(self, rows: Rows, state: State, view: ScoreView, threat: Threat) -> State:  # type: ignore[override]
        p, way, low, high = (state[name] for name in ("p", "way", "low", "high"))
        hit = view.goal.hit(view.goal.margin(view.scores(p), rows.y, rows.target))
        size = threat.size(rows.x, p)
        nearer = hit & (size < high)
        best, high = choose(nearer, p, state["best"]), torch.where(nearer, size, high)
        low = torch.where(hit, low, torch.maximum(low, size))
        outward = torch.isinf(high)  # not there yet
        back = (rows.steps - self.steps).clamp(min=0) % self.halvings == 0
        anew = outward | nearer & (state["high"] == torch.inf) | back & (rows.steps > self.steps)
        low = torch.where(anew & ~outward, 0.0, low)
        here = choose(outward, p, best)
        way = choose(anew, self._way(rows, here, view, threat), way)
        share = ((rows.steps + 1) / self.steps).clamp(max=1)
        length = torch.where(outward, share * threat.size(rows.x, way), (low + high) / 2)
        return {"p": threat.project(rows.x, way, length), "way": way, "low": low, "high": high, "best": best}

    def _way(self, rows: Rows, p: Tensor, view: ScoreView, threat: Threat) -> Tensor:
        """The change to the reconstruction, as the row's target, of the image that p makes."""
        classifier = view.classifier
        made: Tensor = classifier.module.reconstructions(classifier.normalise(threat.apply(rows.x, p)))  # type: ignore[operator, union-attr]
        return made[torch.arange(len(rows), device=made.device), rows.target] - rows.x
