"""One perturbation for all images, Shafahi et al. 2020, https://arxiv.org/abs/1811.11304.

Fitted on images of the training split by ascent of the sum of their losses, each cut off at `clip` so
that no single image pulls at it alone, and then applied as it is to every evaluated sample. What
is reported is therefore robustness to this one perturbation, far above that to an attack on each image.

Deliberate choices: steps shrink linearly from a length of eps (short ones settle early in poor
places); of all starts and epochs the perturbation that fools most of the pool is kept; images that
the model gets wrong without it are left out. A perturbation is fitted at the threat's own budget
or, for other budgets, at the next of its halves and doubles and scaled down, so that what a sample
gets depends on nothing but its own budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from robustkit import streams
from robustkit.attacks.losses import cross_entropy
from robustkit.classifier import Classifier
from robustkit.data import Data
from robustkit.errors import BadInput
from robustkit.methods import Attack, Rows, State
from robustkit.numerics import choose, pad_rows, padded, wide
from robustkit.threats import Threat
from robustkit.threats.base import input_gradient
from robustkit.threats.norms import reach, shorten_
from robustkit.views import GradientView

Fit = Callable[[float], Tensor]
"""A budget to the perturbation (1,C,H,W) fitted at it."""


@dataclass(frozen=True)
class Universal(Attack):
    """Applies one and the same perturbation, fitted on training images, to every sample.

    Fields: epochs over the pool of training images; batch, images a step; step_size, the first
    step's length as a share of eps; starts (the first from nothing, others from random points);
    clip, the most an image's loss counts.
    """

    epochs: int = 20
    batch: int = 128
    step_size: Fraction = Fraction(1)
    starts: int = 3
    clip: float = 9.0

    name = "universal"
    positional = ("epochs",)
    threats = ("linf", "l2")
    paper = "Shafahi et al. 2020"
    iterations = 1

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.starts) < 1:
            raise BadInput(f"universal: epochs, batch and starts are at least 1, found {self.epochs}, {self.batch} and {self.starts}")
        if self.step_size <= 0 or not self.clip > 0:
            raise BadInput(f"universal: step_size (a share of eps) and clip (a loss) are above 0, found {self.step_size} and {self.clip}")

    def prepare(self, pool: Callable[[], Data], classifier: Classifier, threat: Threat, eps: float, seed: int) -> dict[str, Any]:
        fitted: dict[float, Tensor] = {}

        def fit(budget: float) -> Tensor:
            if budget not in fitted:
                fitted[budget] = self.fit(pool(), classifier, threat, budget, seed)
            return fitted[budget]

        return {"fit": fit}

    def init(self, rows: Rows, view: GradientView, threat: Threat) -> State:  # type: ignore[override]
        rung = _rungs(rows.eps, float(threat.eps))
        p = torch.zeros_like(rows.x)
        for budget in torch.unique(rung[rung > 0]).tolist():
            p = choose(rung == budget, view.shared["fit"](budget), p)
        share = (rows.eps / rung.clamp(min=1e-45)).clamp(max=1)
        return {"p": within_norm(p * wide(share.to(p.dtype), p), rows.eps, threat.name)}

    def step(self, rows: Rows, state: State, view: GradientView, threat: Threat) -> State:  # type: ignore[override]
        return state  # the Judge looks at the point where a row ends

    def fit(self, pool: Data, classifier: Classifier, threat: Threat, eps: float, seed: int) -> Tensor:
        """(1,C,H,W) the perturbation of size at most eps that fools most images of the pool."""
        if not len(pool):
            raise BadInput("universal: the pool of training images is empty: hand over at least one image with pool=")
        right = ~_fooled(classifier, pool, torch.zeros(1, *pool.shape, device=classifier.device), seed)
        pool = pool.subset(right) if bool(right.any()) else pool
        best, most = torch.zeros(1, *pool.shape, device=classifier.device), -1
        for start in range(self.starts):
            for p in self._ascent(pool, classifier, threat, eps, seed, start):
                fooled = int(_fooled(classifier, pool, p, seed).sum())
                if fooled >= most:
                    best, most = p, fooled
        return best

    def _ascent(self, pool: Data, classifier: Classifier, threat: Threat, eps: float, seed: int, start: int) -> Iterator[Tensor]:
        """The perturbation after each epoch of one start."""
        length = torch.full((1,), eps, dtype=torch.float64, device=classifier.device)
        p = torch.zeros(1, *pool.shape, device=classifier.device)
        grey = torch.full_like(p, 0.5)  # for the perturbation belongs to no image
        if start:
            key = streams.row_keys(seed, f"{self.digest}/start", torch.zeros(1, dtype=torch.int64), start).to(p.device)
            p = threat.random(grey, length, key, boundary=True)
        parts = -(-len(pool) // self.batch)
        for epoch in range(self.epochs):
            keys = streams.row_keys(seed, f"{self.digest}/order/{start}", pool.index, epoch)
            order = torch.argsort(keys, stable=True)
            for number, where in enumerate(order.tensor_split(parts)):
                left = 1 - (epoch * parts + number) / (self.epochs * parts)
                gradient = self._gradient(classifier, pool.subset(where), streams.child(keys[where], 0), p)
                ahead = threat.step(grey, p, gradient, length * float(self.step_size) * left)
                p = within_norm(ahead, length, threat.name)
            yield p

    def _gradient(self, classifier: Classifier, part: Data, keys: Tensor, p: Tensor) -> Tensor:
        """(1,C,H,W) gradient of the sum of the clipped losses; a random model draws from (N,) keys."""
        x, y = part.x.to(classifier.device), part.y.to(classifier.device)
        with torch.enable_grad():
            leaf = p.detach().requires_grad_()
            logits = classifier.search((x + leaf).clamp(0, 1), keys.to(p.device))
            total = cross_entropy(logits, y, torch.full_like(y, -1)).clamp(max=self.clip).sum()
        classifier.backwards += len(x)
        return input_gradient(total, leaf).nan_to_num_(0.0, 0.0, 0.0)


def within_norm(p: Tensor, eps: Tensor, norm: str) -> Tensor:
    """p (R,C,H,W) pulled into the l_inf or l2 ball of (R,) eps, far enough that rounding x + p stays inside for every x."""
    if norm == "linf":
        inner = reach(eps, p)
        return torch.minimum(torch.maximum(p, -inner), inner)
    return shorten_(p.clone(), eps)


def _rungs(eps: Tensor, full: float) -> Tensor:
    """(R,) the smallest full x 2^k, k whole, that is not below eps; eps within rounding of one counts as it."""
    if full <= 0:
        return eps
    k = torch.ceil(torch.log2(eps.clamp(min=1e-45) / full) - 1e-9)
    return torch.where(eps > 0, full * torch.exp2(k), 0.0)


def _fooled(classifier: Classifier, pool: Data, p: Tensor, seed: int) -> Tensor:
    """(N,) bool: the images of the pool that the model gets wrong with p added; on the CPU."""
    parts = []
    with torch.no_grad():
        for where in torch.split(torch.arange(len(pool)), 256):
            images = (pool.images(where).to(p.device) + p).clamp_(0, 1)
            keys = pad_rows(streams.row_keys(seed, "universal/judged", pool.index[where]), padded(len(images))).to(p.device)
            logits = classifier.search(pad_rows(images, len(keys)), keys)[: len(images)]
            parts.append(logits.argmax(1).cpu() != pool.y[where])
    return torch.cat(parts)
