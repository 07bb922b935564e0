"""Noise that black-box attacks try: plain Gaussian, or only its low frequencies.

Low frequencies: Guo, Frank & Weinberger 2019, https://arxiv.org/abs/1809.08758. A sampler is a small
frozen dataclass, so every attack that draws Gaussian noise takes any of them by its specification.

Draws come from hashed keys (robustkit.streams). A key only says where in a bank of normal numbers,
the same in every run, an image of noise begins, at one of 2^20 places (Salimans et al. 2017,
https://arxiv.org/abs/1703.03864, section 2.1): noise costs no more than copying it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from robustkit import streams
from robustkit.errors import BadInput, unknown
from robustkit.numerics import wide
from robustkit.spec import Spec, build, canonical, parse

_LEVELS = 1 << 16
_PLACES = 1 << 20
"""Places of the bank where noise may begin."""


class Sampler(ABC):
    """Noise images that depend on nothing but their key."""

    name: ClassVar[str]
    positional: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def draw(self, keys: Tensor, count: int, shape: tuple[int, ...]) -> Tensor:
        """(R,count,C,H,W) float32 noise for (R,) keys; every free coefficient is standard normal."""

    def free(self, shape: tuple[int, ...]) -> int:
        """Number of free coefficients of an image (C,H,W)."""
        return math.prod(shape)


@dataclass(frozen=True)
class Gaussian(Sampler):
    """Independent standard normal values."""

    name = "gaussian"

    def draw(self, keys: Tensor, count: int, shape: tuple[int, ...]) -> Tensor:
        return normal(keys, count, shape)


@dataclass(frozen=True)
class LowFrequency(Sampler):
    """Standard normal weights of the lowest frequencies of the orthonormal cosine transform.

    Fields: ratio, the part of the spectrum that is kept per side (at least the constant).
    """

    ratio: Fraction = Fraction(1, 4)

    name = "low-frequency"
    positional = ("ratio",)

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise BadInput(f"low-frequency: ratio is the kept part of the spectrum, in (0,1], found {self.ratio}: write for example 1/4")

    def sides(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of the kept corner of the spectrum."""
        return max(1, int(shape[-2] * self.ratio)), max(1, int(shape[-1] * self.ratio))

    def free(self, shape: tuple[int, ...]) -> int:
        return shape[0] * math.prod(self.sides(shape))

    def draw(self, keys: Tensor, count: int, shape: tuple[int, ...]) -> Tensor:
        return from_spectrum(normal(keys, count, (shape[0], *self.sides(shape))), shape)


SAMPLERS: dict[str, type[Sampler]] = {"gaussian": Gaussian, "low-frequency": LowFrequency}


PLAIN = Spec("gaussian")
"""The sampler that attacks use unless told otherwise."""


def sampler(given: str | Spec | Sampler) -> Sampler:
    """A sampler from a specification such as `low-frequency:1/4`; raises BadInput."""
    if isinstance(given, Sampler):
        return given
    return _built(parse(given) if isinstance(given, str) else given)


@lru_cache(maxsize=256)
def _built(spec: Spec) -> Sampler:
    if spec.name not in SAMPLERS:
        raise unknown("sampler", spec.name, SAMPLERS)
    return build(SAMPLERS[spec.name], spec, "sampler")


def sampler_spec(given: str | Spec | Sampler) -> Spec:
    """The same with every field written out, so that equal samplers have equal text; raises BadInput."""
    made = sampler(given)
    return canonical(made, made.name)


def at_step(keys: Tensor, steps: Tensor) -> Tensor:
    """(R,) keys for a row's draws of one step: the same stream as the row's own key, 2^32 values further on each step."""
    return streams.further(keys, (steps + 1) << 32)


def normal(keys: Tensor, count: int, shape: tuple[int, ...]) -> Tensor:
    """(R,count,*shape) float32 standard normal for (R,) keys."""
    size = math.prod(shape)
    begin = streams.bits(keys, count).flatten() & (_PLACES - 1)
    bank = _bank(1 << (size - 1).bit_length(), str(keys.device))
    return bank.unfold(0, size, 1).index_select(0, begin).view(-1, count, *shape)


def uniform(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(R,*shape) float32 uniform on (-1,1) for (R,) keys, 16 bits each."""
    return _bits16(keys, shape).to(torch.float32).add_(0.5).mul_(2 / _LEVELS).view(-1, *shape)


def from_spectrum(weights: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(...,h,w) weights of the lowest frequencies -> (...,H,W) images; norms stay."""
    rows, columns = weights.shape[-2:]
    across = torch.matmul(weights, cosines(shape[-1], columns, weights.device).t())
    return torch.matmul(cosines(shape[-2], rows, weights.device), across)


def around(p: Tensor, noise: Tensor, length: Tensor) -> Tensor:
    """(R,S,...) the points p + l z, then p - l z, for noise z (R,S/2,...) and lengths l (R,)."""
    half, long = noise.shape[1], wide(length, noise)
    points = torch.empty(len(p), 2 * half, *p.shape[1:], dtype=p.dtype, device=p.device)
    torch.addcmul(p[:, None], noise, long, out=points[:, :half])
    torch.addcmul(p[:, None], noise, long, value=-1, out=points[:, half:])
    return points


def cosines(length: int, kept: int, device: torch.device) -> Tensor:
    """(length,kept) orthonormal columns: the slowest cosines on `length` points (DCT-II)."""
    return _cosines(length, kept, str(device))


@lru_cache(maxsize=64)
def _cosines(length: int, kept: int, device: str) -> Tensor:
    at, wave = torch.arange(length, dtype=torch.float64), torch.arange(kept, dtype=torch.float64)
    made = torch.cos(math.pi / length * (at[:, None] + 0.5) * wave) * math.sqrt(2 / length)
    made[:, 0] /= math.sqrt(2)
    return made.float().to(device)


def _bits16(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Flat int32 whole numbers in [-32768, 32767], row after row."""
    count = math.prod(shape)
    drawn = streams.bits(keys, -(-count // 4)).view(torch.int16)
    return drawn[:, :count].reshape(-1).to(torch.int32)


@lru_cache(maxsize=8)
def _bank(longest: int, device: str) -> Tensor:
    """Normal numbers for images of at most so many values, whichever of the places they begin at."""
    key = torch.tensor([streams.text_key("robustkit/bank of normal numbers")])
    drawn = streams.uniform(key, (_PLACES + longest,))[0].double()
    made: Tensor = torch.special.ndtri(drawn)
    return made.float().to(device)
