"""Why attacks transfer, Demontis et al. 2019, https://arxiv.org/abs/1809.02861: a table, never evidence.

Three figures of the paper beside the transfer rate itself: the size of the target's input gradient
(how vulnerable it is), its alignment with the surrogate's (how alike the two are), and the
variability of the surrogate's loss over training sets (how much its optima are its own). The size
is the dual norm of the gradient, the steepest slope of the loss in the threat's norm.

Deliberate choice: variability needs the same model trained on several training sets; for a
surrogate handed over as a single model it is left open, not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustkit.attacks.losses import cross_entropy
from robustkit.attacks.pgd import PGD
from robustkit.classifier import Classifier, pick_device
from robustkit.data import Data, load_data
from robustkit.errors import BadInput
from robustkit.methods import Attack
from robustkit.models import load_model
from robustkit.threats import Threat, load_threat
from robustkit.threats.base import input_gradient

DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}
"""Norm of the gradient that bounds the loss's slope within a threat's norm."""
ROWS = 256


@dataclass(frozen=True)
class TransferRow:
    """One surrogate against one target; means over the samples the target gets right."""

    surrogate: str
    target: str
    threat: str
    samples: int
    surrogate_gradient: float
    """Size of the surrogate's input gradient."""
    target_gradient: float
    """Size of the target's input gradient."""
    alignment: float
    """Cosine between the two gradients, over samples where both are not zero."""
    variability: float | None
    """Variance of the surrogate's loss over its training sets; None where there is only one."""
    surrogate_rate: float
    """Share of the samples whose crafted image fools the surrogate itself."""
    transfer_rate: float
    """Share of the samples whose crafted image fools the target."""
    white_box_rate: float
    """Share that the same attack fools when it is crafted on the target."""


def transfer_study(
    target: Any,
    surrogates: Mapping[str, Any] | Sequence[Any],
    data: str | Data,
    threat: str | Threat,
    *,
    attack: Attack | None = None,
    seed: int = 0,
    device: str = "auto",
    root: str | None = None,
) -> list[TransferRow]:
    """How attacks crafted on each surrogate fare on the target.

    Args:
        target: a model or its specification.
        surrogates: specifications, or a mapping from names to models; a list of models stands for
            one model trained on several training sets, the first of which is attacked.
        data: labelled images or their specification.
        threat: linf, l2 or l1 with a budget.
        attack: what crafts (default PGD with 40 steps), run to the highest loss.

    Raises BadInput for threats without a dual norm, models of other classes, or a target that gets nothing right.
    """
    family = load_threat(threat)
    if family.name not in DUAL:
        raise BadInput(f"the transfer study needs a norm with a dual: expected {', '.join(DUAL)}, found {family.name}")
    crafting = attack or PGD(steps=40)
    place = pick_device(device)
    images = load_data(data, root=root)
    victim = load_model(target, device=place)
    victim.check(images.images(slice(0, 1)), images.y)
    right = torch.cat([victim.logits(x).cpu().argmax(1) == y for x, y in _parts(images)])
    if not bool(right.any()):
        raise BadInput("the target gets no image right: there is nothing to transfer to; check that data and model belong together")
    images = images.subset(right)
    slope = gradients(victim, images)[0]
    white = float(_fooled(victim, crafted(crafting, victim, images, family, seed), images).float().mean())
    rows = []
    for name, given in _named(surrogates):
        models = [load_model(one, device=place) for one in given]
        mine = gradients(models[0], images)[0]
        x = crafted(crafting, models[0], images, family, seed)
        row = TransferRow(
            surrogate=name,
            target=victim.spec or "model",
            threat=str(family.spec),
            samples=len(images),
            surrogate_gradient=size(mine, family),
            target_gradient=size(slope, family),
            alignment=alignment(mine, slope),
            variability=variability(models, images) if len(models) > 1 else None,
            surrogate_rate=float(_fooled(models[0], x, images).float().mean()),
            transfer_rate=float(_fooled(victim, x, images).float().mean()),
            white_box_rate=white,
        )
        rows.append(row)
    return rows


def gradients(model: Classifier, data: Data) -> tuple[Tensor, Tensor]:
    """(N,D) gradients of the cross-entropy with respect to the images, and its (N,) values; on the CPU."""
    found, losses = [], []
    for x, y in _parts(data):
        x, y = x.to(model.device), y.to(model.device)
        with torch.enable_grad():
            leaf = x.requires_grad_()
            values = cross_entropy(model.search(leaf).double(), y, torch.full_like(y, -1))
        found.append(input_gradient(values, leaf).flatten(1).cpu())
        losses.append(values.detach().cpu())
        model.backwards += len(x)
    return torch.cat(found), torch.cat(losses)


def size(gradient: Tensor, threat: Threat) -> float:
    """Mean dual norm of gradients (N,D)."""
    return float(torch.linalg.vector_norm(gradient, ord=DUAL[threat.name], dim=1).mean())


def alignment(a: Tensor, b: Tensor) -> float:
    """Mean cosine between gradients (N,D), over rows where neither is zero; 0 where there are none."""
    norms = a.double().norm(dim=1), b.double().norm(dim=1)
    told = (norms[0] > 0) & (norms[1] > 0)
    if not bool(told.any()):
        return 0.0
    cosine = (a.double() * b.double()).sum(1)[told] / (norms[0] * norms[1])[told]
    return float(cosine.mean())


def variability(models: Sequence[Classifier], data: Data) -> float:
    """Mean over the samples of the variance of the loss over models that differ in their training sets."""
    losses = torch.stack([gradients(model, data)[1] for model in models])
    return float(losses.var(0, correction=0).mean())


def crafted(attack: Attack, model: Classifier, data: Data, threat: Threat, seed: int) -> Tensor:
    """(N,C,H,W) the points of highest loss that the attack finds on a model; what it gets wrong stays as it is."""
    return attack(model, *data, threat=threat, seed=seed, index=data.index, stop="never").adversarial.cpu()


def _fooled(model: Classifier, x: Tensor, data: Data) -> Tensor:
    return torch.cat([model.logits(part).cpu().argmax(1) for part in torch.split(x, ROWS)]) != data.y


def _parts(data: Data) -> list[tuple[Tensor, Tensor]]:
    return [(data.images(where), data.y[where]) for where in torch.split(torch.arange(len(data)), ROWS)]


def _named(surrogates: Mapping[str, Any] | Sequence[Any]) -> list[tuple[str, list[Any]]]:
    if not surrogates:
        raise BadInput("the transfer study needs at least one surrogate, for example zoo:digits-standard")
    pairs = surrogates.items() if isinstance(surrogates, Mapping) else ((getattr(s, "spec", str(s)), s) for s in surrogates)
    return [(name, list(given) if isinstance(given, (list, tuple)) else [given]) for name, given in pairs]
