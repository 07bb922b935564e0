"""What counts as wrong and what lies within a budget: the only comparisons that verdicts rest on."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

MARGIN = 1e-5


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


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """(R,) best other logit minus the label's: above 0 is an error, exactly 0 a tie (also an error).

    Rows with a logit that is not finite get +inf.
    """
    own = logits.gather(1, y[:, None])[:, 0]
    found = logits.scatter(1, y[:, None], -math.inf).amax(1) - own
    if not logits.is_cuda and math.isfinite(float(logits.detach().sum())):
        return found  # the usual case, without a look at every value
    return torch.where(torch.isfinite(logits).all(1), found, math.inf)


def clear_margin(logits: Tensor) -> Tensor:
    """(R,) the margin below which float32 rounding could decide."""
    return MARGIN * (1 + torch.nan_to_num(logits, 0, 0, 0).abs().amax(1))


def close_call(logits: Tensor) -> Tensor:
    """(R,) bool: the two best logits lie within 64 units in the last place of float32 (2 of their own, in half precision).

    Nearer than this another machine, which adds in another order, may see another winner.
    """
    best = logits.double().topk(2, dim=1).values
    digits, units = {torch.float16: (11, 2), torch.bfloat16: (8, 2)}.get(logits.dtype, (24, 64))
    _, exponent = torch.frexp(best.abs().amax(1))
    unit = torch.ldexp(torch.ones_like(best[:, 0]), exponent - digits)
    return torch.isfinite(best).all(1) & (best[:, 0] - best[:, 1] <= units * unit)
