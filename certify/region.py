"""Input sets: a box, or an l_1 or l_2 ball cut to a box; the least value of a linear form on them.

For a ball and a box together the least value is the optimum of a Lagrangian in one multiplier, and
any multiplier gives a sound bound; the one used is (nearly) the best.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustkit.certify.forms import Form, Groups, dot
from robustkit.certify.interval import Ball, box
from robustkit.errors import BadInput

ROUNDS = 8
"""Refinements of the multiplier of an l_2 ball."""


@dataclass(frozen=True, eq=False)
class Region:
    """The images an adversary can choose from; tensors (N, *shape)."""

    at: Tensor
    """The reference point: the middle of a box, the centre of a ball."""
    low: Tensor
    high: Tensor
    norm: str = "linf"
    radius: Tensor | None = None
    """(N,) of the l_1 or l_2 ball around `at`."""

    @staticmethod
    def around(x: Tensor, eps: float | Tensor, norm: str = "linf") -> Region:
        """The ball of the threat around images x (N, *shape) within [0,1], rounded outward; eps a number or (N,)."""
        if norm not in ("linf", "l1", "l2"):
            raise BadInput(f"input set {norm!r} is unknown: expected linf, l1 or l2")
        low, high = box(x, eps)
        if norm == "linf":
            return Region((low + high) / 2, low, high)
        radius = torch.as_tensor(eps, dtype=torch.float64, device=x.device).expand(len(x)).to(x.dtype)
        return Region(x, low, high, norm, torch.nextafter(radius, torch.full_like(radius, torch.inf)))

    @property
    def reach(self) -> Tensor:
        """(N,) the radius of the ball, 0 for a box."""
        return self.at.new_zeros(len(self.at)) if self.radius is None else self.radius

    @property
    def ball(self) -> Ball | None:
        """The l_2 ball, for interval bounds."""
        if self.norm != "l2" or self.radius is None:
            return None
        return Ball(self.at, torch.ones_like(self.at[:1]), self.radius)

    def pick(self, where: Tensor) -> Region:
        """The samples at positions `where`."""
        return Region(self.at[where], self.low[where], self.high[where], self.norm, None if self.radius is None else self.radius[where])

    def least(self, form: Form, groups: Groups) -> Tensor:
        """(G, S) lower bounds of form . (x - at) over the region."""
        rows = form.rows(groups)
        if self.radius is None:
            return -dot(rows.abs(), form.spread(((self.high - self.low) / 2).unsqueeze(1), groups))
        ends = torch.stack((self.low - self.at, self.high - self.at), 1).unsqueeze(1)
        below, above = form.spread(ends, groups).unbind(2)
        radius = groups.pick(self.radius).view(-1, 1, 1)
        on_box = torch.minimum(rows * below, rows * above).sum(2)
        on_ball = _l2(rows, below, above, radius) if self.norm == "l2" else _l1(rows, below, above, radius)
        return torch.maximum(on_box, on_ball)


def _l2(rows: Tensor, below: Tensor, above: Tensor, radius: Tensor) -> Tensor:
    """The Lagrangian's least value: moves -a / t clipped to the box, t so that they reach the sphere."""
    tiny = torch.finfo(rows.dtype).tiny * 1e8
    fixed = rows.detach()
    with torch.no_grad():
        t = fixed.square().sum(2, keepdim=True).sqrt() / radius.clamp(min=tiny)
        for _ in range(ROUNDS):
            move = -fixed / t.clamp(min=tiny)
            free = (move > below) & (move < above)
            rest = radius.square() - torch.where(free, 0, torch.minimum(torch.maximum(move, below), above)).square().sum(2, keepdim=True)
            length = torch.where(free, fixed, 0).square().sum(2, keepdim=True)
            t = torch.where(rest > 0, torch.minimum(t, (length / rest.clamp(min=tiny)).sqrt()), t)
        t = t.clamp(tiny, 1 / tiny)
    move = torch.minimum(torch.maximum(-fixed / t, below), above)  # the multiplier's own gradient vanishes at the optimum
    price = t.squeeze(2) / 2 * (move.square().sum(2) - radius.squeeze(2).square())
    return (rows * move).sum(2) + price


def _l1(rows: Tensor, below: Tensor, above: Tensor, radius: Tensor) -> Tensor:
    """The largest coefficients are used up first: the multiplier is the size of the last one that is touched."""
    room = torch.where(rows > 0, -below, above)
    size = rows.abs()
    with torch.no_grad():
        ordered, place = size.detach().sort(2, descending=True)
        spent = room.expand_as(size).gather(2, place).cumsum(2) >= radius
        price = torch.where(spent, ordered, 0).amax(2, keepdim=True)
    return -(room * (size - price).clamp(min=0)).sum(2) - (price * radius).squeeze(2)
