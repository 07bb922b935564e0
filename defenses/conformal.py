"""Conformal calibration: how often data of the training kind conforms as little as an input does.

Vovk et al. 2005; as deep kNN uses it, Papernot & McDaniel 2018, https://arxiv.org/abs/1803.04765.
p = (1 + calibration scores not above) / (n + 1), which is valid in finite samples; the authors' code
leaves out the 1 and drops calibration images without any disagreeing neighbour.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn

from robustkit.errors import BadInput


class Calibration(nn.Module):
    """Scores of images that nothing else was chosen by; a score says how well an image conforms to a class."""

    own: Tensor
    highest: Tensor

    def __init__(self, scores: Tensor, y: Tensor) -> None:
        """scores (n,K), the higher the more conforming; y (n,) true classes."""
        super().__init__()
        self.register_buffer("own", scores.gather(1, y[:, None])[:, 0].sort().values)
        self.register_buffer("highest", scores.amax(1).sort().values)

    def __len__(self) -> int:
        return len(self.own)

    def p_values(self, scores: Tensor) -> Tensor:
        """(N,K) p-value of every class; that of the true class is at most t with probability at most t."""
        below = torch.searchsorted(self.own.to(scores.dtype), scores.contiguous(), right=True)
        return (below + 1).to(scores.dtype) / (len(self) + 1)

    def threshold(self, share: Fraction) -> Tensor:
        """The highest score below which at most this share of clean images is to be expected.

        Credibility is a growing function of an image's highest score, so that this is a threshold
        on credibility, without its steps. Raises BadInput where there are too few images for the share.
        """
        rank = int(share * (len(self) + 1))
        if not 1 <= rank <= len(self):
            least = -(-share.denominator // share.numerator) - 1
            raise BadInput(
                f"reject = {float(share):g}: {len(self)} calibration images cannot tell; at least {least} can, and reject is below 1"
            )
        return self.highest[rank - 1]
