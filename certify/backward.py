"""Backward linear bounds (CROWN, Zhang et al. 2018, arXiv 1811.00866): pure, differentiable functions.

A specification is a linear form on one node's values. It is pulled back to the image, through
affine operations by their adjoint and through all others by linear relaxations, and its least
value on the input set is read off there. Everything is said around a reference point of the input
set whose values at all nodes are known: at a node v the bound reads

    specification(x) >= specification(at) + constants + form . (v(x) - v(at))

so that biases, paddings and batch norm shifts never appear, and a point as input set gives the
logits themselves.

Intermediate intervals come from interval bounds. Where asked for, those of the neurons that a
relaxation would gain from (unstable ones) are tightened by backward bounds of their own, node by
node in order, so that later intervals start from the tightened ones.

With `errors` the bounds are those of the deployed float32 network, rounding included (rounding.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustkit.certify import ops
from robustkit.certify.adjoint import adjoint
from robustkit.certify.forms import Form, Groups, add, dot
from robustkit.certify.graph import Network
from robustkit.certify.interval import Interval, interval_of
from robustkit.certify.region import Region
from robustkit.certify.relax import Choice, loose
from robustkit.certify.relaxed import Relaxed, relaxed
from robustkit.certify.rounding import error_of, input_error, lines_apart, widened
from robustkit.certify.starts import budget_for, chunk, margin_forms, unit_forms


@dataclass
class State:
    """What is known about every node on a region."""

    network: Network
    region: Region
    values: list[Tensor]
    """Of every node at the reference point, (N, *shape)."""
    intervals: dict[int, Interval] = field(default_factory=dict)
    """Of every node, valid on the region."""
    errors: dict[int, Tensor] | None = None
    """Rounding errors (N, *shape) of the deployed network at every node (rounding.py), None for bounds in real arithmetic."""
    real: int | None = None
    """The first so many samples count, the others fill a block up: their neurons are not bounded backward. None: all do."""

    def pick(self, where: Tensor) -> State:
        """The samples at positions `where`."""
        intervals = {i: Interval(found.centre[where], found.width[where]) for i, found in self.intervals.items()}
        errors = None if self.errors is None else {i: error[where] for i, error in self.errors.items()}
        return State(self.network, self.region.pick(where), [v[where] for v in self.values], intervals, errors)

    @property
    def nonlinear(self) -> list[int]:
        """The nodes that are relaxed."""
        return [i for i, node in enumerate(self.network.nodes) if i and not isinstance(node.op, ops.Affine)]

    def ends(self, number: int) -> tuple[Tensor, Tensor]:
        """Interval of a node as ends that hold its value at the reference point (which rounding may put just outside)."""
        found, at = self.intervals[number], self.values[number]
        return torch.minimum(found.low, at), torch.maximum(found.high, at)

    def relax(self, choice: Choice, before: int | None = None) -> dict[int, Relaxed]:
        """Relaxations of all nodes (numbered below `before`), the same for every specification."""
        return {i: self.relax_node(i, choice) for i in self.nonlinear if before is None or i < before}

    def relax_node(self, number: int, choice: Choice) -> Relaxed:
        """The relaxation of one node."""
        node = self.network.nodes[number]
        low, high = self.ends(node.inputs[0])
        apart = 0.0 if self.errors is None else lines_apart(self.network)
        return relaxed(node, *(t.unsqueeze(1) for t in (low, high, self.values[node.inputs[0]])), choice=choice, apart=apart)


def pull(state: State, form: Form, start: int, groups: Groups, lines: dict[int, Relaxed]) -> Tensor:
    """(G, S) least value of form . (v(x) - v(at)) over the region, for the values v of node `start`."""
    network = state.network
    forms: dict[int, Form] = {start: form}
    bound: Tensor | None = None
    for number in range(start, 0, -1):
        here = forms.pop(number, None)
        if here is None:
            continue
        node = network.nodes[number]
        shapes = [network.nodes[i].shape for i in node.inputs]
        if state.errors is not None:
            bound = _less(bound, here, state.errors[number], groups)
        if isinstance(node.op, ops.Affine):
            parts = adjoint(node.op, here, shapes, node.shape, groups)
        else:
            parts, constant = lines[number].pull(here, shapes, node.shape, groups)
            bound = constant if bound is None else bound + constant
        for i, part in zip(node.inputs, parts):
            forms[i] = add(forms[i], part, network.nodes[i].shape, groups) if i in forms else part
    if 0 in forms:
        least = state.region.least(forms[0], groups)
        bound = least if bound is None else bound + least
        if state.errors is not None:
            bound = _less(bound, forms[0], state.errors[0], groups)
    assert bound is not None
    return bound


def _less(bound: Tensor | None, form: Form, error: Tensor, groups: Groups) -> Tensor:
    """A bound less what rounding errors can change the form by."""
    lost = dot(form.rows(groups).abs(), form.spread(error.unsqueeze(1), groups))
    return -lost if bound is None else bound - lost


def prepare(network: Network, region: Region, real: int | None = None) -> State:
    """Values at the reference point; no intervals yet. `real`: see State."""
    values = [region.at]
    for node in network.nodes[1:]:
        values.append(node.op.forward(*(values[i] for i in node.inputs)))
    return State(network, region, values, real=real)


def bound_nodes(state: State, tighten: Choice | None, until: int | None = None) -> None:
    """Fill in the intervals of all nodes up to `until`.

    Args:
        tighten: the slopes of backward bounds for unstable neurons, None for interval bounds alone.
    """
    network = state.network
    nonlinear, wanted = set(state.nonlinear), tightenable(network, state.region)
    balls = {0: state.region.ball}
    lines: dict[int, Relaxed] = {}
    state.intervals[0] = Interval.between(state.region.low, state.region.high)
    if state.errors is not None:
        state.errors[0], state.intervals[0] = input_error(network, state.intervals[0], state.region.reach)
    last = len(network.nodes) - 1 if until is None else until
    for number in range(1, last + 1):
        node = network.nodes[number]
        inputs = [state.intervals[i] for i in node.inputs]
        found, ball = interval_of(node, inputs, balls.get(node.inputs[0]))
        if state.errors is not None:
            error = state.errors[number] = error_of(network, number, inputs, found, state.region.reach)
            found, ball = widened(found, error), None if ball is None else ball.looser(error)
        state.intervals[number], balls[number] = found, ball
        if tighten is not None and number in nonlinear:
            lines[number] = state.relax_node(number, tighten)
        if tighten is not None and number in wanted:
            tightened(state, number, lines)


def _exact(network: Network) -> set[int]:
    """Nodes whose interval bounds are exact on a box: one mixing operation behind elementwise ones."""
    separate, exact = {0}, {0}
    for number, node in enumerate(network.nodes[1:], start=1):
        if len(node.inputs) != 1 or node.inputs[0] not in exact:
            continue
        alone = node.inputs[0] in separate
        if isinstance(node.op, (ops.Scale, ops.Reshape)) or (isinstance(node.op, ops.Monotone) and not isinstance(node.op, ops.MaxPool)):
            exact.add(number)
            separate |= {number} if alone else set()
        elif alone and isinstance(node.op, (ops.Affine, ops.MaxPool)):
            exact.add(number)
    return exact


def tightenable(network: Network, region: Region) -> set[int]:
    """The nodes in front of relaxed ones whose intervals backward bounds can tighten."""
    relaxed = [node for node in network.nodes[1:] if not isinstance(node.op, ops.Affine)]
    exact = _exact(network) if region.radius is None else set()
    return {i for node in relaxed for i in node.inputs} - exact


def unstable(state: State, number: int) -> Tensor:
    """(N, n) which values of a node the relaxations that use it would gain from a tighter interval of; none of samples that fill up."""
    low, high = state.ends(number)
    users = [state.network.nodes[n] for n in state.nonlinear if number in state.network.nodes[n].inputs]
    found = torch.zeros_like(low, dtype=torch.bool)
    for node in users:
        found |= loose(node, low, high)
    if state.real is not None:
        found[state.real :] = False
    return found.flatten(1)


def tightened(state: State, number: int, lines: dict[int, Relaxed]) -> None:
    """Replace the interval of a node's unstable neurons by its intersection with backward bounds."""
    with torch.no_grad():
        where = unstable(state, number).nonzero()
    if not len(where):
        return
    merged = state.errors is None
    forms = unit_forms(state.network, state.region.at, number, where, merged=merged)
    found = [pull(state, form, start, groups, lines) for form, start, groups in forms]
    state.intervals[number] = narrowed(state, number, where, torch.cat(found)[: len(where)])


def narrowed(state: State, number: int, where: Tensor, bounds: Tensor, through: bool = False) -> Interval:
    """The interval of a node cut by (G, 2) lower bounds of plus and minus (its value less that at the reference point).

    With `through`, gradients reach the bounds also where the old interval is the tighter one.
    """
    old, at = state.intervals[number], state.values[number].flatten(1)
    place = (where[:, 0], where[:, 1])
    bounds = torch.where(torch.isfinite(bounds), bounds, -torch.inf)
    low = at[place] + bounds[:, 0]
    high = at[place] - bounds[:, 1]
    kept = torch.maximum(old.low.flatten(1)[place], low), torch.minimum(old.high.flatten(1)[place], high)
    low, high = (low + (kept[0] - low).detach(), high + (kept[1] - high).detach()) if through else kept
    low, high = torch.minimum(low, at[place]), torch.maximum(high, at[place])
    ends = old.low.flatten(1).index_put(place, low), old.high.flatten(1).index_put(place, high)
    return Interval.between(*(end.view_as(old.centre) for end in ends))


def margins_at(state: State, y: Tensor, others: Tensor) -> Tensor:
    """(N, S) z_y - z_j at the reference point."""
    logits = state.values[-1]
    return logits.gather(1, y[:, None]) - logits.gather(1, others)


def bound_margins(state: State, y: Tensor, others: Tensor, lines: dict[int, Relaxed], whole: bool = False) -> Tensor:
    """(N, S) lower bounds of z_y - z_j for the classes j in `others` (N, S); `whole`: all at once, whatever memory it takes."""
    step = others.shape[1] if whole else chunk(budget_for(state.region.at), state.network, state.region.at, len(y))
    found = []
    for i in range(0, others.shape[1], step):
        some = others[:, i : i + step]
        form, start = margin_forms(state.network, y, some, state.region.at, state.errors is None)
        found.append(pull(state, form, start, Groups(some.shape[1], None), lines))
    return margins_at(state, y, others) + torch.cat(found, 1)
