"""A ResNet-18 for small images and a small vision transformer, with random weights: the networks of the invariance tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions and a way round them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(after), nn.BatchNorm2d(after)])
        same = before == after and stride == 1
        self.round = nn.Identity() if same else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        found = self.norms[1](self.second(F.relu(self.norms[0](self.first(x)))))
        return F.relu(found + self.round(x))


class ResNet18(nn.Module):
    """For images (N, 3, 32, 32): a 3x3 convolution in front, no pooling there."""

    def __init__(self) -> None:
        super().__init__()
        widths = [64, 64, 128, 256, 512]
        pairs = [(a, b, 1 if i == 0 else 2) for i, (a, b) in enumerate(zip(widths, widths[1:]))]
        blocks = [m for a, b, s in pairs for m in (Block(a, b, s), Block(b, b, 1))]
        self.front = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.blocks, self.last = nn.Sequential(*blocks), nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.blocks(self.front(x)).mean((2, 3)))
        return found


class Layer(nn.Module):
    """Attention and two fully connected layers, each with a way round it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.threefold, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        asked, keys, values = self.threefold(self.norms[0](x)).view(rows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(asked, keys, values).transpose(1, 2).reshape(rows, tokens, width)
        x = x + self.out(seen)
        found: Tensor = x + self.wide(self.norms[1](x))
        return found


class SmallViT(nn.Module):
    """For images (N, 3, 32, 32): 64 patches of 4x4, 3 layers of width 96."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.place = nn.Conv2d(3, 96, 4, 4), nn.Parameter(torch.randn(1, 64, 96) * 0.02)
        self.layers, self.last = nn.Sequential(*(Layer(96, 4) for _ in range(3))), nn.Sequential(nn.LayerNorm(96), nn.Linear(96, 10))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.layers(self.patches(x).flatten(2).transpose(1, 2) + self.place).mean(1))
        return found
