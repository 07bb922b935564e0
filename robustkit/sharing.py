"""Shares an attack's samples among processes where that is faster and nobody can tell the difference."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustkit.blocks import BlockAttack, BlockDriver
from robustkit.classifier import Classifier
from robustkit.driver import Driver
from robustkit.errors import BadInput
from robustkit.methods import Attack
from robustkit.numerics import PAD
from robustkit.processes import Job, Say, possible, spread
from robustkit.samples import Outcome, Samples
from robustkit.smallest import SmallestDriver
from robustkit.verdict.judge import Judge

Processes = int | Literal["auto"]

_WORTH = 2.0
"""Seconds of an attack from which its sharing pays for the processes."""

_PADDING = 1.15
"""By how much rows may become more because every process fills up its own batch."""

_LONG = 0.1
"""Seconds of a small batch that are not worth a second look."""

_KNOWN = ("torch.nn.", "torchvision.", "robustkit.")
"""Where code lives that keeps nothing to itself: what it does in another process is not missed in this one."""


@dataclass(frozen=True)
class Sharing:
    """How many processes may share an attack."""

    most: int = 1
    always: bool = False
    """Also where the model's or the attack's code is not known, and for little work."""
    unheard: bool = False
    """Whether only robustkit listens to the model: layers that are somebody's own may then be asked in another process."""

    @staticmethod
    def asked(processes: Processes, *, unheard: bool = False) -> Sharing:
        """As a user says it; auto stands for as many as torch has threads. Raises BadInput."""
        if processes == "auto":
            return Sharing(torch.get_num_threads(), unheard=unheard)
        if not isinstance(processes, int) or processes < 1:
            raise BadInput(f"processes {processes!r}: expected auto or a whole number of at least 1")
        return Sharing(processes, always=processes > 1)

    def processes(self, driver: Driver | BlockDriver, samples: Samples) -> int:
        """Among how many processes these samples are shared, 1 for none but this one."""
        attack, classifier = driver.attack, driver.judge.classifier
        units = -(-len(samples) // driver.unit)
        each = max(1, -(-units // self.most))
        count = -(-units // each)
        if count < 2 or classifier.device.type != "cpu" or not possible():
            return 1
        if self.always:
            return count
        if 2 * count < self.most or count * each > _PADDING * units:  # threads inside the operations use the cores better
            return 1
        if not _known(attack) or not _forgets(classifier, self.unheard):
            return 1
        passes = attack.cost(samples.logits.shape[1]) * len(samples)
        return count if passes * _seconds(classifier, samples) >= _WORTH else 1


ALONE = Sharing()


def _seconds(classifier: Classifier, samples: Samples) -> float:
    """What one image takes to go forward, from a small batch."""
    x, before, took = samples.images(torch.arange(PAD) % len(samples)), classifier.forwards, 0.0
    for _ in range(2):  # the first of its size prepares
        if took < _LONG:
            start = time.perf_counter()
            classifier.logits(x)
            took = time.perf_counter() - start
    classifier.forwards = before
    return took / PAD


def _known(thing: Any) -> bool:
    return f"{type(thing).__module__}.".startswith(_KNOWN)


def _forgets(classifier: Classifier, unheard: bool) -> bool:
    """Whether a model may be asked in another process: nothing is hooked onto it, and its layers are known.

    Those of a model that was loaded by name, or that only robustkit listens to, may also be somebody's own,
    as long as they hold nothing but values. Others may be a counter that would miss what it is not asked here.
    """
    network = classifier.module
    if type(classifier) is not Classifier or not isinstance(network, nn.Module) or {"forward", "search"} & vars(classifier).keys():
        return False
    own = unheard or bool(classifier.spec)
    return all(not _hooked(layer) and (_known(layer) or (own and _holds_values(layer))) for layer in network.modules())


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or "forward" in vars(layer))


def _holds_values(layer: nn.Module) -> bool:
    """Whether a module's attributes are tensors, numbers, words, or tuples and lists of them, and no door to something else."""
    own = [value for name, value in vars(layer).items() if name not in _OF_EVERY_MODULE]
    return all(_is_value(value) for value in own)


def _is_value(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_value(one) for one in value)
    return value is None or isinstance(value, (Tensor, int, float, str, torch.dtype, torch.device))


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class SharedDriver:
    """A driver whose samples several processes work on, if that pays; each outcome is delivered once, here."""

    def __init__(self, driver: Driver | BlockDriver, sharing: Sharing) -> None:
        self.driver, self.sharing = driver, sharing

    def run(self, samples: Samples, deliver: Callable[[Outcome], None]) -> None:
        """As the driver's own; the samples of a process that was lost are attacked here."""
        driver, classifier = self.driver, self.driver.judge.classifier
        count = self.sharing.processes(driver, samples)
        if count < 2:
            return driver.run(samples, deliver)
        driver.prepare(samples)
        shares = [torch.arange(first, len(samples), count) for first in range(count)]
        waiting = torch.ones(len(samples), dtype=torch.bool)

        def hear(number: int, what: Outcome | _Bill) -> None:
            if isinstance(what, _Bill):
                classifier.forwards += what.forwards
                classifier.backwards += what.backwards
                if isinstance(driver, BlockDriver):
                    driver.failed += what.failed
                return
            what.at = shares[number][what.at]
            waiting[what.at] = False
            deliver(what)
            driver.tick(len(what.at))

        jobs = [self._job(samples.pick(share), count) for share in shares]
        if spread(jobs, hear, lambda: driver.tick(0)) and bool(waiting.any()):
            left = waiting.nonzero()[:, 0]
            driver.work(samples.pick(left), lambda found: deliver(_moved(found, left)))
        if isinstance(driver, BlockDriver):
            driver.complain(len(samples))

    def _job(self, share: Samples, count: int) -> Job:
        driver, classifier = self.driver, self.driver.judge.classifier

        def job(say: Say) -> None:
            driver.tick, driver.crowd = lambda finished: None, count
            before = classifier.forwards, classifier.backwards
            driver.work(share, say)
            failed = driver.failed if isinstance(driver, BlockDriver) else []
            say(_Bill(classifier.forwards - before[0], classifier.backwards - before[1], failed))

        return job


@dataclass
class _Bill:
    """What a process has spent, and what failed there."""

    forwards: int
    backwards: int
    failed: list[tuple[int, str]]


def _moved(found: Outcome, where: Tensor) -> Outcome:
    found.at = where[found.at]
    return found


def make_driver(attack: Attack, judge: Judge, *, sharing: Sharing = ALONE, **options: Any) -> SharedDriver:
    """What runs an attack: blocks for one with a loop of its own, else rows; see Driver for the options."""
    if isinstance(attack, BlockAttack):
        return SharedDriver(BlockDriver(attack, judge, **options), sharing)
    kind = SmallestDriver if options.get("stop") == "smallest" else Driver
    return SharedDriver(kind(attack, judge, **options), sharing)
