"""What Foolbox is given in place of its own parts: tensors that draw from streams, a criterion, two repaired attacks.

Foolbox is imported when one of these is first called.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from robustkit import streams
from robustkit.numerics import wide

_QUERIES = 64
"""Points of a gradient estimate that go forward together."""


def foolbox_class(name: str) -> Any:
    """A Foolbox class, imported when it is first needed."""
    import foolbox

    found = getattr(foolbox.attacks, name)
    return _CHANGED[name](found) if name in _CHANGED else found


def _projecting(base: Any) -> Any:
    """L2FMNAttack with a projection, onto a ball wider by a hundredth: networks of straight pieces are else neared for ever."""

    class L2FMNAttack(base):  # type: ignore[misc]
        def project(self, x: Any, x0: Any, epsilon: Any) -> Any:
            change = (x - x0).raw
            norm = torch.linalg.vector_norm(change.flatten(1), dim=1).clamp(min=1e-12)
            return x0 + change * wide((1.01 * epsilon.raw / norm).clamp(max=1), change)

    return L2FMNAttack


def _at_once(base: Any) -> Any:
    """HopSkipJumpAttack with its gradient estimate (section III-C of the paper) made of few large queries; for one row."""

    class HopSkipJumpAttack(base):  # type: ignore[misc]
        def approximate_gradients(self, is_adversarial: Any, x_advs: Any, steps: int, delta: Any) -> Any:
            here, reach, kind = x_advs.raw, float(delta.raw), type(x_advs)
            shape = (steps, *here.shape[1:])
            drawn = (x_advs.normal(shape) if self.constraint == "l2" else x_advs.uniform(shape, -1, 1)).raw.flatten(1)
            unit = (drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)).view(shape)
            points = (here + reach * unit).clamp(0, 1)
            sign = torch.cat([is_adversarial(kind(part)).raw for part in points.split(_QUERIES)]) * 2.0 - 1
            weight = sign if abs(float(sign.mean())) == 1 else sign - sign.mean()
            gradient = torch.einsum("n,n...->...", weight, (points - here) / (reach + 1e-8))[None]
            return kind(gradient / (torch.linalg.vector_norm(gradient) + 1e-12))

    return HopSkipJumpAttack


_CHANGED = {"L2FMNAttack": _projecting, "HopSkipJumpAttack": _at_once}


def criterion(aimed: bool) -> Any:
    """Foolbox's criterion, which also takes any number of images where there is one row."""
    import foolbox

    base: Any = foolbox.criteria.TargetedMisclassification if aimed else foolbox.criteria.Misclassification

    class Criterion(base):  # type: ignore[misc]
        def __call__(self, perturbed: Any, outputs: Any) -> Any:
            classes = outputs.argmax(axis=-1)
            return classes == self.target_classes if aimed else classes != self.labels

    return Criterion


def drawing(keys: Tensor) -> Any:
    """The kind of tensor that Foolbox computes with, drawing random numbers from the rows' keys.

    Draws have one leading entry a row, or any shape where there is one row.
    """
    import eagerpy

    base: Any = vars(eagerpy)["PyTorchTensor"]

    class Keyed(base):  # type: ignore[misc]
        __slots__ = ()
        drawn: ClassVar[int] = 0

        def _draw(self, source: Any, shape: Any) -> Tensor:
            shape = (shape,) if isinstance(shape, int) else tuple(shape)
            if len(keys) > 1 and shape[:1] != (len(keys),):
                raise ValueError(f"a draw of shape {shape} for {len(keys)} rows: these rows cannot work together")
            Keyed.drawn += 1
            drawn: Tensor = source(streams.child(keys, Keyed.drawn), shape[1:] if len(keys) > 1 else shape)
            return drawn.view(shape).to(self.raw.dtype)

        def uniform(self, shape: Any, low: float = 0.0, high: float = 1.0) -> Any:
            return type(self)(self._draw(streams.uniform, shape) * (high - low) + low)

        def normal(self, shape: Any, mean: float = 0.0, stddev: float = 1.0) -> Any:
            return type(self)(self._draw(streams.normal, shape) * stddev + mean)

    return Keyed
