"""Spatially transformed adversarial examples, Xiao et al. 2018, https://arxiv.org/abs/1801.02612.

Minimises the model's margin plus tau times the roughness of the flow field. With the budget of
the image's diagonal (`flow:eps=40` for 28 x 28 pixels) it is the paper's attack; under a smaller
one every point is projected. Deliberate deviations: the flow starts from zero instead of random
values, all rows are optimised together, there is no hinge on the margin (a row ends when it is
adversarial), and tau is only where a row begins: one whose margin has stopped growing short of an
error, because the roughness weighs as much, goes on with half of it (`patience=0` keeps tau).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustkit.attacks import lbfgs
from robustkit.errors import BadInput
from robustkit.methods import Attack, Rows, State
from robustkit.numerics import choose, wide
from robustkit.threats import Threat
from robustkit.views import GradientView

_FLAT = 1e-8
"""Keeps the root differentiable where neighbours move alike."""


@dataclass(frozen=True)
class StAdv(Attack):
    """Optimises a smooth flow field that makes the model err. Fields: steps; tau, the weight of its
    roughness; patience, the steps without a better margin after which tau is halved; optimizer;
    neighbours, beside or diagonal to a pixel; rate of Adam in pixels; reach, the longest step of
    L-BFGS in pixels; history that it remembers; restarts (the first from no flow, others from a
    random one of half the budget, at most a pixel)."""

    steps: int = 300
    tau: float = 0.05
    patience: int = 10
    optimizer: Literal["adam", "lbfgs"] = "adam"
    neighbours: Literal["axial", "diagonal"] = "axial"
    rate: float = 0.3
    reach: float = 0.5
    history: int = 10
    restarts: int = 1

    name = "stadv"
    positional = ("steps",)
    threats = ("flow",)
    paper = "Xiao et al. 2018"

    def __post_init__(self) -> None:
        if min(self.steps, self.history, self.restarts) < 1:
            found = f"{self.steps}, {self.history}, {self.restarts}"
            raise BadInput(f"stadv: steps, history and restarts are at least 1, found {found}")
        if self.patience < 0:
            raise BadInput(f"stadv: patience is at least 0, found {self.patience}")
        if self.tau < 0 or self.rate <= 0 or self.reach <= 0:
            raise BadInput(f"stadv: tau is at least 0, rate and reach are above 0, found {self.tau}, {self.rate}, {self.reach}")
        if self.optimizer not in ("lbfgs", "adam") or self.neighbours not in ("axial", "diagonal"):
            found = f"{self.optimizer}, {self.neighbours}"
            raise BadInput(f"stadv: optimizer is lbfgs or adam, neighbours are axial or diagonal, found {found}")

    @property
    def iterations(self) -> int:
        return self.steps

    def init(self, rows: Rows, view: GradientView, threat: Threat) -> State:  # type: ignore[override]
        start = threat.zero(rows.x)
        if self.restarts > 1:
            drawn = threat.random(rows.x, (rows.eps / 2).clamp(max=1), rows.key)
            start = choose(rows.attempt > 0, drawn, start)
        number = rows.eps.to(start.dtype)
        search = {"tau": torch.full_like(number, self.tau), "best": torch.full_like(number, -torch.inf), "stale": torch.zeros_like(number)}
        if self.optimizer == "lbfgs":
            return search | lbfgs.begin(start, self.history)
        return search | {"p": start, "mean": torch.zeros_like(start), "square": torch.zeros_like(start)}

    def step(self, rows: Rows, state: State, view: GradientView, threat: Threat) -> State:  # type: ignore[override]
        p, tau = state["p"], state["tau"]
        slope, margin = view.gradient(p, view.goal.margin)
        rough, rough_slope = roughness(p, self.neighbours)
        slope, value = wide(tau, slope) * rough_slope - slope, tau * rough - margin
        ahead = lbfgs.advance(state, value, slope, _longest, self.reach) if self.optimizer == "lbfgs" else self._adam(rows, state, slope)
        stale = torch.where(margin > state["best"], 0.0, state["stale"] + 1)
        ease = (stale >= self.patience) & (self.patience > 0)
        if self.optimizer == "lbfgs":
            ahead = lbfgs.restart(ahead, ease)
        search = {"tau": torch.where(ease, tau / 2, tau), "best": torch.maximum(margin, state["best"])}
        search["stale"] = torch.where(ease, 0.0, stale)
        return ahead | search | {"p": threat.project(rows.x, ahead["p"], rows.eps)}

    def _adam(self, rows: Rows, state: State, slope: Tensor) -> State:
        """Kingma & Ba 2015, with its usual decays."""
        mean, square = 0.9 * state["mean"] + 0.1 * slope, 0.999 * state["square"] + 0.001 * slope.square()
        age = (rows.steps + 1).double()
        shift = wide((self.rate * (1 - 0.999**age).sqrt() / (1 - 0.9**age)).to(slope.dtype), slope)
        return {"p": state["p"] - shift * mean / (square.sqrt() + 1e-8), "mean": mean, "square": square}


def roughness(flow: Tensor, neighbours: Literal["axial", "diagonal"] = "axial") -> tuple[Tensor, Tensor]:
    """Sum over every pixel's neighbours of how differently the two move (R,), and its gradient (R,2,H,W)."""
    with torch.enable_grad():
        leaf = flow.detach().requires_grad_()
        if neighbours == "axial":
            apart = [leaf[:, :, 1:] - leaf[:, :, :-1], leaf[..., 1:] - leaf[..., :-1]]
        else:
            apart = [leaf[:, :, 1:, 1:] - leaf[:, :, :-1, :-1], leaf[:, :, 1:, :-1] - leaf[:, :, :-1, 1:]]
        values = sum((2 * (d.square().sum(1) + _FLAT).sqrt().flatten(1).sum(1) for d in apart), flow.new_zeros(len(flow)))
    return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]


def _longest(field: Tensor) -> Tensor:
    """(R,) the longest vector of a field."""
    return field.square().sum(1).flatten(1).amax(1).sqrt()
