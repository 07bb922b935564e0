"""Smoothed classifiers: the class that a base classifier gives most often under noise, or its highest mean score.

Named `smooth:(MODEL),sigma=0.25`, a model of its own: its clean accuracy, its attacks and its
certificates are about the smoothed classifier, not about MODEL. Noise is added in units of the
[0,1] box, before the base model's own normalisation. Two ways to make one answer of many draws:

- `aggregate=vote`: the class that most draws give, Cohen et al. 2019, https://arxiv.org/abs/1902.02918.
- `aggregate=mean`: the class whose softmax score is highest on average, PixelDP (Lecuyer et al. 2019,
  https://arxiv.org/abs/1802.03471) and the soft smoothed classifier of SmoothAdv (Salman et al. 2019,
  https://arxiv.org/abs/1906.04584).

A class drawn from the scores of every draw has the mean score as its probability. So the mean is a
vote too, of a base classifier with some noise more: predictions, abstentions and witnesses are
judged by counting such draws, with the same exact tests, and every certificate for votes holds for
it. Certifiers do not count, they use the scores themselves (`sums`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from robustkit import streams
from robustkit.classifier import Classifier
from robustkit.errors import BadInput
from robustkit.memory import keep_freed_memory
from robustkit.models.around import Around
from robustkit.spec import Spec, build, parse
from robustkit.surface import Surface, picked

Noise = Literal["gaussian", "uniform", "laplace"]
Aggregate = Literal["vote", "mean"]
BLOCK = 64
"""Draws of an image that come from one generator; a multiple of 16."""

ROWS = {"cpu": 256, "cuda": 16384}
"""Rows that go forward together."""


_PER_SIGMA: dict[str, float] = {"gaussian": 1.0, "uniform": math.sqrt(3), "laplace": math.sqrt(0.5)}


@dataclass(frozen=True)
class Smoothing:
    """How a model is smoothed: noise of standard deviation sigma, votes that the Judge counts, one answer by vote or mean."""

    sigma: Fraction
    noise: Noise = "gaussian"
    votes: int = 1000
    draws: int = 10
    """Draws that the gradients of an attack are averaged over."""
    aggregate: Aggregate = "vote"

    positional: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not 0 < self.sigma <= 100:
            raise BadInput(f"smoothing: sigma is {float(self.sigma):g}: expected a standard deviation above 0, in units of the [0,1] box")
        if self.noise not in ("gaussian", "uniform", "laplace"):
            raise BadInput(f"smoothing: unknown noise {self.noise!r}: known: gaussian, uniform, laplace")
        if self.aggregate not in ("vote", "mean"):
            raise BadInput(f"smoothing: unknown aggregate {self.aggregate!r}: expected vote (of classes) or mean (of softmax scores)")

    @property
    def scale(self) -> float:
        """What unit noise is multiplied by: sigma, the half width sqrt(3) sigma, or Laplace's b = sigma / sqrt(2)."""
        return float(self.sigma) * _PER_SIGMA[self.noise]


class Smoothed(Around):
    """The base network under noise: one draw a forward, `counts` for many."""

    takes_keys = True
    certifier = "smoothing"
    """What `robustkit certify` certifies it with unless told otherwise."""

    def __init__(self, base: Classifier, smoothing: Smoothing) -> None:
        super().__init__(base)
        if base.random:
            raise BadInput(f"the model {base.spec} is random already: smooth a deterministic one")
        if not isinstance(base.module, nn.Module):
            raise BadInput(f"the model {base.spec} is no nn.Module: only those can be smoothed")
        self.base, self.smoothing, self.classes = base.module, smoothing, base.classes

    def adaptive_surface(self) -> Surface:
        """Random: many draws make the answer; attacked through their mean softmax scores, as SmoothAdv does."""
        return Surface(random=self.smoothing.aggregate, votes=self.smoothing.votes, draws=self.smoothing.draws, soft=True)

    def plain(self, x: Tensor) -> Tensor:
        """Logits of the base classifier, without noise."""
        logits: Tensor = self.base(self.fed(x))
        return logits

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        """Logits (R,K) of x (R,C,H,W) under one draw of noise from (R,) keys."""
        return self.plain(x + self.smoothing.scale * _unit(self.smoothing.noise, keys, tuple(x.shape[1:])).to(x))

    def counts(self, x: Tensor, keys: Tensor, first: int, last: int, tick: Callable[[], None] | None = None) -> Tensor:
        """(R,K) int64 how often each class is given by draws first..last-1 of every image.

        With aggregate=mean a draw gives a class drawn from its softmax scores. Draw i of an image
        depends on its key and on i alone.
        """
        total = torch.zeros(0, dtype=torch.int64)
        for logits, block, wanted, chance in self._drawn(x, keys, first, last, tick):
            total = total if len(total) else torch.zeros(len(x), logits.shape[1], dtype=torch.int64, device=x.device)
            given = logits.argmax(1) if chance is None else picked(logits, chance)
            total.index_put_((block.repeat_interleave(BLOCK), given), wanted.to(torch.int64), accumulate=True)
        return total

    def sums(self, x: Tensor, keys: Tensor, first: int, last: int, tick: Callable[[], None] | None = None) -> tuple[Tensor, Tensor]:
        """(R,K) float64 sums of the scores of draws first..last-1 of every image, and of their squares.

        A score is softmax with aggregate=mean (none of a draw whose logits are no numbers), else 1 for the
        class that is given.
        """
        if self.smoothing.aggregate == "vote":
            counted = self.counts(x, keys, first, last, tick).double()
            return counted, counted
        total = torch.zeros(2, 0, 0)
        for logits, block, wanted, _ in self._drawn(x, keys, first, last, tick):
            total = total if total.numel() else torch.zeros(2, len(x), logits.shape[1], dtype=torch.float64, device=x.device)
            scores = logits.double().softmax(1).nan_to_num(0).mul_(wanted[:, None]).view(-1, BLOCK, logits.shape[1])
            total[0].index_add_(0, block, scores.sum(1))
            total[1].index_add_(0, block, scores.square().sum(1))
        return total[0], total[1]

    def _drawn(
        self, x: Tensor, keys: Tensor, first: int, last: int, tick: Callable[[], None] | None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        """Logits (B x BLOCK,K) of draws of the images, batch by batch, with the image (B,) of every block, which draws
        are wanted (B x BLOCK,) bool, and with aggregate=mean a uniform number for each.

        Blocks of draws come from torch generators seeded by (key, block), which cost what torch.randn
        costs. Batches are filled across images.
        """
        keep_freed_memory()
        jobs = [(row, block) for row in range(len(x)) for block in range(first // BLOCK, -(-last // BLOCK))]
        together = max(1, ROWS.get(x.device.type, 256) // BLOCK)
        seeds, how = keys.tolist(), self.smoothing
        noise = torch.empty(together, BLOCK, *x.shape[1:], device=x.device)
        chances = torch.empty(together, BLOCK, device=x.device) if how.aggregate == "mean" else None
        generator, inside = torch.Generator(x.device), torch.arange(BLOCK, device=x.device)
        owners, blocks = torch.tensor(jobs, dtype=torch.int64, device=x.device).view(-1, 2).unbind(1)
        with torch.no_grad():
            for at in range(0, len(jobs), together):
                some = jobs[at : at + together]
                for place, (row, block) in enumerate(some):
                    generator.manual_seed(_seed(seeds[row], block))
                    _fill(how.noise, noise[place], generator)
                    if chances is not None:
                        chances[place].uniform_(generator=generator)
                owner = owners[at : at + together]
                images = torch.add(x[owner][:, None], noise[: len(some)], alpha=how.scale).flatten(0, 1)
                logits = self.plain(images).nan_to_num(-torch.inf)
                index = blocks[at : at + together, None] * BLOCK + inside
                wanted = ((index >= first) & (index < last)).flatten()
                yield logits, owner, wanted, None if chances is None else chances[: len(some)].flatten()
                if tick is not None:
                    tick()


def _seed(key: int, block: int) -> int:
    return (key * 6364136223846793005 + (block + 1) * 1442695040888963407) & 0x7FFFFFFFFFFFFFFF


def _fill(noise: Noise, out: Tensor, generator: torch.Generator) -> None:
    """Unit noise in place: standard normal, uniform on [-1,1], Laplace of scale 1."""
    if noise == "gaussian":
        out.normal_(generator=generator)
    elif noise == "uniform":
        out.uniform_(-1, 1, generator=generator)
    else:
        out.uniform_(-1 + 2.0**-23, 1, generator=generator)
        out.copy_(-out.sign() * torch.log1p(-out.abs().clamp(max=1 - 2.0**-24)))


def _unit(noise: Noise, keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(R,*shape) unit noise from (R,) keys."""
    if noise == "gaussian":
        return streams.normal(keys, shape)
    drawn = streams.uniform(keys, shape) * 2 - 1
    return drawn if noise == "uniform" else -drawn.sign() * torch.log1p(-drawn.abs())


def smoothed(base: Classifier, smoothing: Smoothing) -> Classifier:
    """The smoothed classifier of a base classifier."""
    options = ",".join(f"{k}={v}" for k, v in _told(smoothing).items())
    spec = f"smooth:({base.spec or type(base.original).__name__}),{options}"
    return Classifier(
        Smoothed(base, smoothing),
        classes=base.classes,
        input_shape=base.input_shape,
        device=base.device,
        spec=spec,
        sha256=base.sha256,
        metadata=base.metadata,
    )


def _told(smoothing: Smoothing) -> dict[str, str]:
    return {k: str(v) for k, v in vars(smoothing).items()}


def smooth_options(rest: str) -> tuple[str, Smoothing]:
    """The base model's specification and the smoothing of `(MODEL),sigma=0.25`; raises BadInput."""
    if not rest.startswith("("):
        rest = "(" + rest.replace(",", "),", 1) if "," in rest else f"({rest})"
    depths = list(itertools.accumulate({"(": 1, ")": -1}.get(letter, 0) for letter in rest))
    if 0 not in depths:
        raise BadInput(f"smooth:{rest}: a bracket is open: write smooth:(MODEL),sigma=0.25")
    at = depths.index(0)
    inner, options = rest[1:at], rest[at + 1 :].lstrip(",")
    if "sigma" not in options:
        raise BadInput(f"smooth:{rest}: how much noise? write smooth:({inner}),sigma=0.25")
    found = parse(f"smooth:{options}")
    return inner, build(Smoothing, Spec("smooth", found.items, found.options), "smoothing")
