"""Models around another classifier's network: they take images in [0,1] and keep its normalisation inside."""

from __future__ import annotations

from torch import Tensor, nn

from robustkit.classifier import Classifier


class Around(nn.Module):
    """Base of modules that feed a classifier's network what the classifier itself would."""

    mean: Tensor
    std: Tensor

    def __init__(self, base: Classifier) -> None:
        super().__init__()
        self.normalises = base.normalises
        self.register_buffer("mean", base.mean.clone())
        self.register_buffer("std", base.std.clone())

    def fed(self, x: Tensor) -> Tensor:
        """What the network is fed for images x (N,C,H,W): a tensor of its own, into which it may write."""
        return (x - self.mean) / self.std if self.normalises else x.clone()
