"""Products whose rows do not depend on one another's company, for bounds.

A kernel may sum a row in another order where the row begins at an address that is no multiple of its vectors
(measured with MKL: `Linear(50, 10)` gives the rows 0, 4, 8... of a batch other last bits than the rest), and may
choose another order for another number of rows. So sizes are filled up to whole vectors here, and the numbers of
rows are fixed by the callers (binding.py, starts.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robustkit.fastlinear import linear, serves

WHOLE = 16
"""Values to which rows are filled up: a cache line of float32."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b for x (..., in) and weights (out, in)."""
    trained = torch.is_grad_enabled() and weight.requires_grad
    outputs, missing = len(weight), (-weight.shape[1] % WHOLE, -len(weight) % WHOLE)
    if trained or not any(missing) or (serves(x, weight) and not (torch.is_grad_enabled() and x.requires_grad)):
        return linear(x, weight, bias)
    filled = F.linear(F.pad(x, (0, missing[0])), F.pad(weight, (0, missing[0], 0, missing[1])))
    found = filled[..., :outputs].contiguous()
    return found if bias is None else found + bias


def convolved(convolve: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> Tensor:
    """convolve(x), image by image where the kernel would otherwise begin an image in the middle of a vector.

    In float64 convolutions on a CPU are one matrix product an image; in float32 oneDNN's do not mind.
    """
    even = weight.shape[0] % 2 == 0 and weight.shape[1] % 2 == 0
    if even or len(x) < 2 or x.dtype != torch.float64 or x.device.type != "cpu" or torch.is_grad_enabled():
        return convolve(x)
    return torch.cat([convolve(one.clone()) for one in torch.split(x, 1)])
