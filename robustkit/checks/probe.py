"""The fixed probe of correct samples that the honesty checks look at, and attacks on it.

Comparisons are flagged at a one-sided paired sign test p < 0.01 with a net difference of at least
5 % of the probe, so that sound models are not flagged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from robustkit.batch_size import BatchSize
from robustkit.binomial import at_least
from robustkit.core.comparisons import float_below
from robustkit.data import Data
from robustkit.errors import BadInput, first_line
from robustkit.methods import Attack
from robustkit.plan import probe
from robustkit.samples import Outcome, Samples
from robustkit.sharing import ALONE, Sharing, make_driver
from robustkit.verdict.evidence import Bools, Evidence, Ints
from robustkit.verdict.judge import Judge

LEVEL, NET = 0.01, 0.05

Finding = dict[str, str]
"""{check, status, message, cure}; status is pass, warn, error or skipped, and only warn and error have a cure."""

Verdict = tuple[str, str, str]
"""(status, message, cure)."""


def flagged(gains: int, losses: int, probe: int) -> bool:
    """Whether one method beats another on the probe: `gains` samples only it breaks, `losses` only the other."""
    return gains - losses >= max(1, NET * probe) and float(at_least(gains, gains + losses, 0.5)) < LEVEL


@dataclass
class Probe:
    """Up to 64 correct samples drawn by seed, and what attacks do to them."""

    judge: Judge
    data: Data
    evidence: Evidence
    logits: Tensor
    """(N,K) clean logits of all samples."""
    targets: Tensor
    """(N,) goal targets of all samples."""
    seed: int
    batch_size: BatchSize
    tick: Callable[[int], None]
    pool: Callable[[], Data] | None = None
    sharing: Sharing = ALONE
    tried: dict[tuple[str, float], tuple[Bools, Bools]] = field(default_factory=dict)
    """(attack, budget) -> who has been attacked, and who fell."""
    more: dict[str, None] = field(default_factory=dict)
    """Specifications of the attacks that broke, at the run's budget, samples that the run had not."""

    @cached_property
    def at(self) -> Ints:
        """Positions of the probe's samples."""
        return probe(self.evidence, self.seed)

    def __len__(self) -> int:
        return len(self.at)

    @property
    def budget(self) -> float:
        """The run's largest budget, rounded down."""
        return float_below(self.judge.threat.eps)

    @property
    def broken(self) -> Bools:
        """Who has fallen in the run itself, within the largest budget."""
        return self.evidence.upper[self.at] <= self.budget

    @property
    def open(self) -> Bools:
        """Who has neither fallen in the run nor been proven robust, at the largest budget."""
        return ~self.broken & (self.evidence.lower[self.at] < self.budget)

    def images(self) -> Tensor:
        """(P,C,H,W) on the classifier's device."""
        return self.data.images(torch.from_numpy(self.at)).to(self.judge.classifier.device)

    def labels(self) -> Tensor:
        """(P,) int64 on the classifier's device."""
        return torch.from_numpy(self.evidence.label[self.at]).to(self.judge.classifier.device)

    def attack(self, attack: Attack, budget: float | None = None, among: Bools | None = None) -> Bools:
        """(P,) bool: who falls to this attack at this budget (default the run's).

        Certified samples are not tried, nor those outside `among`, whom an earlier call may have tried.
        Raises BadInput where the attack does not fit the threat or the model.
        """
        most = self.budget if budget is None else budget
        attack.accepts(self.judge.threat)
        attack.attempts(self.logits.shape[1])
        key = (attack.digest, most)
        tried, fell = self.tried.get(key, (np.zeros(len(self), dtype=bool), np.zeros(len(self), dtype=bool)))
        wanted = np.flatnonzero(
            ~tried & (self.evidence.lower_of("deterministic", sparing=True)[0][self.at] < most) & (True if among is None else among)
        )
        if len(wanted):
            fell[wanted] = self._hits(attack, most, self.at[wanted])
            tried[wanted] = True
        self.tried[key] = tried, fell
        if most == self.budget and bool((fell & ~self.broken).any()):
            self.more[str(attack.spec)] = None
        return fell.copy()

    def misses(self, attack: Attack, others: Bools, gains: int) -> int | None:
        """How many of those that `others` broke (P,) this attack does not break.

        None, and nobody is attacked, where its `gains` are too few to be flagged whatever it misses.
        """
        if not flagged(gains, 0, len(self)):
            return None
        return int((others & ~self.attack(attack, among=others)).sum())

    def _hits(self, attack: Attack, budget: float, where: Ints) -> Bools:
        at = torch.from_numpy(where)
        label = torch.from_numpy(self.evidence.label)
        eps = torch.full((len(at),), budget, dtype=torch.float64)
        samples = Samples(self.data.index[at], label[at], self.targets[at], self.logits[at], eps, lambda i: self.data.images(at[i]))
        found: list[Outcome] = []
        options = {"seed": self.seed, "batch_size": self.batch_size, "tick": lambda _: self.tick(0), "pool": self.pool}
        make_driver(attack, self.judge, sharing=self.sharing, **options).run(samples, found.append)
        outcome = Outcome.join(found)
        fell: Bools = outcome.success[outcome.at.argsort()].numpy()
        return fell


def finding(name: str, check: Callable[[], Verdict]) -> Finding:
    """What a check has to say; where it cannot be done it is skipped and the run stands without it."""
    try:
        status, message, cure = check()
    except BadInput as problem:
        status, message, cure = "skipped", str(problem), ""
    except RuntimeError as problem:  # what a model that hides its gradients raises
        status, message, cure = "skipped", f"could not be done: {first_line(problem)}", ""
    return {"check": name, "status": status, "message": message, "cure": cure}
