"""Linear relaxations: two lines that hold an operation between them while its inputs stay in an interval.

A relaxation is given around a reference point: `line(x) = op(at) + gap + slope (x - at)`, so that
a line's constant is its gap to the operation at that point. A further operation needs one rule:

    @relaxation(Softsign)
    def softsign(op, low, high, at, choice): return Lines(lower slope, lower gap, upper slope, upper gap)

or, for any function of one value, `curved(op, low, high, at, choice, candidates)` where
`candidates(slope, low, high)` lists the points at which `op(x) - slope x` can be extreme (ends
excepted). All lines are exact in real arithmetic for any slope; slopes only decide how tight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustkit.certify import ops
from robustkit.certify.graph import Node
from robustkit.errors import BadInput

CHOICES = ("adaptive", "same", "zero", "one")
"""Lower slopes of an unstable ReLU: whichever loses less area, that of the upper line (Wong & Kolter), 0, 1."""

GRID = 16
"""Pieces of an interval among whose ends the slopes of curved functions are chosen."""

HALVINGS = 12
"""Bisection steps for those slopes."""


class Lines(NamedTuple):
    """Lines below and above an elementwise operation; tensors (N, S, *shape)."""

    lower_slope: Tensor
    lower_gap: Tensor
    """At most 0."""
    upper_slope: Tensor
    upper_gap: Tensor
    """At least 0."""


class Slopes(NamedTuple):
    """Slopes to be used instead of a rule's own choice, tensors (N, S, *shape); any values are sound."""

    lower: Tensor
    upper: Tensor | None = None


Choice = str | Slopes
LineRule = Callable[[Any, Tensor, Tensor, Tensor, Choice], Lines]
LINE_RULES: dict[type[ops.Op], LineRule] = {}
LOOSE_RULES: dict[type[ops.Op], Callable[[Any, Tensor, Tensor], Tensor]] = {}


def relaxation(*kinds: type[Any]) -> Callable[[LineRule], LineRule]:
    """Register rule(op, low, high, at, choice) -> Lines for elementwise operation types and their subclasses.

    low, high, at: (N, S, *shape), low <= at <= high, `at` the reference point; choice: one of CHOICES or Slopes.
    """

    def register(rule: LineRule) -> LineRule:
        LINE_RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


def loose_where(*kinds: type[Any]) -> Callable[..., Any]:
    """Register rule(op, low, high) -> bool: where the lines would be better for a tighter interval (default everywhere)."""

    def register(rule: Callable[[Any, Tensor, Tensor], Tensor]) -> Callable[[Any, Tensor, Tensor], Tensor]:
        LOOSE_RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


def rule_for(node: Node, table: dict[type[ops.Op], Any]) -> Any:
    """The rule of a node's operation, None where there is none."""
    return next((table[kind] for kind in type(node.op).__mro__ if kind in table), None)


def line_rule(node: Node) -> LineRule:
    """The rule of an elementwise node; raises BadInput where none is registered."""
    rule: LineRule | None = rule_for(node, LINE_RULES)
    if rule is None:
        raise BadInput(
            f"no linear relaxation is known for {type(node.op).__name__} ({node.place}): "
            "register one with robustkit.certify.relaxation, or use the certifier ibp"
        )
    return rule


def lines_for(node: Node, low: Tensor, high: Tensor, at: Tensor, choice: Choice) -> Lines:
    """The lines of an elementwise node; raises BadInput where no rule is registered."""
    found = line_rule(node)(node.op, low, high, at, choice)
    # rounding may leave the wrong sign
    return found._replace(lower_gap=found.lower_gap.clamp(max=0), upper_gap=found.upper_gap.clamp(min=0))


def loose(node: Node, low: Tensor, high: Tensor) -> Tensor:
    """Where a node's lines would gain from a tighter interval, (N, *shape) bool."""
    rule = rule_for(node, LOOSE_RULES)
    return high > low if rule is None else rule(node.op, low, high)


# ---- piecewise linear with one kink at 0


@loose_where(ops.ReLU, ops.LeakyReLU)
def _crosses(op: ops.Op, low: Tensor, high: Tensor) -> Tensor:
    return (low < 0) & (high > 0)


def kinked(leak: float, low: Tensor, high: Tensor, at: Tensor, choice: Choice) -> Lines:
    """Lines of max(x, 0) + leak min(x, 0), leak at most 1."""
    unstable = _crosses(ops.ReLU(), low, high)
    stable = torch.where(low >= 0, torch.ones_like(low), leak)
    width = torch.where(unstable, high - low, 1)
    upper = torch.where(unstable, (high - leak * low) / width, stable)
    value = torch.where(at > 0, at, leak * at)
    upper_gap = torch.where(unstable, upper * (at - low) + leak * low - value, 0)
    if isinstance(choice, Slopes):
        lower = choice.lower.clamp(leak, 1)
    else:
        steep = {"adaptive": high >= -low, "zero": low > high, "one": low <= high}
        lower = upper if choice == "same" else torch.where(steep[choice], torch.ones_like(low), leak)
    lower = torch.where(unstable, lower, stable)
    return Lines(lower, torch.where(unstable, lower * at - value, 0), upper, upper_gap)


@relaxation(ops.ReLU)
def _relu(op: ops.ReLU, low: Tensor, high: Tensor, at: Tensor, choice: Choice) -> Lines:
    return kinked(0.0, low, high, at, choice)


# ---- any function of one value


Candidates = Callable[[Tensor, Tensor, Tensor], list[Tensor]]


def curved(op: ops.Op, low: Tensor, high: Tensor, at: Tensor, choice: Choice, candidates: Candidates) -> Lines:
    """Lines of any function of one value: slopes by choice, gaps exact for whatever slope.

    Args:
        candidates: (slope, low, high) -> points, among which and the ends of the interval are all
            extremes of op(x) - slope x; points outside of the interval are moved into it.
    """
    low, high, at = torch.broadcast_tensors(low, high, at)  # type: ignore[no-untyped-call]
    if isinstance(choice, Slopes):
        below, above = choice.lower, choice.lower if choice.upper is None else choice.upper
    else:
        below, above = best_slopes(op, low, high, choice)
    value = op.forward(at)

    def gap(slope: Tensor, sign: int) -> Tensor:
        with torch.no_grad():
            found = candidates(slope, low, high)
        inside = [torch.where(point <= low, low, torch.where(point >= high, high, point)) for point in found]
        gaps = [op.forward(x) - value - slope * (x - at) for x in (low, high, *inside)]
        worst = gaps[0]
        for one in gaps[1:]:
            worst = torch.maximum(worst, one) if sign > 0 else torch.minimum(worst, one)
        return worst

    return Lines(below, gap(below, -1), above, gap(above, 1))


def best_slopes(op: ops.Op, low: Tensor, high: Tensor, choice: str) -> tuple[Tensor, Tensor]:
    """Slopes of the lower and upper line: for "same" the chord's, else those that are tightest at the middle.

    The tightest line above at the middle supports the concave envelope there; its slope is found by
    bisection on a grid of the function, which need not be exact.
    """
    # an interval that is a point has the slope of a tiny one
    reach = ((high - low) / 2).clamp(min=1e-4)
    middle = (low + high) / 2
    chord = (op.forward(middle + reach) - op.forward(middle - reach)) / (2 * reach)
    if choice == "same":
        return chord, chord
    with torch.no_grad():
        share = torch.linspace(0, 1, GRID + 1, dtype=low.dtype, device=low.device).view(-1, *[1] * low.dim())
        moves = share * (high - low)
        values = op.forward(low + moves)
        found = []
        for sign in (-1, 1):
            curve = sign * values
            slopes = curve.diff(dim=0) / ((high - low) / GRID).clamp(min=1e-30)
            least, most = slopes.amin(0), slopes.amax(0)
            for _ in range(HALVINGS):
                slope = (least + most) / 2
                top = 2 * (curve - slope * moves).argmax(0)
                # the line with this slope touches right of the middle: a steeper one is lower there
                least, most = torch.where(top >= GRID, slope, least), torch.where(top <= GRID, slope, most)
            found.append(torch.where(high - low > 2e-4, sign * (least + most) / 2, chord))
        return found[0], found[1]
