"""Runs one stage of a plan over the samples it receives, unit by unit, and reads finished units back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from robustkit.certifying import largest_radius, prove
from robustkit.clock import Clock
from robustkit.data import Data
from robustkit.driver import BatchSize, Driver, Outcome, Samples, auto_batch
from robustkit.evidence import Evidence, Ints
from robustkit.judge import Judge
from robustkit.memory import out_of_memory
from robustkit.methods import Attack, Bound, Certifier
from robustkit.numerics import PAD, float_below, padded
from robustkit.plan import TRIAL, Stage, pays
from robustkit.radius import search_radius
from robustkit.store import UNIT, Arrays, Store

BLOCK = 8
"""Units that a radius search works on together."""


@dataclass
class Tally:
    """What a stage received, settled and cost, added up over its units."""

    received: int = 0
    settled: int = 0
    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0
    queries: int = 0
    complete: bool = False
    note: str = ""


@dataclass
class Bench:
    """Everything a stage works with."""

    judge: Judge
    data: Data
    evidence: Evidence
    store: Store
    clock: Clock
    seed: int
    batch_size: BatchSize
    logits: torch.Tensor
    """(N,K) clean logits."""
    targets: torch.Tensor
    """(N,) goal targets."""
    pool: Callable[[], Data]
    """Images of the training split."""
    tallies: dict[int, Tally] = field(default_factory=dict)

    def run(self, stage: Stage, stages: list[Stage]) -> None:
        """Work through one stage; what is finished is stored and counted even if this raises."""
        at = stage.receives(self.evidence)
        was_open = len(self.evidence.open_at(stage.eps))
        tally = self.tallies[stage.number] = Tally()
        try:
            if stage.on_trial and len(at) > TRIAL:
                tally.received = TRIAL
                self._positions(stage, f"{stage.id}-trial", at[:TRIAL], tally)
                settled = was_open - len(self.evidence.open_at(stage.eps))
                at = at[TRIAL:]
                if not pays(stage, settled, TRIAL, self.logits.shape[1], stages):
                    at, tally.note = at[:0], f"ended after its trial: settled {settled} of {TRIAL}, which does not pay"
            tally.received += len(at)
            self._positions(stage, stage.id, at, tally)
            tally.complete = True
        finally:
            tally.settled = was_open - len(self.evidence.open_at(stage.eps))

    def _positions(self, stage: Stage, folder: str, at: Ints, tally: Tally) -> None:
        """Apply the finished units among `at`, then work on the others together."""
        missing = []
        for number in np.unique(at // UNIT).tolist():
            mine = at[at // UNIT == number]
            held = self.store.read_unit(folder, number)
            if held is not None and np.array_equal(held["position"], mine):
                self._apply(stage, held, tally)
            else:
                missing.append(mine)
        if not missing:
            return
        work = np.concatenate(missing)
        with self.clock.stage(f"{stage.number:02d} {stage.name} {float(stage.eps):.4g}", len(work)):
            writer = _UnitWriter(self, stage, folder, work, tally)
            if isinstance(stage.method, Certifier):
                self._certify(stage, stage.method, work, writer)
            elif stage.mode != "radius":
                self._driver(stage.method).run(self._samples(work, float_below(stage.eps)), writer.take)
            else:
                self._search(stage, stage.method, missing, work, writer)

    def _samples(self, at: Ints, eps: float) -> Samples:
        where = torch.from_numpy(at)
        budget = torch.full((len(at),), eps, dtype=torch.float64)
        label = torch.from_numpy(self.evidence.label)
        return Samples(
            self.data.index[where], label[where], self.targets[where], self.logits[where], budget, lambda i: self.data.images(where[i])
        )

    def _driver(self, attack: Attack, tick: bool = True) -> Driver:
        heard: Callable[[int], None] = self.clock.tick if tick else lambda finished: self.clock.tick(0)
        return Driver(attack, self.judge, seed=self.seed, batch_size=self.batch_size, tick=heard, pool=self.pool)

    def _search(self, stage: Stage, attack: Attack, missing: list[Ints], work: Ints, writer: _UnitWriter) -> None:
        most = float_below(self.judge.threat.unbounded(self.data.shape))
        done = 0
        for first in range(0, len(missing), BLOCK):
            at = np.concatenate(missing[first : first + BLOCK])
            high = torch.from_numpy(self.evidence.upper[at])
            held = float_below(stage.eps) * (high > float_below(stage.eps))
            low = torch.maximum(torch.from_numpy(self.evidence.lower[at]).clamp(min=0), held)
            found = search_radius(lambda: self._driver(attack, tick=False), self._samples(at, 0.0), low, high, most)
            found.at = found.at + done
            writer.take(found)
            self.clock.tick(len(at))
            done += len(at)

    def _certify(self, stage: Stage, certifier: Certifier, work: Ints, writer: _UnitWriter) -> None:
        classifier, shape = self.judge.classifier, self.data.shape
        bound: Bound = certifier.bind(classifier, self.judge.threat)
        rows = auto_batch(shape, classifier.device) if self.batch_size == "auto" else padded(self.batch_size)
        most = float_below(self.judge.threat.unbounded(shape))
        first = 0
        while first < len(work):
            self.clock.tick(0)
            at = work[first : first + rows]
            x = self.data.images(torch.from_numpy(at)).to(classifier.device)
            y, low, high = (torch.from_numpy(v[at]).to(x.device) for v in (self.evidence.label, self.evidence.lower, self.evidence.upper))
            scale = self.logits[torch.from_numpy(at)].abs().amax(1).to(x.device)
            try:
                if stage.mode == "settle":
                    budget = torch.full((len(at),), float_below(stage.eps), dtype=torch.float64, device=x.device)
                    proven, margin = prove(bound, x, y, budget, scale=scale)
                    radius, passes = torch.where(proven, budget, -torch.inf), 1
                else:
                    radius, margin = largest_radius(bound, x, y, low.clamp(max=most), high.clamp(max=most), scale=scale)
                    passes = 12
            except RuntimeError as problem:
                if not out_of_memory(problem) or rows <= PAD:
                    raise
                rows = padded(rows // 2)
                continue
            writer.certified(np.arange(first, first + len(at)), radius.cpu().numpy(), margin.cpu().numpy(), passes * certifier.cost)
            self.clock.tick(len(at))
            first += len(at)

    def _apply(self, stage: Stage, unit: Arrays, tally: Tally) -> None:
        """Let a finished unit narrow the intervals, and add up what it cost."""
        at = unit["position"]
        if stage.kind == "attack":
            hit = unit["success"].astype(bool)
            self.evidence.broke(at[hit], unit["size"][hit], stage.number, unit["predicted"][hit])
            if stage.mode == "radius":
                self.evidence.radius_covered[at] = True
        else:
            assert isinstance(stage.method, Certifier)
            self.evidence.proved(at, unit["radius"], stage.method.guarantee, stage.number)
        tally.seconds += float(unit["seconds"][0])
        tally.forwards += int(unit["queries"].sum())
        tally.queries += int(unit["queries"].sum()) if stage.kind == "attack" else 0
        tally.backwards += int(unit["gradients"].sum())


class _UnitWriter:
    """Gathers outcomes of samples in whatever order they finish; a full unit is stored and applied."""

    def __init__(self, bench: Bench, stage: Stage, folder: str, work: Ints, tally: Tally) -> None:
        self.bench, self.stage, self.folder, self.work, self.tally = bench, stage, folder, work, tally
        numbers, counts = np.unique(work // UNIT, return_counts=True)
        self.pending: dict[int, int] = dict(zip(numbers.tolist(), counts.tolist()))
        self.parts: dict[int, list[Outcome]] = {}
        self.proofs: dict[int, list[Arrays]] = {}
        self.since = time.monotonic()

    def take(self, outcome: Outcome) -> None:
        """Outcomes of an attack; `at` counts in the stage's work."""
        number = self.work[outcome.at.numpy()] // UNIT
        for one in np.unique(number).tolist():
            mine = outcome.pick(torch.from_numpy(number == one))
            self.parts.setdefault(one, []).append(mine)
            self._count(one, len(mine.at))

    def certified(self, at: Ints, radius: Any, margin: Any, cost: float) -> None:
        """Radii and margins of a certifier."""
        number = self.work[at] // UNIT
        for one in np.unique(number).tolist():
            mine = number == one
            part = {"at": at[mine], "radius": radius[mine], "margin": margin[mine].astype(np.float64)}
            part["queries"] = np.full(int(mine.sum()), round(cost), dtype=np.int64)
            self.proofs.setdefault(one, []).append(part)
            self._count(one, int(mine.sum()))

    def _count(self, number: int, finished: int) -> None:
        self.pending[number] -= finished
        if self.pending[number] == 0:
            arrays = self._proof(number) if number in self.proofs else self._outcome(number)
            now = time.monotonic()
            arrays["seconds"] = np.array([now - self.since])
            self.since = now
            self.bench.store.write_unit(self.folder, number, arrays)
            self.bench._apply(self.stage, arrays, self.tally)

    def _outcome(self, number: int) -> Arrays:
        found = Outcome.join(self.parts.pop(number))
        found = found.pick(found.at.argsort())
        return {
            "position": self.work[found.at.numpy()],
            "success": found.success.numpy().astype(np.uint8),
            "size": found.size.numpy(),
            "predicted": found.predicted.numpy(),
            "queries": found.queries.numpy(),
            "gradients": found.gradients.numpy(),
            "parameters": found.parameters[found.success].numpy(),
        }

    def _proof(self, number: int) -> Arrays:
        parts = self.proofs.pop(number)
        joined = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
        order = joined["at"].argsort()
        position = self.work[joined.pop("at")[order]]
        return {"position": position, **{k: v[order] for k, v in joined.items()}, "gradients": np.zeros(len(position), dtype=np.int64)}
