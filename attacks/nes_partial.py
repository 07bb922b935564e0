"""The two settings of NES (nes.py) in which little is shown: scores of the k likeliest classes, or the class alone.

Ilyas et al. 2018, sections 2.3 and 2.4. The search starts at an image of the target class, at the
distance it has, and shrinks the ball around the clean image while the target stays among the k
likeliest. With the class alone, a score is the share of random points nearby that are of the target class.

Deliberate deviations: the ball shrinks by a share of its size instead of by a constant, so that the
budget's scale does not matter. The paper tries a smaller ball or a shorter step after another until
one keeps the target; here PROPOSALS of them go forward together and the boldest that keeps it is
taken, so that rows with different luck stay in one batch. Samples that miss the target are weighed
0 (the paper's code: a mean over none of them, NaN); the random points nearby are the same for all samples of
a step, and their differences all the clearer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustkit import streams
from robustkit.attacks import starting
from robustkit.attacks.sampling import at_step, uniform
from robustkit.errors import BadInput
from robustkit.methods import Rows, State
from robustkit.numerics import choose, constant
from robustkit.threats import Threat
from robustkit.views import ScoreView

if TYPE_CHECKING:
    from robustkit.attacks.nes import NES

SHRINKS = (1.0, 0.5, 0.25, 0.125, 0.0, 0.0, 0.0, 0.0)
"""What is proposed, boldest first: parts of the row's share by which the ball shrinks, ..."""
STEPS = (1.0, 1.0, 0.5, 0.5, 1.0, 0.5, 0.25, 0.125)
"""... and parts of its step."""
PROPOSALS = len(STEPS)
_MOST, _LEAST = 0.5, 1e-3
"""Limits of the share by which the ball may shrink at once."""


def begin(nes: NES, rows: Rows, view: ScoreView, threat: Threat) -> State:
    """At an image of the target class; rows without one end here. Raises BadInput for an untargeted goal."""
    if not view.goal.targeted:
        raise BadInput(f"nes: mode={nes.mode} moves an image of the target class: give a targeted goal, for example --goal targeted:random")
    p, there = starting.to_target(rows, view.shared["pool"]())
    there = there & (view.decisions(p) == rows.target)
    return {
        "p": p,
        "ball": torch.maximum(threat.size(rows.x, p), rows.eps),
        "share": torch.full_like(rows.eps, _MOST),
        "over": ~there,
    }


def advance(nes: NES, rows: Rows, state: State, view: ScoreView, threat: Threat) -> State:
    """One estimate, and the boldest of the proposed moves that keeps the target in sight."""
    noise, points = nes.draw(rows, state["p"], threat)
    loss, seen = _labels(nes, rows, points, view, threat) if nes.mode == "label-only" else _scores(nes, rows, points, view)
    count = seen.sum(1)
    level = torch.where(count > 0, (loss * seen).sum(1) / count.clamp(min=1), torch.inf)
    weight = torch.where(seen, loss - level[:, None], 0.0).to(noise.dtype)
    half = noise.shape[1]
    slope = (weight[:, :half] - weight[:, half:]) / count.clamp(min=1)[:, None].to(noise.dtype)
    gradient = noise.mul_(slope.view(*slope.shape, 1, 1, 1)).sum(1)
    state = nes.follow(state, gradient, level.to(noise.dtype))
    return _move(nes, rows, state, level < nes.threshold, view, threat)


def shown(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(...,K) float64 log-probabilities, and which of them are among the k highest: all that this setting lets be known."""
    scores = logits.double().log_softmax(-1)
    least = scores.topk(min(k, scores.shape[-1]), dim=-1).values[..., -1:]
    return scores, scores >= least


def _scores(nes: NES, rows: Rows, points: Tensor, view: ScoreView) -> tuple[Tensor, Tensor]:
    """(R,S) cross-entropy of the target, and whether it is shown."""
    scores, top = shown(view.many(points), nes.top)
    at = rows.target[:, None, None].expand(-1, points.shape[1], 1)
    seen = top.gather(2, at)[:, :, 0]
    return torch.where(seen, -scores.gather(2, at)[:, :, 0], 0.0), seen


def _labels(nes: NES, rows: Rows, points: Tensor, view: ScoreView, threat: Threat) -> tuple[Tensor, Tensor]:
    """(R,S) the share of points nearby that are not of the target class; all are shown."""
    keys = at_step(streams.child(rows.key, 1), rows.steps)
    nearby = uniform(keys, (nes.proxies, *points.shape[2:])).mul_(nes.length(rows, nes.proxy_radius, threat).view(-1, 1, 1, 1, 1))
    asked = (points[:, :, None] + nearby[:, None]).flatten(1, 2)
    hits = (view.many_decisions(asked) == rows.target[:, None]).view(len(points), -1, nes.proxies)
    loss = 1 - hits.double().mean(2)
    return loss, torch.ones_like(loss, dtype=torch.bool)


def _move(nes: NES, rows: Rows, state: State, shrink: Tensor, view: ScoreView, threat: Threat) -> State:
    """Ask about all proposals at once and take the first that keeps the target."""
    p, ball = state["p"], state["ball"]
    shares = constant(SHRINKS, ball.dtype, ball.device) * torch.where(shrink, state["share"], 0.0)[:, None]
    balls = torch.maximum(ball[:, None] * (1 - shares), rows.eps[:, None])
    lengths = constant(STEPS, ball.dtype, ball.device) * (state["rate"] * rows.eps)[:, None]

    def each(value: Tensor) -> Tensor:
        return value.repeat_interleave(PROPOSALS, 0)

    x = each(rows.x)
    moved = threat.step(x, each(p), each(-state["mean"]), lengths.flatten())
    points = threat.project(x, moved, balls.flatten()).view(len(p), PROPOSALS, *p.shape[1:])
    kept = _keeps(nes, rows, points, view)
    first = kept.to(torch.int8).argmax(1)
    taken = kept.any(1)
    at = torch.arange(len(p), device=p.device)
    bold = shares[at, first]
    share = torch.where(taken & (bold > 0), 2 * bold, torch.where(shrink, state["share"] / 8, state["share"]))
    return state | {
        "p": choose(taken, points[at, first], p),
        "ball": torch.where(taken, balls[at, first], ball),
        "share": share.clamp(_LEAST, _MOST),
    }


def _keeps(nes: NES, rows: Rows, points: Tensor, view: ScoreView) -> Tensor:
    """(R,S) whether the target is among the classes shown."""
    if nes.mode == "label-only":
        return view.many_decisions(points) == rows.target[:, None]
    _, top = shown(view.many(points), nes.top)
    return top.gather(2, rows.target[:, None, None].expand(-1, points.shape[1], 1))[:, :, 0]
