"""Where a search that needs an image of a certain class begins: at the nearest one among other images.

The classes are those the model gives, asked once for all rows; which image is nearest to x is the
adversary's own arithmetic and costs no query.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from robustkit.classifier import Classifier
from robustkit.data import Data
from robustkit.methods import Rows
from robustkit.numerics import choose, pad_rows, padded

_ROWS = 64


@dataclass(frozen=True)
class Pool:
    """Images (M,C,H,W) to start at, and the (M,) class that the model gives each."""

    images: Tensor
    classes: Tensor

    def nearest(self, x: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest (Euclidean) image to each x (R,C,H,W) among those allowed (R,M), and (R,) whether there is one."""
        others = self.images.flatten(1).double()
        apart = others.square().sum(1) - 2 * x.flatten(1).double() @ others.t()  # but for what all have in common
        apart, at = torch.where(allowed, apart, torch.inf).min(1)
        return self.images[at], torch.isfinite(apart)


def classified(pool: Callable[[], Data], classifier: Classifier) -> dict[str, Any]:
    """For Attack.prepare: `view.shared["pool"]()` is the Pool, made when it is first asked for."""

    @cache
    def made() -> Pool:
        images = pool().x.to(classifier.device)
        parts = [images[i : i + _ROWS] for i in range(0, len(images), _ROWS)]
        found = [classifier.logits(pad_rows(part, padded(len(part))))[: len(part)].argmax(1) for part in parts]
        return Pool(images, torch.cat(found))

    return {"pool": made}


def to_target(rows: Rows, pool: Pool) -> tuple[Tensor, Tensor]:
    """(R,C,H,W) changes to images of the rows' target classes, and (R,) whether there is one; no change where there is none."""
    return _change(rows, pool, pool.classes[None] == rows.target[:, None])


def to_another(rows: Rows, pool: Pool) -> tuple[Tensor, Tensor]:
    """(R,C,H,W) changes to images that are not of the rows' labels, and (R,) whether there is one; no change where there is none."""
    return _change(rows, pool, pool.classes[None] != rows.y[:, None])


def _change(rows: Rows, pool: Pool, allowed: Tensor) -> tuple[Tensor, Tensor]:
    image, there = pool.nearest(rows.x, allowed)
    return choose(there, image - rows.x, torch.zeros_like(rows.x)), there
