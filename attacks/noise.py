"""Random points of the ball: what looks for nothing, and should find little."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustkit import streams
from robustkit.methods import Attack, Rows, State
from robustkit.numerics import choose
from robustkit.threats import Threat
from robustkit.views import ScoreView


@dataclass(frozen=True)
class Noise(Attack):
    """Random points inside the ball and as far out as it goes, in turn. What looks for nothing and should find little."""

    draws: int = 100

    name = "noise"
    access = "score"
    positional = ("draws",)

    @property
    def iterations(self) -> int:
        return self.draws

    def init(self, rows: Rows, view: ScoreView, threat: Threat) -> State:  # type: ignore[override]
        return {"p": threat.zero(rows.x)}

    def step(self, rows: Rows, state: State, view: ScoreView, threat: Threat) -> State:  # type: ignore[override]
        keys = streams.child(rows.key, rows.steps)
        inside, far = threat.random(rows.x, rows.eps, streams.child(keys, 0)), outermost(threat, rows.x, rows.eps, streams.child(keys, 1))
        p = choose(rows.steps % 2 == 0, inside, far)
        view.scores(p)
        return {"p": p}


def outermost(threat: Threat, x: Tensor, eps: Tensor, keys: Tensor) -> Tensor:
    """A random parameter as far out as the budget allows, in l_inf a corner of the ball: a step of twice the budget, as the box takes
    much of one."""
    zero = threat.zero(x)
    return threat.project(x, threat.step(x, zero, streams.normal(keys, tuple(zero.shape[1:])), eps * 2), eps)
