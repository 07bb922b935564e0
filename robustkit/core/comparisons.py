"""What counts as wrong, and what lies within a budget: the only comparisons that figures rest on.

An image is classified right only if the label's logit is finite and strictly larger than every other
one, in the model's own arithmetic. A tie, a NaN or a +inf is an error; -inf is an ordinary logit for
every class but the label. No margin is asked for: a margin relative to the logits would hide
adversarial examples behind a common offset, a small scale or classes masked with -1e9.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

RULE = 2
"""Version of the rule above; it belongs to a run's specification. Version 1 asked for a margin of 1e-5 (1 + largest logit)."""


def strictly_largest(logits: Tensor, of: Tensor) -> Tensor:
    """(R,) bool: whether the logit of class `of` (R,) int64 is finite and strictly larger than every other one of logits (R,K)."""
    own = logits.gather(1, of[:, None])[:, 0]
    others = logits.scatter(1, of[:, None], -math.inf).amax(1)  # NaN where one of them is NaN: then nothing is larger
    return torch.isfinite(own) & (own > others)


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """(R,) best other logit minus the label's: at least 0 exactly where the answer is an error (a tie is 0).

    Rows with a NaN or +inf, or with -inf for the label, get +inf. For searching; verdicts rest on `strictly_largest`.
    """
    own = logits.gather(1, y[:, None])[:, 0]
    found = logits.scatter(1, y[:, None], -math.inf).amax(1) - own
    if not logits.is_cuda and math.isfinite(float(logits.detach().sum())):
        return found  # the usual case, without a look at every value
    return torch.where(torch.isnan(found) | torch.isposinf(own), math.inf, found)


def units_in_last_place(values: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """float64 distance from each finite value to the next larger one of its size in `dtype`."""
    _, exponent = torch.frexp(values.double().abs())
    finfo = torch.finfo(dtype)
    return torch.ldexp(torch.full_like(exponent, finfo.eps, dtype=torch.float64), exponent - 1).clamp(min=finfo.tiny * finfo.eps)


def rounding_width(logits: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(R,) float64: the gap of the two largest of logits (R,K) up to which rounding could decide between them.

    That is 64 units in the last place of float32, or 2 of their own where the model answers in half precision.
    """
    size = logits.double().topk(2, dim=1).values.abs().amax(1)
    half = dtype in (torch.float16, torch.bfloat16)
    return (2 if half else 64) * units_in_last_place(size, dtype if half else torch.float32)


def close_call(logits: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(R,) bool: whether other machines, batches or summation orders may answer otherwise; `dtype` of the model's own logits."""
    first, second = logits.double().topk(2, dim=1).values.unbind(1)
    return torch.isfinite(first) & torch.isfinite(second) & (first - second <= rounding_width(logits, dtype))


def float_below(value: Fraction) -> float:
    """The largest float64 that does not exceed the exact fraction."""
    near = float(value)
    return near if Fraction(near) <= value else math.nextafter(near, -math.inf)


def within(size: Tensor, eps: Fraction | Tensor) -> Tensor:
    """Whether float64 sizes (R,) lie within the exact budget. The only place budgets are compared.

    Budgets per row come as float64 already rounded down by `float_below`, which decides the same.
    """
    return size.to(torch.float64) <= (float_below(eps) if isinstance(eps, Fraction) else eps)


def float32_below(value: Tensor) -> Tensor:
    """float64 values rounded down to float32."""
    low = value.to(torch.float32)
    over = low.to(torch.float64) > value
    return torch.where(over, torch.nextafter(low, torch.full_like(low, -math.inf)), low)
