"""Random streams that depend on nothing but their key.

A key is a 64-bit hash of (seed, digest of the stage specification, dataset index, restart,
purpose). Draws are a counter-based integer hash of the key (the finaliser of splitmix64, Steele
et al. 2014), vectorised over rows, so a row draws the same numbers whatever its batch, worker or
device. No global generator is touched.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical (unsigned) right shift of int64."""
    return (value >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    return _mix_(value.clone())


def _mix_(value: Tensor) -> Tensor:
    """The finaliser, in place."""
    value.bitwise_xor_(_shift(value, 30)).mul_(_MIX1)
    value.bitwise_xor_(_shift(value, 27)).mul_(_MIX2)
    return value.bitwise_xor_(_shift(value, 31))


def _times(number: int | Tensor, factor: int) -> int | Tensor:
    """(number + 1) x factor modulo 2^64, signed; a whole number stays one, which no device has to be sent."""
    if isinstance(number, Tensor):
        return (number.to(torch.int64) + 1) * factor
    return ((number + 1) * factor + (1 << 63)) % (1 << 64) - (1 << 63)


def text_key(text: str) -> int:
    """A signed 64-bit integer from any text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


def further(keys: Tensor, values: Tensor) -> Tensor:
    """(R,) keys of the same streams, so many values (R,) further on: cheaper than a child key for every step."""
    return keys + values * _GOLDEN


def row_keys(seed: int, purpose: str, index: Tensor, attempt: Tensor | int = 0) -> Tensor:
    """One 64-bit key per row.

    Args:
        seed: the run's seed.
        purpose: any text, by convention the digest of the stage and what the draws are for.
        index: (R,) int64 dataset indices.
        attempt: (R,) int64 or int, the restart or target number.
    """
    start = text_key(f"{seed}/{purpose}")
    key = _mix(index * _GOLDEN + start)
    return _mix(key + _times(attempt, _MIX2))


def child(keys: Tensor, number: int | Tensor) -> Tensor:
    """Independent keys derived from `keys`, one for each `number` (a step, a purpose)."""
    return _mix_((keys ^ _MIX1) + _times(number, _GOLDEN))


@lru_cache(maxsize=64)
def _counter(count: int, device: torch.device) -> Tensor:
    """(1, count) what tells the draws of one key apart."""
    return torch.arange(1, count + 1, device=device, dtype=torch.int64)[None] * _GOLDEN


def bits(keys: Tensor, count: int) -> Tensor:
    """(R, count) hashed int64 values for (R,) keys."""
    return _mix_(keys[:, None] + _counter(count, keys.device))


def uniform(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(R, *shape) float32, uniform on the open interval (0, 1), 24 bits."""
    drawn = _shift(bits(keys, math.prod(shape)), 40)
    return drawn.to(torch.float32).add_(0.5).mul_(2.0**-24).clamp_(max=1 - 2.0**-24).view(-1, *shape)


def normal(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(R, *shape) float32 standard normal by Box-Muller; |z| is at most about 6.

    A row's draws are a multiple of 32: kernels compute what is left of a tensor after whole vectors by
    another logarithm and cosine, and a row would depend on its place in the batch.
    """
    count = math.prod(shape)
    pairs = uniform(keys, (2, -(-count // 64) * 32))
    radius = pairs[:, 0].log().mul_(-2).sqrt_()
    angle = pairs[:, 1] * (2 * math.pi)
    both = torch.cat([angle.cos().mul_(radius), angle.sin().mul_(radius)], dim=1)
    return both[:, :count].view(-1, *shape)


def integers(keys: Tensor, high: int | Tensor) -> Tensor:
    """(R,) int64 uniform on 0..high-1, for high up to 2^31 (bias below high / 2^32)."""
    drawn = _shift(bits(keys, 1)[:, 0], 32)
    return (drawn * high) >> 32


def content_keys(x: Tensor) -> Tensor:
    """(R,) int64 keys that depend on every value of each row of x (R,...) float32, and on nothing else."""
    words = x.detach().contiguous().flatten(1).view(torch.int32).to(torch.int64)
    weights = bits(torch.zeros(1, dtype=torch.int64, device=x.device), words.shape[1])[0] | 1
    return _mix((words * weights).sum(1))


@contextmanager
def seeded(keys: Tensor) -> Iterator[None]:
    """Inside, torch's global generators start at a hash of all keys; afterwards they are where they were."""
    seed = int((_mix(keys) & 0x7FFFFFFF).sum().item())
    devices = [keys.device] if keys.is_cuda else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
