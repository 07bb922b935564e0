"""Variational autoencoders of small grey images, one for each class, and all their decoders as one network.

Layout and parameter names are those of Schott et al. 2019 (https://arxiv.org/abs/1805.09190), whose
published weights therefore fit: `Encoder.conv_0.weight`, `Decoder.bn_2.running_var` and so on; the
last sigmoid is not part of the decoder. Beside their nets for 28x28 pixels there are smaller ones
for 8x8.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Layer = tuple[int, int, int]
"""(features out, kernel, stride) of a convolution without padding."""

LAYOUTS: dict[int, tuple[tuple[Layer, ...], tuple[Layer, ...]]] = {
    28: (((32, 5, 1), (32, 4, 2), (64, 3, 2), (0, 5, 1)), ((32, 4, 1), (16, 5, 2), (16, 5, 2), (1, 4, 1))),
    8: (((16, 5, 1), (0, 4, 1)), ((16, 4, 1), (1, 5, 1))),
}
"""Image side -> layers of encoder and decoder; the encoder's last gives means and log variances."""


class VAE(nn.Module):
    """Encoder to means and log variances of `latent` values, decoder from them to an image, its sigmoid left to the caller."""

    Encoder: nn.Sequential
    Decoder: nn.Sequential

    def __init__(self, latent: int, encoder: Sequence[Layer], decoder: Sequence[Layer]) -> None:
        super().__init__()
        self.Encoder = _net(nn.Conv2d, 1, [*encoder[:-1], (2 * latent, *encoder[-1][1:])])
        self.Decoder = _net(nn.ConvTranspose2d, latent, decoder)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R,1,H,W) -> means and log variances, (R,L) each."""
        mean, log_variance = self.Encoder(x).flatten(1).chunk(2, 1)
        return mean, log_variance

    def decode(self, z: Tensor) -> Tensor:
        """(R,L) -> (R,1,H,W) images in (0,1)."""
        decoded: Tensor = self.Decoder(z[:, :, None, None])
        return decoded.sigmoid()


def _net(kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], width: int, layers: Sequence[Layer]) -> nn.Sequential:
    """Convolutions, all but the last followed by batch normalisation and ELU."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (features, kernel, stride) in enumerate(layers):
        parts[f"conv_{number}"] = kind(width, features, kernel, stride)
        if number + 1 < len(layers):
            parts[f"bn_{number}"] = nn.BatchNorm2d(features)
            parts[f"nl_{number}"] = nn.ELU()
        width = features
    return nn.Sequential(parts)


@dataclass(frozen=True)
class Decoders:
    """The decoders of K classes as one grouped network in eval mode, batch normalisation folded in; a snapshot of their weights."""

    first: Tensor
    """(K,L,F) from latents to the first map."""
    bias: Tensor
    """(F x K,) of the first map."""
    side: int
    layers: tuple[tuple[Tensor, Tensor, int], ...]
    """Weights (K x in, out, k, k), biases (K x out,) and strides of the layers that follow."""

    @staticmethod
    def of(vaes: Sequence[VAE], dtype: torch.dtype) -> Decoders:
        """Those of the given VAEs, which share one layout."""
        with torch.no_grad():
            folded = [_folded(vae.Decoder, dtype) for vae in vaes]
        (weight, bias, _), *rest = [tuple(zip(*layer)) for layer in zip(*folded)]
        later = tuple((torch.cat(w), torch.cat(b), s[0]) for w, b, s in rest)
        return Decoders(torch.stack([w.flatten(1) for w in weight]), torch.cat(bias), weight[0].shape[2], later)

    def __call__(self, z: Tensor) -> Tensor:
        """(R,K,L) latents -> (R,K,D) images in (0,1)."""
        rows, classes = z.shape[:2]
        h = torch.bmm(z.transpose(0, 1), self.first).transpose(0, 1).reshape(rows, -1, self.side, self.side) + self.bias[:, None, None]
        for weight, bias, stride in self.layers:
            h = functional.conv_transpose2d(functional.elu(h), weight, bias, stride, groups=classes)
        return h.view(rows, classes, -1).sigmoid()


def _folded(decoder: nn.Sequential, dtype: torch.dtype) -> list[tuple[Tensor, Tensor, int]]:
    """(weight (in,out,k,k), bias (out,), stride) of every layer with the batch normalisation behind it."""
    found = []
    parts = dict(decoder.named_children())
    for number in range(sum(name.startswith("conv_") for name in parts)):
        conv = parts[f"conv_{number}"]
        assert isinstance(conv, nn.ConvTranspose2d)
        assert conv.bias is not None
        weight, bias = conv.weight.detach().to(dtype), conv.bias.detach().to(dtype)
        norm = parts.get(f"bn_{number}")
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            gain = norm.weight.detach().to(dtype) / (norm.running_var.to(dtype) + norm.eps).sqrt()
            weight = weight * gain[None, :, None, None]
            bias = (bias - norm.running_mean.to(dtype)) * gain + norm.bias.detach().to(dtype)
        found.append((weight, bias, int(conv.stride[0])))
    return found
