"""What a verifier spends on a stranger's entry at most. Costs are estimated before the work begins, never by doing it.

A submission names its network and its certifiers, so it could ask for gigabytes or for years. What
would cost more than the limits is left undone and named, with the option that raises the limit.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robustkit.batch_size import auto_batch
from robustkit.clock import seconds
from robustkit.errors import BadInput, Missing, first_line
from robustkit.models.architecture import skeleton
from robustkit.models.architectures import from_metadata
from robustkit.models.synthesis import Synthesis
from robustkit.numerics import PAD

if TYPE_CHECKING:
    from robustkit.classifier import Classifier

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
SPEED = 5e9
"""Multiplications a second of a slow core: what a network's size in text is turned into time by."""
COPIES = 4
"""Times that a file of weights lies in memory while it is read."""


class TooMuch(Missing):
    """The work would exceed a limit; nothing of it was done."""


@dataclass(frozen=True)
class Limits:
    """For one entry."""

    seconds: float = 7200.0
    memory: int = 4 << 30

    @staticmethod
    def asked(time_limit: str | float | None = None, most_memory: str | int | None = None) -> Limits:
        """What a user says, such as "2h" and "8g"; None for the usual. Raises BadInput."""
        asked = seconds(time_limit)
        return Limits(Limits.seconds if asked is None else asked, Limits.memory if most_memory is None else _bytes(most_memory))

    def time(self, needed: float, what: str) -> None:
        """Raises TooMuch where something would take longer than allowed; `needed` in seconds."""
        if not needed <= self.seconds:
            told = f"{what} would take about {in_words(needed)} here, the limit is {in_words(self.seconds)}"
            raise TooMuch(f"{told}: --time-limit allows more")

    def space(self, needed: float, what: str) -> None:
        """Raises TooMuch where something would need more memory than allowed; `needed` in bytes."""
        if not needed <= self.memory:
            told = f"{what} would need about {needed / 2**30:.3g} GiB, the limit is {self.memory / 2**30:.3g} GiB"
            raise TooMuch(f"{told}: --most-memory allows more")

    def network(self, metadata: Mapping[str, str], images: int = 1) -> None:
        """A network as its metadata describe it, before any of it is built; raises TooMuch, or BadInput for no network.

        Args:
            images: how many it is going to be asked about.
        """
        text, said = metadata.get("architecture"), metadata.get("input", "")
        shape = [int(part) for part in said.partition(" ")[0].split("x") if part.isdecimal() and len(part) < 7]
        if not text or len(shape) != 3 or not all(shape):
            raise BadInput("its metadata lack the architecture or the input, for example '1x28x28 in [0,1]'")
        net = skeleton(from_metadata(text, (shape[0], shape[1], shape[2]))).eval()
        try:
            values, products, table = size_of(net, (shape[0], shape[1], shape[2]))
        except (RuntimeError, ValueError, IndexError) as problem:
            raise BadInput(f"its architecture does not take its images: {first_line(problem)[:120]}") from problem
        rows = auto_batch(tuple(shape), torch.device("cpu"))
        self.space(4.0 * (values * rows + table), "the network's intermediate values")
        self.time(products * images / SPEED, f"the network's answers to {images:,} images")


LIMITS = Limits()


def size_of(net: nn.Module, shape: tuple[int, int, int]) -> tuple[float, float, float]:
    """(values that its layers produce, multiplications, values it keeps besides) for one image; `net` on the meta device."""
    values, products, table = _counted(net, torch.empty(1, *shape, device="meta"))
    for part in net.modules():
        if isinstance(part, Synthesis):  # it descends in the latent space of every class
            pixels = part.side**2
            _, decoder, _ = _counted(part.vaes[0].Decoder, torch.empty(1, part.latent, 1, 1, device="meta"))
            products += part.classes * (part.starts * pixels + 3.0 * part.steps * decoder)
            products += part.classes * part.starts * decoder / 1000  # once for all images: a share
            table += float(part.classes) * part.starts * pixels
            values += float(part.classes) * part.starts / 8
    return values, products, table


def _counted(net: nn.Module, x: Tensor) -> tuple[float, float, float]:
    values, products = 0.0, 0.0

    def count(layer: nn.Module, _: object, out: Any) -> None:
        nonlocal values, products
        if isinstance(out, Tensor):
            values += out.numel()
            weight = getattr(layer, "weight", None)
            if isinstance(layer, nn.ConvTranspose2d) or not isinstance(weight, Tensor):
                products += out.numel() * (1 if weight is None else math.prod(weight.shape[2:]) * weight.shape[0])
            else:
                products += out.numel() * math.prod(weight.shape[1:])

    hooks = [layer.register_forward_hook(count) for layer in net.modules() if not list(layer.children())]
    try:
        with torch.no_grad():
            net(x)
    finally:
        for hook in hooks:
            hook.remove()
    return values, products, 0.0


def pace(classifier: Classifier, images: Callable[[slice], Tensor]) -> float:
    """Seconds that one image takes in one forward pass here, one draw of a random model; measured on a batch."""
    x = images(slice(0, PAD)).to(classifier.device)
    before = classifier.forwards
    with torch.no_grad():
        classifier.forward(x[:1])
        start = time.perf_counter()
        classifier.forward(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        took = time.perf_counter() - start
    classifier.forwards = before  # looking at the clock is none of the answers
    return took / len(x)


def draws_of(classifier: Classifier) -> int:
    """Forward passes that one verdict takes: the votes of a random model, twice where a challenge is judged."""
    return 2 * classifier.surface.votes if classifier.random else 1


def in_words(value: float) -> str:
    """`90 s`, `2 h`, `3e+05 days`."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if value >= 2 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} s"


def _bytes(text: str | int) -> int:
    found = re.fullmatch(r"\s*(\d{1,15})\s*([kmgt]?)(i?b)?\s*", str(text).lower())
    if not found or int(found[1]) < 1:
        raise BadInput(f"memory {text!r}: expected for example 512m or 8g")
    return int(found[1]) * _UNITS[found[2]]
