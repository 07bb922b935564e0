"""Attacks through other models: transfer from an ensemble of surrogates, and ensembles as one model.

Liu et al. 2017, https://arxiv.org/abs/1611.02770 (surrogates fused); Dong et al. 2018,
https://arxiv.org/abs/1710.06081 (fused logits, probabilities or losses, momentum); Xie et al. 2019
(input diversity, off unless asked for). The target is only asked about the final point: one query.

Deliberate choice: losses are fused as their weighted mean, so that of one model it is that model's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustkit import streams
from robustkit.attacks.di_fgsm import DIFGSM, _sample
from robustkit.attacks.losses import LOSSES
from robustkit.classifier import Classifier, as_classifier
from robustkit.data import Data
from robustkit.errors import BadInput
from robustkit.methods import Rows, State
from robustkit.models import load_model, zoo_names
from robustkit.models.around import Around
from robustkit.threats import Threat
from robustkit.views import Loss, View

Fuse = Literal["logits", "probabilities", "loss"]
FUSIONS = ("logits", "probabilities", "loss")


@dataclass(frozen=True)
class Transfer(DIFGSM):
    """Crafts on surrogate models and asks the attacked model about the final point only.

    Fields: models, the surrogates, for example transfer:[(zoo:digits-pgd),digits-ibp] (a bare name is
    a bundled model); fuse their logits, probabilities or loss; weights of the models (default equal);
    the others as in DI-FGSM, with probability=0 (no input diversity) unless said.
    """

    models: tuple[str, ...] = ()
    fuse: Fuse = "logits"
    weights: tuple[Fraction, ...] = ()
    probability: float = 0.0

    name = "transfer"
    positional = ("models",)
    access = "decision"
    paper = "Liu et al. 2017"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.models:
            raise BadInput("transfer: models is empty: name at least one surrogate, for example transfer:[digits-pgd,digits-ibp]")
        if self.fuse not in FUSIONS:
            raise BadInput(f"transfer: fuse = {self.fuse}: expected one of {', '.join(FUSIONS)}")
        if self.weights and (len(self.weights) != len(self.models) or min(self.weights) < 0 or not sum(self.weights)):
            raise BadInput("transfer: weights are numbers of at least 0, one for each model, not all 0")

    def cost(self, classes: int) -> float:
        return self.attempts(classes) * (2.0 * self.steps * len(self.models) + 1)

    def prepare(self, pool: Callable[[], Data], classifier: Classifier, threat: Threat, eps: float, seed: int) -> dict[str, Any]:
        return {"surrogates": [load_surrogate(name, classifier) for name in self.models]}

    def init(self, rows: Rows, view: View, threat: Threat) -> State:
        for surrogate in view.shared["surrogates"]:
            if surrogate.classes is None or surrogate.input_shape != tuple(rows.x.shape[1:]):
                surrogate.check(rows.x[:1], rows.y)
        return super().init(rows, view, threat)  # type: ignore[arg-type]

    def step(self, rows: Rows, state: State, view: View, threat: Threat) -> State:
        p = state["p"]
        grid = self._grid(rows) if self.probability else None
        keys = streams.child(streams.child(rows.key, 1), rows.steps)
        fused = fused_loss(LOSSES[self.loss], view.shared["surrogates"], self.fuse, [float(w) for w in self.weights], keys)

        def objective(image: Tensor) -> Tensor:
            return fused(image if grid is None else _sample(image, grid), rows.y, rows.target)

        gradient = threat.gradient(rows.x, p, objective)[0].nan_to_num_(0.0, 0.0, 0.0)
        for surrogate in view.shared["surrogates"]:
            surrogate.backwards += len(rows)
        ahead = threat.step(rows.x, p, self.direction(state, gradient), rows.eps * self.share)
        return state | {"p": threat.project(rows.x, ahead, rows.eps)}


def fused_loss(loss: Loss, models: Sequence[Classifier], fuse: Fuse, weights: Sequence[float] = (), keys: Tensor | None = None) -> Loss:
    """(images (R,C,H,W), y (R,), target (R,)) -> (R,) one loss of several models; random ones draw from (R,) keys."""
    share = torch.tensor(list(weights) or [1.0] * len(models))
    share = share / share.sum()

    def fused(image: Tensor, y: Tensor, target: Tensor) -> Tensor:
        every = [model.search(image, keys) for model in models]
        if fuse == "loss":
            return torch.stack([w * loss(logits, y, target) for w, logits in zip(share.to(image.device), every)]).sum(0)
        return loss(fuse_logits(every, fuse, share), y, target)

    return fused


def fuse_logits(every: Sequence[Tensor], fuse: str, share: Tensor) -> Tensor:
    """(R,K) logits of an ensemble: the weighted mean, or the logarithm of the weighted mean of the probabilities."""
    stacked = torch.stack(list(every))
    weight = share.to(stacked).view(-1, 1, 1)
    if fuse == "logits":
        return (weight * stacked).sum(0)
    return (stacked.log_softmax(2) + weight.clamp(min=1e-30).log()).logsumexp(0)


class Ensemble(nn.Module):
    """Several models as one, to be attacked by any method: logits (N,K) for images in [0,1].

    Args:
        models: nn.Modules, Classifiers or specifications such as zoo:digits-pgd, of the same classes.
        fuse: logits (their mean) or probabilities (the logarithm of their mean).
    """

    def __init__(self, models: Sequence[Any], fuse: Literal["logits", "probabilities"] = "logits") -> None:
        super().__init__()
        if not models:
            raise BadInput("an ensemble needs at least one model")
        if fuse not in FUSIONS[:2]:
            raise BadInput(f"fuse = {fuse!r}: an ensemble has one set of logits: expected logits or probabilities")
        members = [load_model(model) if isinstance(model, str) else as_classifier(model) for model in models]
        self.members = nn.ModuleList(_Deployed(member) for member in members)
        self.fuse = fuse

    def forward(self, x: Tensor) -> Tensor:
        every = [member(x) for member in self.members]
        return fuse_logits(every, self.fuse, torch.full((len(every),), 1 / len(every)))


class _Deployed(Around):
    """A classifier's network with its normalisation in front."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__(classifier)
        if not isinstance(classifier.module, nn.Module):
            raise BadInput(f"{classifier}: an ensemble is made of nn.Modules, this model is a plain callable: wrap it in a module")
        self.network = classifier.module

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(self.fed(x))
        return logits


def load_surrogate(name: str, classifier: Classifier) -> Classifier:
    """A surrogate on the device of the attacked classifier, for the same images and classes; raises BadInput."""
    found = load_model(f"zoo:{name}" if name in zoo_names() else name, device=classifier.device)
    if None not in (found.classes, classifier.classes) and found.classes != classifier.classes:
        told = f"the surrogate {name} knows {found.classes} classes, the attacked model {classifier.classes}"
        raise BadInput(f"{told}: choose surrogates for the same task")
    return found
