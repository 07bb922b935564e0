"""A model that sees black and white only, `binary:(MODEL)`: every pixel is rounded to 0 or 1 first.

With `binary:(zoo:mnist-abs),factors=[...]` this is Binary ABS of Schott et al. 2019
(https://arxiv.org/abs/1805.09190), whose energies have a factor for each class, found by a line search
on training images; with a plain network it is their baseline Binary CNN. Rounding has no gradient:
that of a sigmoid around the threshold stands in, which is why it does not stop an adversary who
knows of it, only changes below the distance of a pixel to one half.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit.classifier import Classifier
from robustkit.errors import BadInput
from robustkit.models.around import Around
from robustkit.models.synthesising import Synthesising
from robustkit.spec import canonical
from robustkit.surface import Surface

_THRESHOLD = 0.5
_WIDTH = 0.1
"""Of the sigmoid whose slope stands in for that of the step."""
_INSIDE = 1e-3
"""How far beyond the threshold a pixel is moved that has to change sides."""


class Binarised(Around):
    """A network that is fed images rounded at one half, its logits multiplied by a factor for each class."""

    factors: Tensor

    def __init__(self, base: Classifier, factors: Tensor) -> None:
        super().__init__(base)
        assert isinstance(base.module, nn.Module)
        self.base = base.module
        self.register_buffer("factors", factors)
        self.has_surrogate = base.surface.surrogate is not None

    def adaptive_surface(self) -> Surface:
        """A soft step in front, and behind it what the network itself declares."""
        return Surface(surrogate=self.soft)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,K); no gradient reaches x."""
        return self._scaled(self.base(self.fed(rounded(x))))

    def soft(self, x: Tensor) -> Tensor:
        """The same logits (N,K), with the gradient of a sigmoid in place of the step's."""
        fed = self.fed(softly_rounded(x))
        surface = getattr(self.base, "adaptive_surface", None)
        inner = surface().surrogate(fed) if self.has_surrogate and surface is not None else self.base(fed)
        return self._scaled(inner)

    def _scaled(self, logits: Tensor) -> Tensor:
        return logits * self.factors


class BinarisedSynthesis(Binarised):
    """Around an analysis by synthesis: its reconstructions and its latents, seen through the rounding."""

    def reconstructions(self, x: Tensor) -> Tensor:
        """(N,K,C,H,W) the images nearest to x (N,C,H,W) that are rounded as the network's reconstructions are."""
        made = rounded(self.base.reconstructions(self.fed(rounded(x))))  # type: ignore[operator]
        across = _THRESHOLD + _INSIDE * (2 * made - 1)
        return torch.where(made == rounded(x)[:, None], x[:, None].expand_as(made), across)

    def warm(self, x: Tensor, z: Tensor | None = None, steps: int = 0) -> tuple[Tensor, Tensor]:
        """See Synthesising.warm."""
        logits, z = self.base.warm(self.fed(softly_rounded(x)), z, steps)  # type: ignore[operator]
        return self._scaled(logits), z


def rounded(x: Tensor) -> Tensor:
    """0 below one half, else 1."""
    return (x >= _THRESHOLD).to(x.dtype)


def softly_rounded(x: Tensor) -> Tensor:
    """As `rounded`, with the gradient of a sigmoid."""
    soft = ((x - _THRESHOLD) / _WIDTH).sigmoid()
    return rounded(x) + (soft - soft.detach())


def line_search(logits: Tensor, y: Tensor, rounds: int = 3) -> tuple[float, ...]:
    """Factors for the classes that make logits (N,K), all below 0, right most often: one after another, 0.9 to 1.1.

    The logits are of training images; of equally good factors the one nearest to 1 is taken.
    """
    grid = torch.linspace(0.9, 1.1, 101, dtype=torch.float64)
    grid = grid[(grid - 1).abs().argsort(stable=True)]
    factors = torch.ones(logits.shape[1], dtype=torch.float64)
    for number in list(range(len(factors))) * rounds:
        trials = factors.repeat(len(grid), 1).index_copy(1, torch.tensor([number]), grid[:, None])
        right = torch.stack([((logits * trial).argmax(1) == y).double().mean() for trial in trials])
        factors[number] = grid[right.argmax()]
    return tuple(round(float(factor), 3) for factor in factors)


@dataclass(frozen=True)
class Binary:
    """A model fed images rounded to black and white.

    Fields: factors, one for each class, that its logits are multiplied by (default 1).
    """

    factors: tuple[float, ...] = ()

    name = "binary"
    positional = ()
    paper = "Schott et al. 2019"
    version = 1

    def __post_init__(self) -> None:
        if not all(math.isfinite(factor) and factor > 0 for factor in self.factors):
            raise BadInput(f"binary: factors are {list(self.factors)}: expected numbers above 0, one for each class")

    def wrap(self, base: Classifier) -> Classifier:
        """The classifier of rounded images; raises BadInput."""
        if base.random or base.surface.rejects or not isinstance(base.module, nn.Module):
            raise BadInput(f"binary: the model {base.spec} is random, rejects or is no nn.Module: name a plain trained network")
        if self.factors and (base.classes or 0) != len(self.factors):
            raise BadInput(f"binary: {len(self.factors)} factors for {base.classes} classes: give one for each, or none")
        factors = torch.tensor(self.factors or (1.0,), dtype=torch.float32, device=base.device)
        options = str(canonical(self, self.name)).partition(":")[2] if self.factors else ""
        made = BinarisedSynthesis if isinstance(base.module, Synthesising) else Binarised
        return Classifier(
            made(base, factors),
            classes=base.classes,
            input_shape=base.input_shape,
            device=base.device,
            spec=f"{self.name}:({base.spec or type(base.original).__name__}){',' + options if options else ''}",
            sha256=hashlib.sha256(f"{base.sha256}\n{options}\n{self.version}".encode()).hexdigest(),
            metadata=base.metadata,
        )
