"""L-BFGS for many rows at once, one evaluation a step: every row has its own memory and line search.

Liu & Nocedal 1989. The caller evaluates value and gradient at `state["p"]` and hands them to
`advance`, which sets the next p. A row whose point is good enough (Armijo's condition) moves there
and takes a new direction, others come closer to where they stand. Points may be projected onto a
convex set; the condition then looks at the step really made.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustkit.methods import State
from robustkit.numerics import wide

_ENOUGH = 1e-4
"""Share of the decrease promised by the gradient that a step must bring."""
_TRIES = 8
"""Points on one line before the memory is forgotten, and without a memory before the row ends."""


def begin(p: Tensor, history: int) -> State:
    """The state of fresh rows p (R,...) that remember `history` steps."""
    rows, size = len(p), p[0].numel()
    still = torch.zeros_like(p)
    memory = {"steps_made": p.new_zeros(rows, history, size), "changes": p.new_zeros(rows, history, size)}
    numbers = {"value": p.new_full((rows,), torch.inf), "length": p.new_zeros(rows), "tries": p.new_zeros(rows)}
    return {"p": p, "base": p, "slope": still, "direction": still, "over": torch.zeros_like(numbers["tries"]) > 0} | memory | numbers


def advance(state: State, value: Tensor, slope: Tensor, longest: Callable[[Tensor], Tensor], reach: float) -> State:
    """The state after `value` (R,) and `slope` (R,...), the gradient, were found at state["p"].

    `longest` measures directions, (R,...) -> (R,); no step is longer than `reach`. The new p is not projected.
    """
    moved = state["p"] - state["base"]
    promised = _dot(state["slope"], moved)
    first = torch.isinf(state["value"])
    good = first | (value <= state["value"] + _ENOUGH * promised.clamp(max=0))
    change = slope - state["slope"]
    learn = good & ~first & (_dot(moved, change) > 1e-6 * _dot(change, change))
    memory = {"steps_made": _push(state["steps_made"], moved, learn), "changes": _push(state["changes"], change, learn)}

    tries = torch.where(good, 0.0, state["tries"] + 1)
    stuck = tries > _TRIES
    empty = ~memory["changes"].any(2).any(1)
    memory = {name: torch.where(wide(stuck, kept), 0.0, kept) for name, kept in memory.items()}
    base = torch.where(wide(good, moved), state["p"], state["base"])
    standing = torch.where(wide(good, moved), slope, state["slope"])
    fresh = _direction(standing, memory["steps_made"], memory["changes"])
    fresh = torch.where(wide(_dot(fresh, standing) < 0, fresh), fresh, -standing)
    again = good | stuck
    direction = torch.where(wide(again, fresh), fresh, state["direction"])
    far = reach / longest(direction).clamp(min=1e-30)
    full = torch.where(memory["changes"].any(2).any(1), far.clamp(max=1), far)
    curve = 2 * (value - state["value"] - promised)
    nearer = state["length"] * (-promised / curve).nan_to_num(0.5, 0.5, 0.5).clamp(0.1, 0.5)
    length = torch.where(again, full, nearer)
    return {
        "p": base + wide(length, base) * direction,
        "base": base,
        "slope": standing,
        "direction": direction,
        "value": torch.where(good, value, state["value"]),
        "length": length,
        "tries": torch.where(stuck, 0.0, tries),
        "over": stuck & empty,
    } | memory


def restart(state: State, where: Tensor) -> State:
    """The state in which rows `where` go back to their best point, to be evaluated anew for another function."""
    changed = {name: torch.where(where[:, None, None], 0.0, state[name]) for name in ("steps_made", "changes")}
    changed["p"] = torch.where(wide(where, state["p"]), state["base"], state["p"])
    changed["value"] = torch.where(where, torch.inf, state["value"])
    changed["tries"] = torch.where(where, 0.0, state["tries"])
    return state | changed | {"over": state["over"] & ~where}


def _direction(slope: Tensor, steps: Tensor, changes: Tensor) -> Tensor:
    """The two loops over the memory (R,M,D), newest last; unused places are zero and do nothing."""
    q = slope.flatten(1)
    inner = (steps * changes).sum(2)
    weight = torch.where(inner > 0, 1 / inner.clamp(min=1e-30), 0.0)
    shares: list[Tensor] = []
    for m in range(steps.shape[1] - 1, -1, -1):
        share = weight[:, m] * (steps[:, m] * q).sum(1)
        q = q - share[:, None] * changes[:, m]
        shares.append(share)
    newest = changes[:, -1].square().sum(1)
    q = q * torch.where(newest > 0, inner[:, -1] / newest.clamp(min=1e-30), 1.0)[:, None]
    for m, share in enumerate(reversed(shares)):
        q = q + steps[:, m] * (share - weight[:, m] * (changes[:, m] * q).sum(1))[:, None]
    return -q.view_as(slope)


def _push(memory: Tensor, newest: Tensor, where: Tensor) -> Tensor:
    return torch.where(where[:, None, None], torch.cat([memory[:, 1:], newest.flatten(1)[:, None]], 1), memory)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)
