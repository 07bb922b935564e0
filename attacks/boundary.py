"""Boundary attack, Brendel, Rauber & Bethge 2018, https://arxiv.org/abs/1712.04248: a walk along the decision boundary.

Asks for classes only. From an adversarial image far away, every step goes sideways at random and a
little towards the clean image, and is taken where the class stays wrong. With a low-frequency sampler
the sideways step is smooth (Guo, Frank & Weinberger 2019, https://arxiv.org/abs/1809.08758); with
sampler=auto four walks with different parts of the spectrum take turns and the further half is dropped
twice, at 4/60 and at 6/60 of the queries (as 500 steps a walk of their 30 000 queries). A walk that
has come to rest among low frequencies goes on with all of them.

Deliberate deviations: on a flat boundary a sideways step of share s of the distance pays most with a
share s^2/2 ahead, so one length is kept instead of two; it follows every answer, balanced where one
step in six is taken, and no query is spent on the sideways step alone. The nearest image of the target
class (or, where noise is not misclassified, of any other class) in the pool is where a walk begins.
Low-frequency noise is made orthogonal to the way home, which the published code does wrong and then
leaves out. Noise of all frequencies is so nearly, and where it is not, a trial is pulled back to its
distance in any case. For l_inf, sideways steps are not orthogonal to anything: the ball cuts off what
is too far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustkit import streams
from robustkit.attacks import starting
from robustkit.attacks.sampling import PLAIN, LowFrequency, at_step, from_spectrum, normal, sampler, sampler_spec
from robustkit.errors import BadInput
from robustkit.methods import Attack, Rows, State
from robustkit.numerics import choose, overwrite, wide
from robustkit.spec import Spec
from robustkit.threats import Threat
from robustkit.threats.norms import norm64
from robustkit.views import View

if TYPE_CHECKING:
    from robustkit.classifier import Classifier
    from robustkit.data import Data

RATIOS = (Fraction(1, 4), Fraction(1, 8), Fraction(1, 16), Fraction(1, 32))
"""Parts of the spectrum that sampler=auto chooses from."""
_NOISES, _HALVINGS = 16, 10
"""Noise images tried at the start, and halvings of the way to the first adversarial one."""
_UP = 1.3
"""What a success multiplies the length by; a failure divides it by the fifth root."""
_CONVERGED = 3e-4
_NEAR = 1.001
"""What is longer than so many times the budget is not within it, however sizes are rounded."""


@dataclass(frozen=True)
class Boundary(Attack):
    """Walks along the decision boundary towards the clean image, seeing classes only.

    Fields: queries in all; sampler of the sideways steps (gaussian, (low-frequency:1/8), or auto for
    low frequencies of a ratio found on the way); side, the first length of a sideways step as a share
    of the distance; restarts.
    """

    queries: int = 25_000
    sampler: Spec = PLAIN
    side: float = 0.1
    restarts: int = 1

    name = "boundary"
    positional = ("queries",)
    access = "decision"
    threats = ("l2", "linf")
    paper = "Brendel et al. 2018"
    version = 3
    bounded = False
    minimum_norm = True

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.restarts < 1:
            raise BadInput(
                f"boundary: needs at least {_NOISES + _HALVINGS + 2} queries and 1 restart, found {self.queries}, {self.restarts}"
            )
        if not _CONVERGED < self.side <= 1:
            raise BadInput(f"boundary: side is a share of the distance, above {_CONVERGED} and at most 1, found {self.side}")
        spec = Spec("auto") if str(self.sampler) == "auto" else sampler_spec(self.sampler)
        object.__setattr__(self, "sampler", spec)

    @property
    def walks(self) -> int:
        """Walks that take turns."""
        return len(RATIOS) if self.sampler.name == "auto" else 1

    @property
    def iterations(self) -> int:
        return self.queries - _NOISES - _HALVINGS - 1  # the Judge's confirmation is the last query

    def prepare(self, pool: Callable[[], Data], classifier: Classifier, threat: Threat, eps: float, seed: int) -> dict[str, Any]:
        return starting.classified(pool, classifier)

    def init(self, rows: Rows, view: View, threat: Threat) -> State:
        far = self._far(rows, view, threat)
        low, high = torch.zeros_like(rows.eps), torch.ones_like(rows.eps)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            hit = _adversarial(rows, view.decisions(far * wide(middle.to(far.dtype), far)))
            low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
        p = far * wide(high.to(far.dtype), far)
        ones = torch.ones(len(rows), self.walks, dtype=torch.float64, device=p.device)
        return {
            "p": p,
            "walk": p[:, None].repeat(1, self.walks, 1, 1, 1),
            "size": threat.size(rows.x, p)[:, None] * ones,
            "side": self.side * ones,
            "plain": ones.bool() if self.sampler.name == "gaussian" else ~ones.bool(),
            "order": torch.arange(self.walks, device=p.device).repeat(len(rows), 1),
            "over": torch.zeros_like(rows.index, dtype=torch.bool),
        }

    def step(self, rows: Rows, state: State, view: View, threat: Threat) -> State:
        order, walk = self._turn(rows, state)
        p, size, side, plain = (self._of(state[name], walk) for name in ("walk", "size", "side", "plain"))
        moved = self._sideways(rows, p, size, side, walk, plain, threat)
        trial = threat.project(rows.x, moved, size * (1 - side.square() / 2))
        length = _length(trial, threat)
        hit = _adversarial(rows, view.decisions(trial, near=length <= rows.eps * _NEAR))
        side = (side * torch.where(hit, _UP, _UP**-0.2)).clamp(max=1)
        resting = side < _CONVERGED
        new = {
            "walk": overwrite(hit, trial, p),
            "size": torch.where(hit, torch.minimum(length, size), size),
            "side": torch.where(resting & ~plain, self.side, side),
            "plain": plain | resting,
        }
        state = state | {name: self._with(state[name], walk, value) for name, value in new.items()}
        nearest = state["size"].argmin(1)
        over = (resting & plain) | (self._of(state["size"], nearest) == 0)
        return state | {"order": order, "p": self._of(state["walk"], nearest), "over": over}

    def _of(self, values: Tensor, walk: Tensor) -> Tensor:
        """(R,...) what `values` (R,walks,...) hold of one walk a row."""
        return values[:, 0] if self.walks == 1 else values[torch.arange(len(walk), device=walk.device), walk]

    def _with(self, values: Tensor, walk: Tensor, new: Tensor) -> Tensor:
        """`values` (R,walks,...) with those of one walk a row replaced."""
        return new[:, None] if self.walks == 1 else values.index_put((torch.arange(len(walk), device=walk.device), walk), new)

    def _far(self, rows: Rows, view: View, threat: Threat) -> Tensor:
        """(R,...) change to an adversarial image: of the target class, or the first of several noise images."""
        if view.goal.targeted:
            return starting.to_target(rows, view.shared["pool"]())[0]
        noise = streams.uniform(streams.child(rows.key, 0), (_NOISES, *rows.x.shape[1:])) - rows.x[:, None]
        hit = _adversarial(rows, view.many_decisions(noise))
        far = noise[torch.arange(len(rows), device=noise.device), hit.to(torch.int8).argmax(1)]
        found = hit.any(1)
        if not bool(found.all()):
            far = choose(found, far, starting.to_another(rows, view.shared["pool"]())[0])
        return far

    def _turn(self, rows: Rows, state: State) -> tuple[Tensor, Tensor]:
        """The walks in order of their distance when last compared, and (R,) the one whose turn it is."""
        if self.walks == 1:
            return state["order"], state["order"][:, 0]
        first = self.walks * max(1, self.iterations // 60)
        second = first + first // 2
        comparing = (rows.steps == first) | (rows.steps == second)
        order = torch.where(comparing[:, None], state["size"].argsort(dim=1, stable=True), state["order"])
        alive = torch.where(rows.steps < first, 4, torch.where(rows.steps < second, 2, 1))
        return order, order.gather(1, (rows.steps % alive)[:, None])[:, 0]

    def _sideways(self, rows: Rows, p: Tensor, size: Tensor, side: Tensor, walk: Tensor, plain: Tensor, threat: Threat) -> Tensor:
        """(R,...) p and noise of a share `side` of its size; l_inf takes the length per value."""
        noise = self._noise(at_step(rows.key, rows.steps), walk, plain, tuple(p.shape[1:]))
        if threat.name == "l2" and self.sampler.name != "gaussian":
            share = (noise * p).flatten(1).sum(1) / size.square().clamp(min=1e-30).to(p.dtype)
            noise = torch.addcmul(noise, p, -wide(share, p), out=noise)
        norm = torch.linalg.vector_norm(noise.flatten(1), dim=1).clamp(min=1e-12)
        scale = 1.0 if threat.name == "l2" else p[0].numel() ** 0.5
        return torch.addcmul(p, noise, wide((size * side).to(p.dtype) * scale / norm, p), out=noise)

    def _noise(self, keys: Tensor, walk: Tensor, plain: Tensor, shape: tuple[int, ...]) -> Tensor:
        everything = normal(keys, 1, shape)[:, 0]
        if self.sampler.name == "gaussian":
            return everything
        smooth = self._varied(keys, walk, shape) if self.sampler.name == "auto" else sampler(self.sampler).draw(keys, 1, shape)[:, 0]
        return choose(plain, everything, smooth)

    def _varied(self, keys: Tensor, walk: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Low frequencies of the ratio that each row's walk has."""
        sides = _sides(shape, str(keys.device))[walk]
        height, width = LowFrequency(RATIOS[0]).sides(shape)
        tall = torch.arange(height, device=keys.device) < sides[:, :1]
        broad = torch.arange(width, device=keys.device) < sides[:, 1:]
        weights = normal(keys, 1, (shape[0], height, width))[:, 0]
        return from_spectrum(weights * (tall[:, None, :, None] & broad[:, None, None, :]), shape)


@cache
def _sides(shape: tuple[int, ...], device: str) -> Tensor:
    """(4,2) rows and columns of the spectrum that each of the RATIOS keeps."""
    return torch.tensor([LowFrequency(ratio).sides(shape) for ratio in RATIOS], device=device)


def _length(p: Tensor, threat: Threat) -> Tensor:
    """(R,) float64 size of p inside the box, but for what rounding the image adds: the Judge measures witnesses, this is quicker."""
    return p.flatten(1).abs().amax(1).double() if threat.name == "linf" else norm64(p)


def _adversarial(rows: Rows, classes: Tensor) -> Tensor:
    """(R,...) bool for predicted classes (R,...)."""
    own, target = (value.view(-1, *[1] * (classes.dim() - 1)) for value in (rows.y, rows.target))
    return torch.where(target >= 0, classes == target, classes != own)
