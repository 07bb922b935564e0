"""Small networks that analyse by synthesis, and images for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustkit import streams
from robustkit.models import build
from robustkit.models.synthesis import synthesis_of


def images(count: int, seed: int = 0) -> Tensor:
    return streams.uniform(streams.row_keys(seed, "images", torch.arange(count)), (1, 8, 8))


def lively(text: str, seed: int = 0) -> nn.Module:
    """A network whose decoders make something of their latents: larger weights, statistics that are not 0 and 1."""
    network = build(text, seed).eval()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for name, value in network.named_parameters():
            if "Decoder" in name:
                value.add_(0.3 * torch.randn_like(value))
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None and part.running_var is not None:
                part.running_mean.copy_(0.3 * torch.randn_like(part.running_mean))
                part.running_var.copy_(0.5 + torch.rand_like(part.running_var))
    return network


def still(text: str, seed: int = 0) -> nn.Module:
    """A network whose reconstructions do not depend on the latents: nearest of a few fixed images."""
    network = lively(text, seed)
    with torch.no_grad():
        for vae in synthesis_of(network).vaes:
            vae.Decoder.get_submodule("conv_0").get_parameter("weight").zero_()
    return network


def centres(network: nn.Module) -> Tensor:
    """(K,D) the fixed images of a still network."""
    model = synthesis_of(network)
    with torch.no_grad():
        return torch.cat([vae.decode(torch.zeros(1, model.latent)).flatten(1) for vae in model.vaes])
