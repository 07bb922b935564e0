"""Optimised backward bounds (alpha-CROWN, Xu et al. 2021, arXiv 2011.13824).

Every lower slope between 0 and 1 of an unstable ReLU is sound, so slopes are free parameters: each
linear form that is pulled back has its own, found by Adam on the sum of the margins still open. With
optimised intermediate bounds the forms of hidden neurons have slopes as well, and gradients of the
margins reach them through the intervals. Other activations have free slopes above and below,
shared by the forms of a layer; so has ReLU where memory is short.

Every margin and every interval ever found is a proof, so the best of each is kept; an interval
that is worse than the best so far is replaced by it, gradients passing as if it were not (stopping
them there loses two thirds of the gain, measured). Verified specifications and samples are dropped
between steps, and so are samples whose pace would not bring them near a proof.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from robustkit.certify import ops
from robustkit.certify.backward import State, bound_margins, narrowed, pull, tightenable, unstable
from robustkit.certify.forms import Form, Groups, dot
from robustkit.certify.interval import Interval
from robustkit.certify.relax import Slopes, kinked, lines_for
from robustkit.certify.relaxed import Relaxed
from robustkit.certify.starts import BUDGET, chunk, unit_forms

EVERY = 5
"""Steps after which what is verified is dropped."""

HOPE = 2.0
"""Samples are given up that would stay open if all further steps gained this many times as much as the last ones."""

DECAY = 0.98
"""The learning rate shrinks by this factor in every step."""

COPIES = 16
"""Values held for each slope: it, its gradient, two moments, and what backward needs."""

FINAL = -1
"""The node number that stands for the margins."""

Key = tuple[int, ...]


@dataclass(eq=False)
class Own:
    """A relaxed ReLU or leaky ReLU whose lower slopes belong to each form alone, made when first used."""

    fixed: Tensor
    """(N, 1, 6, *shape): unstable, stable slope, upper slope, upper gap, value before, value after at the reference point."""
    leak: float
    key: Key
    slopes: dict[Key, Tensor]

    def pull(self, form: Form, inputs: list[tuple[int, ...]], result: tuple[int, ...], groups: Groups) -> tuple[list[Form], Tensor]:
        """See Relaxed."""
        rows = form.rows(groups)
        loose, stable, upper, upper_gap, before, after = form.spread(self.fixed, groups).unbind(2)
        if self.key not in self.slopes:
            start = torch.where(2 * upper.detach() > 1 + self.leak, torch.ones_like(upper), self.leak)
            self.slopes[self.key] = start.expand_as(rows).contiguous().requires_grad_()
        self.slopes[self.key].detach().clamp_(self.leak, 1)  # others are no relaxation
        positive, negative = rows.clamp(min=0), rows.clamp(max=0)
        lower = positive * torch.addcmul(stable, loose, self.slopes[self.key])
        constant = dot(lower, before) - dot(positive, after) + dot(negative, upper_gap)
        return [form.like(torch.addcmul(lower, negative, upper))], constant


def _owned(state: State, number: int, key: Key, slopes: dict[Key, Tensor]) -> Own:
    node = state.network.nodes[number]
    leak = node.op.slope if isinstance(node.op, ops.LeakyReLU) else 0.0
    low, high = state.ends(node.inputs[0])
    at = state.values[node.inputs[0]]
    lines = kinked(leak, low, high, at, "one")
    loose = ((low < 0) & (high > 0)).to(low)
    fixed = (loose, lines.lower_slope * (1 - loose), lines.upper_slope, lines.upper_gap, at, torch.where(at > 0, at, leak * at))
    return Own(torch.stack(fixed, 1).unsqueeze(1), leak, key, slopes)


class Ascent:
    """Slopes of one block of samples, and the best that was proven with them.

    Args:
        state: with the intervals to start from, which are narrowed in place.
        y, others: (N,) labels and (N, S) classes to bound the margin against.
        best: (N, S) margins proven so far, 0 or less where open.
        hidden: optimise the slopes of intermediate bounds as well.
        own: give every form its own slopes.
    """

    def __init__(self, state: State, y: Tensor, others: Tensor, best: Tensor, hidden: bool, own: bool = True) -> None:
        self.state, self.y, self.others, self.best, self.own = state, y, others, best, own
        self.columns = torch.arange(others.shape[1], device=y.device).expand_as(others)
        # parts only of a sample alone, so that dropping samples leaves them as they are
        self.part = chunk(BUDGET, state.network, state.region.at) if len(y) == 1 else None
        targets = sorted(tightenable(state.network, state.region)) if hidden else []
        self.where = {i: unstable(state, i).nonzero() for i in targets}
        self.slopes: dict[Key, Tensor] = {}
        self.moments: dict[Key, tuple[Tensor, Tensor]] = {}
        self.taken = 0

    @property
    def size(self) -> int:
        """Slopes in all."""
        return sum(s.numel() for s in self.slopes.values())

    def _relaxed(self, now: State, number: int, target: int, part: int, forms: int) -> Relaxed:
        """Node `number` with the slopes that the forms of `target` have for it."""
        op, key = now.network.nodes[number].op, (target, number, part)
        if isinstance(op, ops.MaxPool):
            return now.relax_node(number, "adaptive")
        kink = isinstance(op, ops.ReLU) or (isinstance(op, ops.LeakyReLU) and op.slope <= 1)
        if kink and self.own:
            return _owned(now, number, key, self.slopes)
        if key not in self.slopes:
            with torch.no_grad():
                node = now.network.nodes[number]
                low, high = now.ends(node.inputs[0])
                lines = lines_for(node, low, high, now.values[node.inputs[0]], "adaptive")
                both = torch.stack((lines.lower_slope, lines.upper_slope), 1).unsqueeze(1)
            self.slopes[key] = both.expand(-1, forms, *both.shape[2:]).contiguous().requires_grad_()
        lower, upper = self.slopes[key].unbind(2)
        return now.relax_node(number, Slopes(lower, upper))

    def bound(self) -> Tensor:
        """(N, S) margins with the present slopes, differentiable in them; narrows the best intervals."""
        state = self.state
        now = replace(state, intervals=dict(state.intervals))
        for target, where in self.where.items():
            if len(where):
                now.intervals[target] = narrowed(now, target, where, self._hidden(now, target, where), through=True)
                found = now.intervals[target]
                state.intervals[target] = Interval(found.centre.detach(), found.width.detach())
        lines = {n: self._relaxed(now, n, FINAL, 0, self.others.shape[1]) for n in state.nonlinear}
        return bound_margins(now, self.y, self.others, lines, whole=True)

    def _hidden(self, now: State, target: int, where: Tensor) -> Tensor:
        """(G, 2) backward bounds of the neurons `where` of a node; recomputed in parts for the gradient where they are many."""
        found = []
        step = self.part or len(where)
        forms = unit_forms(now.network, now.region.at, target, where, step, now.errors is None)
        for part, (form, start, groups) in enumerate(forms):

            def run(form: Form = form, start: int = start, groups: Groups = groups, part: int = part) -> Tensor:
                lines = {n: self._relaxed(now, n, target, part, 2) for n in now.nonlinear if n <= target}
                return pull(now, form, start, groups, lines)

            again = len(where) > step and torch.is_grad_enabled()
            found.append(checkpoint(run, use_reentrant=False) if again else run())
        return torch.cat(found)

    def step(self, rate: float) -> None:
        """One step of Adam on the open margins."""
        with torch.enable_grad():
            bound = self.bound()
            self.keep(bound.detach())
            gain = torch.where((self.best <= 0) & torch.isfinite(bound), bound, 0).sum()
            keys = list(self.slopes)
            if not keys or not gain.requires_grad:
                return
            gradients = torch.autograd.grad(gain, [self.slopes[k] for k in keys], allow_unused=True)
        self.taken += 1
        for key, gradient in zip(keys, gradients):
            if gradient is None:
                continue
            slope = self.slopes[key].detach()
            first, second = self.moments.setdefault(key, (torch.zeros_like(slope), torch.zeros_like(slope)))
            first.lerp_(gradient, 0.1)
            second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            size = (second / (1 - 0.999**self.taken)).sqrt_().add_(1e-8)
            slope.addcdiv_(first, size, value=rate / (1 - 0.9**self.taken))

    def keep(self, bound: Tensor) -> None:
        """Remember margins that are better than the best so far."""
        self.best = torch.maximum(self.best, torch.where(torch.isfinite(bound), bound, -torch.inf))

    def drop(self, keep: Tensor) -> None:
        """Go on with the samples at positions `keep` alone, and of their specifications with as many as one of them has open."""
        opened = self.best[keep] <= 0
        many = max(1, int(opened.sum(1).max()))
        if len(keep) == len(self.y) and many == self.others.shape[1]:
            return
        fresh = torch.full((len(self.y),), -1, device=keep.device)
        fresh[keep] = torch.arange(len(keep), device=keep.device)
        rows = {t: (fresh[w[:, 0]] >= 0).nonzero()[:, 0] for t, w in self.where.items()}
        spec = opened.long().sort(dim=1, descending=True, stable=True).indices[:, :many]

        def cut(key: Key, values: Tensor) -> Tensor:
            if key[0] == FINAL:
                index = spec.view(len(keep), many, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
                return values.detach()[keep].gather(1, index)
            if len(keep) == len(fresh):
                return values.detach()
            return values.detach()[rows[key[0]] if values.dim() == 3 else keep]  # forms' own, or their sample's

        self.moments = {k: (cut(k, a), cut(k, b)) for k, (a, b) in self.moments.items()}
        self.slopes = {k: cut(k, v).requires_grad_() for k, v in self.slopes.items()}
        self.where = {t: torch.stack((fresh[w[rows[t], 0]], w[rows[t], 1]), 1) for t, w in self.where.items()}
        self.state, self.y = self.state.pick(keep), self.y[keep]
        self.others, self.best, self.columns = (v[keep].gather(1, spec) for v in (self.others, self.best, self.columns))


def optimise(
    state: State, y: Tensor, others: Tensor, margins: Tensor, *, steps: int, rate: float, hidden: bool, budget: int = BUDGET
) -> Tensor:
    """(N,) worst margins after `steps` steps of ascent; the arguments are those of Ascent, `margins` its `best`.

    Every sample climbs alone: what it keeps and drops on the way decides the sizes of its products, and no other's may.
    `budget`: bytes within which every form has its own slopes.
    """
    worst = margins.amin(1)
    for number in range(len(y)):
        at = torch.tensor([number], device=y.device)
        alone = (state.pick(at), y[at], others[at], margins[at])
        worst[at] = _climb(*alone, steps, rate, hidden, _fits(*alone, hidden, budget))
    return worst


def _fits(state: State, y: Tensor, others: Tensor, margins: Tensor, hidden: bool, budget: int) -> bool:
    """Whether every form of a sample can have its own slopes."""
    ascent = Ascent(state, y, others, margins, hidden)
    nodes = [state.network.nodes[i] for i in state.nonlinear if not isinstance(state.network.nodes[i].op, ops.MaxPool)]
    forms = others.shape[1] + 2 * sum(len(where) for where in ascent.where.values())
    each = COPIES * state.region.at.element_size()
    if each * forms * sum(torch.Size(node.shape).numel() for node in nodes) <= budget:  # even if all saw all of every layer
        return True
    with torch.no_grad():
        ascent.bound()
    return each * ascent.size <= budget


def _climb(state: State, y: Tensor, others: Tensor, margins: Tensor, steps: int, rate: float, hidden: bool, own: bool) -> Tensor:
    ascent = Ascent(state, y, others, margins, hidden, own)
    found, left = margins.clone(), torch.arange(len(y), device=y.device)
    before = torch.full_like(y, -torch.inf, dtype=margins.dtype)
    for taken in range(steps + 1):
        if taken % EVERY == 0:
            worst = ascent.best.amin(1)
            within_reach = worst + HOPE * (worst - before) * (steps - taken) / EVERY >= 0
            keep = ((worst <= 0) & (within_reach | (taken == steps))).nonzero()[:, 0]
            if not len(keep):
                break
            ascent.drop(keep)
            left, before = left[keep], worst[keep]
        if taken < steps:
            ascent.step(rate * DECAY**taken)
        else:
            with torch.no_grad():
                ascent.keep(ascent.bound())
        found[left] = found[left].scatter(1, ascent.columns, ascent.best)
    return found.amin(1)
