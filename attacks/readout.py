"""Square on a linear readout of the last layer whose values still change, for models whose logits are saturated.

The readout is fitted to the classes that the model gives to images and random points of their balls
(live_layer.py); it steers the random search of square.py, and the model itself is asked for its class
at every point. It needs no gradient, of the model or of anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustkit import streams
from robustkit.attacks.live_layer import LOOKED_AT, Features, fit, live_layer, scattered
from robustkit.attacks.square import Square
from robustkit.methods import Rows
from robustkit.threats import Threat
from robustkit.views import View

if TYPE_CHECKING:
    from robustkit.classifier import Classifier
    from robustkit.data import Data

_POINTS = 3
"""Random points in the ball of every image that the readout is fitted to, besides the image."""


@dataclass(frozen=True)
class ReadoutSquare(Square):
    """Square, steered by a readout of the last layer whose values still change. Fields as in Square."""

    queries: int = 2000

    name = "readout"
    access = "decision"  # type: ignore[assignment]
    paper = "Andriushchenko et al. 2020"
    version = 1

    def cost(self, classes: int) -> float:
        return 2.0 * super().cost(classes)

    def prepare(self, pool: Callable[[], Data], classifier: Classifier, threat: Threat, eps: float, seed: int) -> dict[str, Any]:
        data = pool()
        x = data.x.to(classifier.device)
        keys = streams.row_keys(seed, "readout", data.index).to(x.device)
        layer = live_layer(classifier, threat, x[:LOOKED_AT], eps, keys[:LOOKED_AT])
        points = torch.cat([x, *(scattered(threat, x, eps, streams.child(keys, draw)) for draw in range(_POINTS))])
        answers = torch.cat([classifier.logits(part).argmax(1) for part in torch.split(points, 256)])
        return {"readout": fit(Features(classifier, layer), points, answers, classifier.classes or int(answers.max()) + 1)}

    def ask(self, p: Tensor, rows: Rows, view: View, threat: Threat) -> Tensor:
        view.decisions(p)
        scores: Tensor = view.shared["readout"](threat.apply(rows.x, p))
        return scores
