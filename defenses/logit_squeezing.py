"""Logit squeezing, Kannan et al. 2018, https://arxiv.org/abs/1803.06373. A control: it is known to be broken.

As clean logit pairing, it makes margins small and the loss hard to climb instead of the model robust
(Mosbach et al. 2018, https://arxiv.org/abs/1810.12042).
Deliberate deviation: the learning rate follows one cycle.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.defenses.clean_logit_pairing import CleanLogitPairing
from robustkit.defenses.logit_pairing import apart


@dataclass(frozen=True)
class LogitSqueezing(CleanLogitPairing):
    """Minimises the cross-entropy of noisy images and the size of their logits.

    Gives robustness to weak attacks only: a known-broken control for an evaluation.

    Fields: weight of the squared norm of the logits; sigma, the standard deviation of the Gaussian
    noise on every image.
    """

    name = "logit-squeezing"

    def penalty(self, logits: Tensor) -> Tensor:
        """The mean square of the logits (R,K)."""
        return apart(logits, torch.zeros_like(logits))
