"""Runs attacks that come as a whole: other people's loops, which ask a model what they like and end when they like.

The loop is given the model as a watched function. It counts what every sample asks, lets no attack
see more than its access level says, keeps the nearest adversarial point of every sample whatever
the loop itself returns, and ends it when nothing is left to find.

Where a loop treats its rows alike and apart (`together`), samples share batches that are multiples
of 16. All others, which stop when all rows are done or let rows share statistics, get every sample
alone. Either way no sample's result depends on another's.
"""

from __future__ import annotations

import random
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from robustkit.batch_size import BatchSize, batch_rows, check_batch
from robustkit.core.comparisons import within
from robustkit.driver import Stop, make_rows
from robustkit.errors import BadInput, RobustkitError
from robustkit.memory import out_of_memory
from robustkit.methods import Attack, Rows, State
from robustkit.numerics import PAD, choose, padded
from robustkit.samples import Outcome, Samples
from robustkit.threats import Threat
from robustkit.verdict.judge import Judge
from robustkit.watch import Ended, Watch

_PUSHES = (1.01, 1.03, 1.1)
"""How much further a minimum-norm attack's last image is taken in turn while the Judge does not confirm it."""


class BlockAttack(Attack):
    """An attack with a loop of its own."""

    bounded = False
    together: ClassVar[bool] = False
    """Whether rows do not depend on one another and all take the same number of steps."""
    targetable: ClassVar[bool] = True
    """Whether it can aim at a class."""

    @abstractmethod
    def search(self, rows: Rows, watch: Watch, threat: Threat) -> Tensor:
        """Look for adversarial images of the rows by calling `watch`; returns the last ones (R,C,H,W).

        All rows have the same budget. Global random generators are seeded from the first row's key
        and put back afterwards; rows that are `together` must draw from their keys alone.
        """

    def init(self, rows: Rows, view: Any, threat: Threat) -> State:
        raise TypeError(f"{self.name} runs in a BlockDriver")

    def step(self, rows: Rows, state: State, view: Any, threat: Threat) -> State:
        raise TypeError(f"{self.name} runs in a BlockDriver")


class BlockDriver:
    """Runs one BlockAttack under one Judge; the same interface as Driver."""

    def __init__(
        self,
        attack: BlockAttack,
        judge: Judge,
        *,
        seed: int = 0,
        stop: Stop = "first",
        batch_size: BatchSize = "auto",
        tick: Callable[[int], None] | None = None,
        pool: Any = None,
        surrogate: bool = True,
    ) -> None:
        check_batch(batch_size)
        attack.accepts(judge.threat)
        if stop == "never":
            raise BadInput(f"{attack.spec} ends when it likes: stop='never' needs one of robustkit's own attacks, for example pgd")
        if judge.goal.targeted and not attack.targetable:
            raise BadInput(f"{attack.spec} cannot aim at a class: use goal untargeted, or another attack")
        self.attack, self.judge, self.seed, self.stop, self.batch_size = attack, judge, seed, stop, batch_size
        self.tick = tick or (lambda finished: None)
        self.surrogate = surrogate and judge.classifier.surface.surrogate is not None
        self.failed: list[tuple[int, str]] = []
        """(dataset index, message) of samples on which the attack raised; what it had found until then counts."""
        self.unit = PAD if attack.together else 1
        """Rows that padding completes."""
        self.crowd = 1
        """Processes that share the machine and the work."""

    def run(self, samples: Samples, deliver: Callable[[Outcome], None]) -> None:
        """Attack all samples; `deliver` gets each sample's outcome once, block by block.

        `tick` is called before every forward and after every block; what it raises (a time limit, an
        interrupt) ends the run, and the block at work is lost.
        """
        self.prepare(samples)
        self.work(samples, deliver)
        self.complain(len(samples))

    def prepare(self, samples: Samples) -> None:
        """What comes before the first sample."""
        self.failed = []

    def complain(self, count: int) -> None:
        """Warn of the samples, of `count`, on which the attack raised."""
        if self.failed:
            index, message = min(self.failed)
            what = f"{self.attack.spec} raised on {len(self.failed)} of {count} samples and did not break them"
            warnings.warn(f"{what}; the first has dataset index {index}: {message}", RuntimeWarning, stacklevel=2)

    def work(self, samples: Samples, deliver: Callable[[Outcome], None]) -> None:
        """Attack the samples after `prepare`."""
        if not len(samples):
            return
        capacity = 1
        if self.attack.together:
            shape, device = tuple(samples.images(torch.tensor([0])).shape[1:]), self.judge.classifier.device
            capacity = batch_rows(self.batch_size, shape, device, crowd=self.crowd)
        for budget in sorted(set(samples.eps.tolist())):
            for at in _parts((samples.eps == budget).nonzero()[:, 0], capacity):
                self._block(samples, at, deliver)

    def _block(self, samples: Samples, at: Tensor, deliver: Callable[[Outcome], None]) -> None:
        """One block; where it raises, its halves and at last its samples one by one."""
        rows = self._rows(samples, at)
        watch = Watch(self.attack, self.judge, rows, len(at), self.stop, self.tick)
        watch.surrogate = self.surrogate
        last, problem = rows.x, None
        try:
            with own_randomness(int(rows.key[0])):
                last = self.attack.search(rows, watch, self.judge.threat).detach()
        except Ended:
            pass
        except RobustkitError:
            raise
        except Exception as raised:
            if len(at) > 1:
                half = padded(len(at) // 2) if len(at) > PAD else 1
                for part in _parts(at, half):
                    self._block(samples, part, deliver)
                return
            if out_of_memory(raised):
                raise
            problem = raised
        found = self._outcome(at, rows, watch, last)
        if problem is not None and not bool(found.success.any()):
            self.failed.append((int(samples.index[at[0]]), f"{type(problem).__name__}: {problem}"))
        deliver(found)
        self.tick(len(at))

    def _outcome(self, at: Tensor, rows: Rows, watch: Watch, last: Tensor) -> Outcome:
        """The Judge's verdict on every row's nearest adversarial point, else on the last image, snapped to the budget.

        Attacks that end on the decision boundary itself get a push outward where the Judge is not convinced.
        """
        threat, book = self.judge.threat, watch.book
        p = choose(torch.isfinite(book["nearest"]), book["candidate"], torch.nan_to_num(last).clamp(0, 1) - rows.x)
        outside = ~within(threat.size(rows.x, p), rows.eps)
        if bool(outside.any()):
            p = p.index_put((outside,), threat.project(rows.x[outside], p[outside], rows.eps[outside]))
        verified, size, logits = self.judge.confirm(rows.x, rows.y, rows.target, p, rows.eps)
        queries, start = book["queries"] + 1, p
        for push in _PUSHES if self.attack.minimum_norm else ():
            unsure = ~verified & torch.isinf(book["nearest"]) & (threat.size(rows.x, start) > 0)
            if not bool(unsure[: len(at)].any()):
                break
            p = choose(unsure, threat.project(rows.x, start * push, rows.eps), p)
            verified, size, logits = self.judge.confirm(rows.x, rows.y, rows.target, p, rows.eps)
            queries = queries + unsure
        parts = (verified, size, p, logits.argmax(1), queries, book["gradients"])
        return Outcome(at, *(part[: len(at)].cpu() for part in parts))

    def _rows(self, samples: Samples, at: Tensor) -> Rows:
        """The samples at `at` as rows, repeating the last to a multiple of 16 where rows work together."""
        if self.attack.together:
            at = torch.cat([at, at[-1:].expand(padded(len(at)) - len(at))])
        return make_rows(self.attack, self.judge, self.seed, samples, at, torch.zeros_like(at))


def _parts(at: Tensor, count: int) -> list[Tensor]:
    return [at[i : i + count] for i in range(0, len(at), count)]


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Global generators (Python's, NumPy's, torch's) seeded inside, and after as they were before."""
    python, arrays = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed & (2**63 - 1))
            np.random.seed(seed & (2**32 - 1))
            random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
