"""ADef: adversarial deformations, Alaifari et al. 2019, https://arxiv.org/abs/1804.07729.

The deformation's DeepFool: the smallest smoothed field that closes the linearised gap to the next
class, again and again, each added to the field that deforms the original image. The gradients of
all candidate classes come from one batched backward. Deliberate deviations: the candidates are
the likeliest classes where the field stands, not those of the clean image; every field is made a
little longer (`overshoot`), and aims as far behind the boundary as a witness has to lie.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.core.comparisons import rounding_width
from robustkit.errors import BadInput
from robustkit.methods import Attack, Rows, State
from robustkit.threats import Threat
from robustkit.views import GradientView


@dataclass(frozen=True)
class ADef(Attack):
    """Deforms the image step by step across the linearised boundary of the nearest class. Fields:
    steps; candidates, the likeliest other classes looked at; sigma of the Gaussian that smooths the
    field, in pixels (the paper has 0.5 for MNIST and 1 for ImageNet); overshoot."""

    steps: int = 50
    candidates: int = 10
    sigma: float = 0.5
    overshoot: float = 1.02

    name = "adef"
    positional = ("steps",)
    threats = ("flow",)
    paper = "Alaifari et al. 2019"
    bounded = False

    def __post_init__(self) -> None:
        if min(self.steps, self.candidates) < 1:
            raise BadInput(f"adef: steps and candidates are at least 1, found {self.steps} and {self.candidates}")
        if self.sigma < 0 or self.overshoot < 1:
            raise BadInput(f"adef: sigma is at least 0 and overshoot at least 1, found {self.sigma} and {self.overshoot}")

    @property
    def iterations(self) -> int:
        return self.steps

    def cost(self, classes: int) -> float:
        return self.steps * (1.0 + min(self.candidates, classes - 1))

    def init(self, rows: Rows, view: GradientView, threat: Threat) -> State:  # type: ignore[override]
        return {"p": threat.zero(rows.x), "over": torch.zeros(len(rows), dtype=torch.bool, device=rows.x.device)}

    def step(self, rows: Rows, state: State, view: GradientView, threat: Threat) -> State:  # type: ignore[override]
        p, seen = state["p"], {}

        def gaps(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
            """(R,M) how far the candidates lead."""
            seen["logits"] = logits.detach()
            if view.goal.targeted:
                return view.goal.margin(logits, y, target)[:, None]
            others = logits.scatter(1, y[:, None], -torch.inf)
            return others.topk(min(self.candidates, logits.shape[1] - 1), dim=1).values - logits.gather(1, y[:, None])

        jacobian, lead = view.jacobian(p, gaps)
        behind = 3 * rounding_width(seen["logits"]).to(lead.dtype)
        crossed = lead.amax(1) >= behind * (2 / 3)
        field = self._smallest(slopes(threat.apply(rows.x, p)), jacobian, behind[:, None] - lead)
        stay = crossed[:, None, None, None]
        return {"p": torch.where(stay, p, p + self.overshoot * field), "over": crossed}

    def _smallest(self, slope: Tensor, jacobian: Tensor, missing: Tensor) -> Tensor:
        """The field (R,2,H,W) that closes the gap `missing` (R,M) of the class where it stays shortest."""
        pull = (jacobian[:, :, None] * slope[:, None]).sum(3)
        once = smooth(pull, self.sigma)
        norm = once.double().square().flatten(2).sum(2)
        share = torch.where(norm > 0, missing.double() / norm.clamp(min=1e-300), 0.0)
        fields = (smooth(once, self.sigma) * share[:, :, None, None, None]).to(pull.dtype)
        length = fields.square().sum(2).flatten(2).amax(2).sqrt()
        length = torch.where((norm > 0) & torch.isfinite(length), length, torch.inf)
        best = length.argmin(1)
        chosen = fields[torch.arange(len(fields), device=fields.device), best]
        usable = torch.isfinite(length.amin(1))[:, None, None, None]
        return torch.where(usable, chosen, 0.0)


def slopes(image: Tensor) -> Tensor:
    """(R,2,C,H,W) change per pixel downwards and to the right: central differences, one-sided at the border."""
    found = [torch.zeros_like(image), torch.zeros_like(image)]
    for slope, axis in zip(found, (2, 3)):
        side = image.shape[axis]
        if side < 2:
            continue
        out, x = slope.movedim(axis, 0), image.movedim(axis, 0)
        out[1:-1] = (x[2:] - x[:-2]) / 2
        out[0], out[-1] = x[1] - x[0], x[-1] - x[-2]
    return torch.stack(found, 1)


def smooth(field: Tensor, sigma: float) -> Tensor:
    """A Gaussian over the last two dimensions, with zeros outside: its own adjoint."""
    if sigma <= 0:
        return field
    radius = int(4 * sigma + 0.5)
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    for axis in (-2, -1):
        x = field.movedim(axis, 0)
        out = x * (weights[0] / total)
        for k in range(1, min(radius, len(x) - 1) + 1):
            out[k:] += x[:-k] * (weights[k] / total)
            out[:-k] += x[k:] * (weights[k] / total)
        field = out.movedim(0, axis)
    return field
