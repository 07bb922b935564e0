"""Analysis by synthesis, Schott, Rauber, Bethge & Brendel 2019, https://arxiv.org/abs/1805.09190: the model.

An image belongs to the class whose variational autoencoder explains it best. The energy of class c
is E_c(x) = min over z of |x - G_c(z)|^2 + |z|^2 / 2, found for every image by descent in the latent
space: fixed random latents are scored first, then Adam goes on from the best of each class. Logits
are -E_c/784, those of the authors' code, times a factor for each class that the training may fit (1
in the authors' files, which have none); `confidence` is the paper's scaled softmax of them.

`abs(classes,latent[,SIDE][,starts=8000][,steps=50][,published])` in the architecture grammar. The answer has no
gradient, as in the authors' code; the adaptive surface gives the envelope's (Danskin): with the optimal
latents held fixed it is that of E_c itself, and nothing has to be differentiated through the descent.

Deliberate deviations from the authors' code, which `published` takes back: the best of all iterates
counts, not the last; latents longer than 5 are scaled back, where theirs also loses their signs; 50
updates, theirs makes 49. What the decoders make of the starts is kept: 251 MB for 8000 of ten classes
of 28x28 pixels, made with the first answer (some 5 s on one core).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustkit import streams
from robustkit.fastlinear import linear
from robustkit.models.vae import LAYOUTS, VAE, Decoders
from robustkit.numerics import pad_rows

SCALE, FLOOR = 440 / 784, 3.9e-5
"""alpha, here of the energy of all pixels together, and eta of the paper's scaled softmax."""
_SEED = 1234
"""Of the authors' start latents."""
RATE, LONGEST, DISMISSED = 0.05, 5.0, 0.1
"""Adam's learning rate in the latent space, the longest latent, and the share of start latents, the longest ones, that are left out."""
_FIRST, _SECOND, _TINY = 0.9, 0.999, 1e-8
_ROWS = {"cpu": 8, "cuda": 256}
"""Images worked on at a time: always as many, so that no answer depends on its batch."""
_FEW = 100
"""Starts, the best without slack, among which that with slack is chosen."""
_DECODED = 16
"""Start latents decoded at a time."""


class _Memory:
    """What is made once from the weights, and the last solutions; copies of the model share it."""

    def __init__(self) -> None:
        self.ready: dict[torch.dtype, tuple[tuple[int, torch.device], Decoders]] = {}
        self.table: tuple[tuple[int, torch.device], Tensor, Tensor, Tensor] | None = None
        self.last: dict[torch.dtype, tuple[tuple[int, torch.device], Tensor, Tensor]] = {}

    def __deepcopy__(self, memo: Any) -> _Memory:
        return self


class Synthesis(nn.Module):
    """A VAE for each class, and inference in them; a whole network. Keys in the state dict: VAE_c.Encoder.*, VAE_c.Decoder.*, factors."""

    optional = ("factors",)
    """What a state dict may lack."""
    factors: Tensor
    """(K,) of the energies."""

    def __init__(self, classes: int, latent: int = 8, side: int = 28, starts: int = 8000, steps: int = 50, published: bool = False) -> None:
        super().__init__()
        if side not in LAYOUTS:
            raise ValueError(f"images {side} pixels wide: expected {' or '.join(map(str, LAYOUTS))}")
        if classes < 2:
            raise ValueError(f"{classes} classes: expected at least 2")
        self.classes, self.latent, self.side, self.starts, self.steps = classes, latent, side, starts, steps
        self.published = published
        for number in range(classes):
            self.add_module(f"VAE_{number}", VAE(latent, *LAYOUTS[side]))
        self.register_buffer("factors", torch.ones(classes))
        self.memory = _Memory()

    @property
    def vaes(self) -> list[VAE]:
        """One for each class."""
        return [self.get_submodule(f"VAE_{number}") for number in range(self.classes)]  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        """(N,1,H,W) images -> (N,K) logits, without gradient."""
        if x.shape[1:] != (1, self.side, self.side):
            raise RuntimeError(f"abs takes images 1x{self.side}x{self.side}, found {'x'.join(map(str, x.shape[1:]))}")
        if x.is_meta:
            return x.new_empty(len(x), self.classes)
        return self.to_logits(self.infer(x)[0])

    def envelope(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """(N,K) logits whose gradient is that of the energies at the optimal latents (or z (N,K,L)), held fixed."""
        return self.to_logits(self.energies(x, self.solution(x.detach()) if z is None else z))

    def energies(self, x: Tensor, z: Tensor) -> Tensor:
        """(N,K) energies of images (N,1,H,W) at latents z (N,K,L), differentiable in the images."""
        return (x.flatten(1)[:, None] - self.decode(z)).square().sum(2) + z.square().sum(2) / 2

    def to_logits(self, energies: Tensor) -> Tensor:
        """(N,K) logits of energies."""
        return energies * self.factors / -(self.side**2)

    def confidence(self, x: Tensor) -> Tensor:
        """(N,K) the paper's scaled softmax: it tends to 1/K for an image that no class explains."""
        likelihood = (-SCALE * self.factors * self.infer(x)[0]).exp()
        return (likelihood + FLOOR) / (likelihood.sum(1, keepdim=True) + self.classes * FLOOR)

    def decode(self, z: Tensor) -> Tensor:
        """(N,K,D) what the decoders make of latents (N,K,L), without gradient."""
        decoders, rows = self.decoders(z.dtype), _ROWS[z.device.type]
        if not len(z):
            return z.new_zeros(0, self.classes, self.side**2)
        with torch.no_grad():
            return torch.cat([decoders(pad_rows(part, rows))[: len(part)] for part in torch.split(z.detach(), rows)])

    def solution(self, x: Tensor) -> Tensor:
        """(N,K,L) the latents that the model's own inference finds; those of the last one are remembered."""
        last = self.memory.last.get(x.dtype)
        if last is not None and last[0] == self._weights():
            same = streams.content_keys(x.float())[:, None] == last[1]
            if bool(same.any(1).all()):
                return last[2][same.to(torch.int8).argmax(1)]
        return self.infer(x)[1]

    def infer(self, x: Tensor, start: Tensor | None = None, steps: int | None = None, slack: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Energies (N,K) and the latents (N,K,L) where they were found, without gradient.

        Args:
            x: (N,1,H,W) images in [0,1], float32 or float64.
            start: (N,K,L) latents to go on from, in place of the best of the fixed ones.
            steps: of Adam; default the model's own.
            slack: (N,) distances by which every pixel may miss its value at no cost (for bounds in l_inf).
        """
        with torch.no_grad():
            count = _distinct(x, start, slack)  # batches are filled up with their last row
            rows = _ROWS[x.device.type]
            found = []
            for first in range(0, count, rows):
                part = slice(first, min(first + rows, count))
                block, begin, free = (None if v is None else pad_rows(v[part], rows) for v in (x, start, slack))
                assert block is not None
                begin = self.nearest_start(block, free) if begin is None else begin
                found.append([v[: part.stop - first] for v in self._descend(block, begin, self.steps if steps is None else steps, free)])
            if not found:
                return x.new_zeros(0, self.classes), x.new_zeros(0, self.classes, self.latent)
            energies, latents = (pad_rows(torch.cat(parts), len(x)) for parts in zip(*found))
            if start is None and steps is None and slack is None:
                self.memory.last[x.dtype] = (self._weights(), streams.content_keys(x.float()), latents)
            return energies, latents

    def nearest_start(self, x: Tensor, slack: Tensor | None = None) -> Tensor:
        """(R,K,L) of the fixed latents, for each class the one of the lowest energy."""
        latents, images, alone = self._table()
        flat, best = x.flatten(1).float(), []
        cost = latents.square().sum(1) / 2
        for decoded, own in zip(images, alone):  # one matrix product a class: all of them at once would need ten times the memory
            energy = own - 2 * linear(flat, decoded)
            if slack is None:
                best.append(latents[energy.argmin(1)])
                continue
            few = energy.topk(min(_FEW, len(latents)), largest=False).indices
            missed = ((flat[:, None] - decoded[few]).abs() - slack.to(flat)[:, None, None]).clamp(min=0)
            at = (missed.square().sum(2) + cost[few]).argmin(1, keepdim=True)
            best.append(latents[few.gather(1, at)[:, 0]])
        return torch.stack(best, 1).to(x.dtype)

    def decoders(self, dtype: torch.dtype) -> Decoders:
        """All decoders as one network, made anew only when the weights have changed."""
        key = self._weights()
        held = self.memory.ready.get(dtype)
        if held is None or held[0] != key:
            held = self.memory.ready[dtype] = (key, Decoders.of(self.vaes, dtype))
        return held[1]

    def _descend(self, x: Tensor, z: Tensor, steps: int, slack: Tensor | None) -> tuple[Tensor, Tensor]:
        """Adam on the energies from z (R,K,L): the lowest ones met, and where."""
        decode, pixels, steps = self.decoders(x.dtype), self.side**2, max(0, steps - self.published)
        flat, free = x.flatten(1)[:, None], None if slack is None else slack.to(x)[:, None, None]
        first, second = torch.zeros_like(z), torch.zeros_like(z)
        lowest, best = torch.full(z.shape[:2], torch.inf, dtype=z.dtype, device=z.device), z
        for step in range(1, steps + 2):
            with torch.set_grad_enabled(step <= steps):
                leaf = z.detach().requires_grad_(step <= steps)
                apart = flat - decode(leaf)
                apart = apart if free is None else (apart.abs() - free).clamp(min=0)
                energy = apart.square().sum(2) + leaf.square().sum(2) / 2
                total = energy.sum() / pixels
            lower = (energy.detach() < lowest) | self.published
            lowest, best = torch.where(lower, energy.detach(), lowest), torch.where(lower[..., None], z, best)
            if step > steps:
                break
            (gradient,) = torch.autograd.grad(total, leaf)
            first = first.lerp(gradient, 1 - _FIRST)
            second = second.lerp(gradient.square(), 1 - _SECOND)
            move = first / (1 - _FIRST**step) / ((second / (1 - _SECOND**step)).sqrt() + _TINY)
            z = shortened(z - RATE * move, self.published)
        return lowest, best

    def _table(self) -> tuple[Tensor, Tensor, Tensor]:
        """The fixed latents (S,L), what the decoders make of them (K,S,D), and their energies for a black image (K,S), in float32."""
        key = self._weights()
        if self.memory.table is None or self.memory.table[0] != key:
            self.memory.table = None
            latents = fixed_latents(self.starts, self.latent).to(key[1])
            with torch.no_grad():
                parts = torch.split(latents[:, None].expand(-1, self.classes, -1), _DECODED)
                images = torch.cat([self.decoders(torch.float32)(part).transpose(0, 1) for part in parts], 1)
            alone = torch.stack([decoded.square().sum(1) for decoded in images]) + latents.square().sum(1) / 2
            self.memory.table = (key, latents, images, alone)
        return self.memory.table[1:]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Files without factors have them all 1."""
        state_dict.setdefault(f"{prefix}factors", torch.ones(self.classes))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _weights(self) -> tuple[int, torch.device]:
        """What tells these decoders' weights from others, whatever their type."""
        tensors = [value for vae in self.vaes for value in vae.Decoder.state_dict().values() if value.is_floating_point()]
        flat = torch.cat([value.detach().float().flatten() for value in tensors])
        return int(streams.content_keys(flat[None])), flat.device


def synthesis_of(network: nn.Module) -> Synthesis:
    """The Synthesis in a network; raises LookupError without one."""
    found = next((part for part in network.modules() if isinstance(part, Synthesis)), None)
    if found is None:
        raise LookupError("no analysis by synthesis in this network")
    return found


def shortened(z: Tensor, unsigned: bool = False) -> Tensor:
    """Latents (...,L), those that are too long scaled back onto the sphere, where they may lose their signs."""
    length: Tensor = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    z = torch.where(length > LONGEST, z.abs(), z) if unsigned else z
    return z * (LONGEST / length.clamp(min=LONGEST))


def fixed_latents(count: int, latent: int) -> Tensor:
    """(count,L) standard normal latents, the likeliest of 10/9 as many, always the same: the authors' own for 8000 of 8."""
    drawn = np.random.RandomState(_SEED).standard_normal((int(count / (1 - DISMISSED)), latent))
    kept = np.sort((drawn**2).sum(1).argsort(kind="stable")[:count])
    return torch.from_numpy(drawn[kept]).float()


def _distinct(x: Tensor, start: Tensor | None, slack: Tensor | None) -> int:
    """Rows up to and with the first of those at the end that are all the same."""
    if len(x) < 2:
        return len(x)
    other = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for value in (x, start, slack):
        if value is not None:
            other |= (value != value[-1:]).flatten(1).any(1) if value.dim() > 1 else value != value[-1:]
    at = other.nonzero()
    return min(len(x), int(at[-1]) + 2) if len(at) else 1
