"""Interval bound propagation (Gowal et al. 2018, arXiv 1810.12715): pure, differentiable functions.

An interval is carried as centre and width (upper minus lower end), because then an affine
operation costs two products, W c + b and |W| w, and a ReLU four cheap passes. The last fully
connected layer is merged with the specification: z_y - z_j is bounded through W_y - W_j directly.

For l_2 balls the first layer is bounded by its row norms (the dual norm) and by the box around
the ball, whichever is tighter in each value; from there on intervals are propagated.

Sound in real arithmetic: rounding inside the propagation is not accounted for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustkit.certify import ops
from robustkit.certify.activations import Dipping
from robustkit.certify.graph import Graph, Network, Node
from robustkit.errors import BadInput

PAIRS = 1 << 18
"""Values of the (classes, classes, features) specification up to which all pairs of classes are bounded."""

CHUNK = 1 << 24
"""Values of the (rows, classes, features) specification held at a time beyond that."""


class Interval(NamedTuple):
    """centre - width / 2 <= value <= centre + width / 2, tensors (N, ...), width >= 0."""

    centre: Tensor
    width: Tensor

    @property
    def low(self) -> Tensor:
        """Lower end."""
        return torch.sub(self.centre, self.width, alpha=0.5)

    @property
    def high(self) -> Tensor:
        """Upper end."""
        return torch.add(self.centre, self.width, alpha=0.5)

    @staticmethod
    def between(low: Tensor, high: Tensor) -> Interval:
        """From its ends."""
        width = high - low
        return Interval(torch.add(low, width, alpha=0.5), width)


class Ball(NamedTuple):
    """Values that are an elementwise affine image of an l_2 ball: centre + radius * sqrt(squares) * unit ball."""

    centre: Tensor
    """(N, ...)"""
    squares: Tensor
    """(1, ...) squared scale of every value."""
    radius: Tensor
    """(N,)"""
    slack: Tensor | None = None
    """(N, ...) how far values may lie outside of the image (rounding), None for not at all."""

    def through(self, op: Any) -> Ball:
        """The image under an affine operation: centres, and squared row norms."""
        slack = None if self.slack is None else op.magnitude(self.slack)
        return Ball(op.forward(self.centre), op.squares(self.squares), self.radius, slack)

    def looser(self, error: Tensor) -> Ball:
        """The same for values that may be off by `error` (N, ...) more."""
        return self._replace(slack=error if self.slack is None else self.slack + error)

    def reach(self, squares: Tensor) -> Tensor:
        """How far a linear form of these squared norms moves: radius * norm."""
        found = self.radius.view(-1, *[1] * (squares.dim() - 1)) * squares.sqrt()
        return found if self.slack is None else found + self.slack


IntervalRule = Callable[[Any, list[Interval], bool], Interval]
INTERVAL_RULES: dict[type[ops.Op], IntervalRule] = {}


def interval_rule(*kinds: type[Any]) -> Callable[[IntervalRule], IntervalRule]:
    """Register rule(op, inputs, in_place) -> Interval for operation types and their subclasses.

    `in_place` says that the input tensors may be overwritten.
    """

    def register(rule: IntervalRule) -> IntervalRule:
        INTERVAL_RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


@interval_rule(ops.Affine)
def _affine(op: ops.Affine, inputs: list[Interval], in_place: bool) -> Interval:
    return Interval(op.forward(*(i.centre for i in inputs)), op.magnitude(*(i.width for i in inputs)))


@interval_rule(ops.Monotone)
def _monotone(op: ops.Monotone, inputs: list[Interval], in_place: bool) -> Interval:
    return Interval.between(op.forward(*(i.low for i in inputs)), op.forward(*(i.high for i in inputs)))


@interval_rule(ops.ReLU)
def _relu(op: ops.ReLU, inputs: list[Interval], in_place: bool) -> Interval:
    """With u = relu(c + w/2) the new width is min(u, w): all of u below zero, w where the whole interval is positive."""
    centre, width = inputs[0]
    if in_place:
        high = centre.add_(width, alpha=0.5).relu_()
        torch.minimum(high, width, out=width)
        return Interval(high.sub_(width, alpha=0.5), width)
    high = torch.relu(inputs[0].high)
    width = torch.minimum(high, width)
    return Interval(torch.sub(high, width, alpha=0.5), width)


@interval_rule(Dipping)
def _dipping(op: Dipping, inputs: list[Interval], in_place: bool) -> Interval:
    low, high = inputs[0].low, inputs[0].high
    ends = op.forward(low), op.forward(high)
    least = op.forward(torch.minimum(torch.clamp(low, min=op.lowest), high))
    return Interval.between(torch.minimum(least, torch.minimum(*ends)), torch.maximum(*ends))


def _rule(node: Node) -> IntervalRule:
    for kind in type(node.op).__mro__:
        if kind in INTERVAL_RULES:
            return INTERVAL_RULES[kind]
    raise BadInput(f"ibp has no rule for {type(node.op).__name__} ({node.place}): register one with robustkit.certify.interval_rule")


def interval_of(node: Node, inputs: list[Interval], ball: Ball | None, in_place: bool = False) -> tuple[Interval, Ball | None]:
    """The interval of one node from those of its inputs, and its ball where its input is an elementwise image of one (`ball`)."""
    found = _rule(node)(node.op, inputs, in_place)
    if ball is not None and isinstance(node.op, (ops.Scale, ops.Reshape)):
        return found, ball.through(node.op)
    if ball is not None and isinstance(node.op, (ops.Linear, ops.Conv)):
        found = _intersect(found, ball.through(node.op))
    return found, None


def propagate(
    network: Network, low: Tensor, high: Tensor, ball: Ball | None = None, stop: int | None = None
) -> tuple[Interval, Ball | None]:
    """The interval of node `stop` (default the logits) for inputs in the box [low, high].

    Args:
        low, high: (N, *shape) in the network's dtype.
        ball: the l_2 ball around the images that the inputs also lie in, where there is one.
    Returns:
        the interval, and the ball where node `stop` is still an elementwise image of it.
    """
    stop = len(network.nodes) - 1 if stop is None else stop
    found: dict[int, Interval] = {0: Interval.between(low, high)}
    balls: dict[int, Ball] = {} if ball is None else {0: ball}
    left = network.consumers.copy()
    in_place = not torch.is_grad_enabled()
    for number, node in enumerate(network.nodes[1 : stop + 1], start=1):
        inputs = [found[i] for i in node.inputs]
        fresh = len(inputs) == 1 and network.consumers[node.inputs[0]] == 1 and isinstance(network.nodes[node.inputs[0]].op, _OWN)
        found[number], around = interval_of(node, inputs, balls.get(node.inputs[0]), in_place and fresh)
        if around is not None:
            balls[number] = around
        for i in node.inputs:
            left[i] -= 1
            if not left[i]:
                found.pop(i, None)
    return found[stop], balls.get(stop)


_OWN = (ops.Linear, ops.Conv, ops.Scale, ops.Sum)
"""Operations whose result is a new tensor that nobody else holds."""


def _intersect(box: Interval, ball: Ball) -> Interval:
    reach = ball.reach(ball.squares)
    low, high = torch.maximum(box.low, ball.centre - reach), torch.minimum(box.high, ball.centre + reach)
    return Interval.between(low, torch.maximum(low, high))


def _network(graph: Graph | Network, like: Tensor) -> Network:
    return graph if isinstance(graph, Network) else graph.network(tuple(like.shape[1:]), like.dtype)


def interval_logits(graph: Graph | Network, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds (N,K) of the logits over the box low <= x <= high (N, *shape).

    Differentiable with respect to the module's parameters and the box.
    """
    found, _ = propagate(_network(graph, low), low, high)
    return found.low, found.high


def interval_margins(graph: Graph | Network, low: Tensor, high: Tensor, y: Tensor, ball: Ball | None = None) -> Tensor:
    """Lower bounds (N,K) of z_y - z_j over the box (and the ball); 0 in column y.

    Args:
        graph: a Graph (weights are read now) or a Network.
        low, high: (N, *shape) ends of the box.
        y: (N,) int64 labels.
        ball: the l_2 ball that the inputs also lie in, where there is one.
    """
    network = _network(graph, low)
    head = network.head
    if head is None or len(network.nodes[network.nodes[-1].inputs[0]].shape) != 1:
        found, _ = propagate(network, low, high, ball)
        lower = found.low.gather(1, y[:, None]) - found.high
    else:
        (centre, width), around = propagate(network, low, high, ball, network.nodes[-1].inputs[0])
        logits = head.forward(centre)
        lower = logits.gather(1, y[:, None]) - logits - 0.5 * _difference(head.weight, y, width, torch.abs)
        if around is not None:
            logits = head.forward(around.centre)
            squares = _difference(head.weight, y, around.squares.expand(len(y), -1), torch.square)
            lower = torch.maximum(lower, logits.gather(1, y[:, None]) - logits - around.reach(squares))
    return lower.scatter(1, y[:, None], 0.0)


def _difference(weight: Tensor, y: Tensor, widths: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """(N,K) of sum_f function(W_yf - W_jf) * widths_f: from all pairs of classes where they are few, else sample by sample."""
    classes, size = len(weight), weight.numel()
    if classes * size <= PAIRS:
        pairs = function(weight.unsqueeze(1) - weight).flatten(0, 1)
        every = ops.Linear(pairs).forward(widths).view(-1, classes, classes)
        return every.gather(1, y.view(-1, 1, 1).expand(-1, 1, classes)).squeeze(1)
    rows, parts = max(1, CHUNK // size), []
    for i in range(0, len(y), rows):
        spread = function(weight[y[i : i + rows]].unsqueeze(1) - weight)
        parts.append(torch.bmm(spread, widths[i : i + rows].unsqueeze(2)).squeeze(2))
    return torch.cat(parts)


def worst_logits(graph: Graph | Network, x: Tensor, y: Tensor, eps: float | Tensor) -> Tensor:
    """(N,K) upper bounds of z_j - z_y over the l_inf ball in [0,1], 0 in column y: what certified training minimises.

    Args:
        x: (N, *shape) images in [0,1]; eps: a number or (N,).
    """
    return -interval_margins(graph, *box(x, eps), y)


def box(x: Tensor, eps: float | Tensor) -> tuple[Tensor, Tensor]:
    """Ends of the box |x' - x| <= eps within [0,1], rounded outward (by about 1e-7 in float32).

    Args:
        x: (N, ...) images in [0,1]; eps: a number or (N,); below 0 gives NaN.
    """
    reach = torch.as_tensor(eps, dtype=torch.float64, device=x.device)
    reach = torch.where(reach >= 0, reach, torch.nan).to(x.dtype)
    # more than is lost in converting eps (relative) and in adding within [0,1] (absolute)
    step = torch.finfo(x.dtype).eps
    reach = (reach * (1 + step) + step).view(-1, *[1] * (x.dim() - 1))
    return (x - reach).clamp_(0, 1), (x + reach).clamp_(0, 1)
