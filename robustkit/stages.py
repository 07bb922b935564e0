"""Runs one stage of a plan over the samples it receives, unit by unit, and reads finished units back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from robustkit.batch_size import BatchSize, batch_rows
from robustkit.clock import Clock
from robustkit.core.comparisons import float_below
from robustkit.data import Data
from robustkit.driver import Stop
from robustkit.memory import out_of_memory
from robustkit.methods import Attack, Bound, Certifier, StatisticalCertifier
from robustkit.numerics import PAD, padded
from robustkit.plan import TRIAL, Stage, pays, saved
from robustkit.radius import search_radius, shrink
from robustkit.samples import Outcome, Samples
from robustkit.sharing import SharedDriver, Sharing, make_driver
from robustkit.store import UNIT, Arrays, Store
from robustkit.verdict.evidence import Bools, Evidence, Ints
from robustkit.verdict.judge import Judge
from robustkit.verdict.proof import largest_radius, prove

BLOCK = 8
"""Units that a radius search on an accelerator works on together."""

CLOSE = 1 / 256
"""A search for a proven radius ends where what is left of the bracket is at most this share of its upper end."""

CHECKPOINT = 300.0
"""Seconds after which unfinished units are stored as far as they are."""

_OTHERWISE = ("parameters", "seconds")
"""Arrays of a unit that do not have one row a sample."""


@dataclass
class Tally:
    """What a stage received, settled and cost, added up over its units."""

    received: int = 0
    settled: int = 0
    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0
    queries: int = 0
    margin: float = math.inf
    """Smallest margin that a certifier has proven."""
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
    sharing: Sharing
    logits: torch.Tensor
    """(N,K) clean logits."""
    targets: torch.Tensor
    """(N,) goal targets."""
    pool: Callable[[], Data]
    """Images of the training split."""
    tallies: dict[int, Tally] = field(default_factory=dict)
    attacked: dict[tuple[str, str, str], Bools] = field(default_factory=dict)
    """(attack, budget, gradients) -> which samples it has been run on."""

    def run(self, stage: Stage, stages: list[Stage]) -> None:
        """Work through one stage; what is finished is stored and counted even if this raises."""
        at = stage.receives(self.evidence)
        if stage.kind == "attack" and stage.mode == "settle":
            at = self._not_attacked_yet(stage, at)
        was_open = self._left(stage)
        tally = self.tallies[stage.number] = Tally()
        try:
            if stage.on_trial and len(at) and isinstance(stage.method, Certifier):
                saves = saved(stage, self.logits.shape[1], stages)
                cost = stage.method.effort(self.judge.classifier, self.data.shape)
                if cost > max(saves, 5):
                    tally.note = f"not tried: about {cost:.3g} forward passes a sample, the attacks behind it cost {saves:.3g}"
                    at = at[:0]
                elif len(at) > TRIAL:
                    tally.received = TRIAL
                    self._positions(stage, f"{stage.id}-trial", at[:TRIAL], tally)
                    settled = was_open - self._left(stage)
                    at = at[TRIAL:]
                    if not pays(settled, TRIAL, cost, saves):
                        at, tally.note = at[:0], f"ended after its trial: settled {settled} of {TRIAL}, which does not pay"
            tally.received += len(at)
            self._positions(stage, stage.id, at, tally)
            tally.complete = True
        finally:
            tally.settled = was_open - self._left(stage)

    def _left(self, stage: Stage) -> int:
        """How many samples nothing has settled yet, for a stage of this kind."""
        left = self.evidence.to_attack if stage.kind == "attack" else self.evidence.open_at
        return len(left(stage.eps))

    def _not_attacked_yet(self, stage: Stage, at: Ints) -> Ints:
        """The samples `at` without those that the very same attack, with the same draws, has had before."""
        key = (stage.method.digest, str(stage.eps), stage.gradients)
        had = self.attacked.setdefault(key, np.zeros(len(self.evidence), dtype=bool))
        fresh = at[~had[at]] if stage.again else at
        had[at] = True
        return fresh

    def _positions(self, stage: Stage, folder: str, at: Ints, tally: Tally) -> None:
        """Apply the finished units among `at`, then work on the others together."""
        missing, begun = [], []
        for number in np.unique(at // UNIT).tolist():
            mine = at[at // UNIT == number]
            held = self.store.read_unit(folder, number)
            if held is not None and np.array_equal(held["position"], mine):
                self._apply(stage, held, tally)
                continue
            missing.append(mine)
            if held is not None and bool(np.isin(held["position"], mine).all()):
                begun.append(held)
        if not missing:
            return
        work = np.concatenate(missing)
        writer = _UnitWriter(self, stage, folder, work, tally)
        for held in begun:
            writer.add(held)
            work = work[~np.isin(work, held["position"])]
        with self.clock.stage(f"{stage.number:02d} {stage.name} {float(stage.eps):.4g}", len(work)), writer:
            if isinstance(stage.method, Certifier):
                self._certify(stage, stage.method, work, writer)
            elif stage.mode != "radius":
                driver = self._driver(stage.method, surrogate=stage.gradients != "deployed")
                driver.run(self._samples(work, float_below(stage.eps)), lambda found: writer.take(work, found))
            else:
                self._search(stage, stage.method, work, writer)

    def _samples(self, at: Ints, eps: float) -> Samples:
        where = torch.from_numpy(at)
        budget = torch.full((len(at),), eps, dtype=torch.float64)
        label = torch.from_numpy(self.evidence.label)
        return Samples(
            self.data.index[where], label[where], self.targets[where], self.logits[where], budget, lambda i: self.data.images(where[i])
        )

    def _driver(self, attack: Attack, tick: bool = True, stop: Stop = "first", surrogate: bool = True) -> SharedDriver:
        heard: Callable[[int], None] = self.clock.tick if tick else lambda finished: self.clock.tick(0)
        options = {"seed": self.seed, "batch_size": self.batch_size, "tick": heard, "pool": self.pool, "surrogate": surrogate}
        return make_driver(attack, self.judge, sharing=self.sharing, stop=stop, **options)

    def _search(self, stage: Stage, attack: Attack, work: Ints, writer: _UnitWriter) -> None:
        most = float_below(self.judge.threat.unbounded(self.data.shape))
        if attack.minimum_norm:
            samples = self._samples(work, most)
            self._driver(attack, stop="smallest").run(samples, lambda found: writer.take(work, shrink(self.judge, samples, found)))
            return
        together = UNIT if self.judge.classifier.device.type == "cpu" else BLOCK * UNIT
        for first in range(0, len(work), together):
            at = work[first : first + together]
            high = torch.from_numpy(self.evidence.upper[at])
            held = float_below(stage.eps) * (high > float_below(stage.eps))
            low = torch.maximum(torch.from_numpy(self.evidence.lower[at]).clamp(min=0), held)
            found = search_radius(lambda: self._driver(attack, tick=False), self._samples(at, 0.0), low, high, most)
            writer.take(at, found)
            self.clock.tick(len(at))

    def _certify(self, stage: Stage, certifier: Certifier, work: Ints, writer: _UnitWriter) -> None:
        if isinstance(certifier, StatisticalCertifier):
            return self._sample(stage, certifier, work, writer)
        classifier, shape = self.judge.classifier, self.data.shape
        bound: Bound = certifier.bind(classifier, self.judge.threat)
        rows = batch_rows(self.batch_size, shape, classifier.device)
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
                    radius, margin = largest_radius(bound, x, y, low.clamp(max=most), high.clamp(max=most), scale=scale, close=CLOSE)
                    passes = 12
            except RuntimeError as problem:
                if not out_of_memory(problem) or rows <= PAD:
                    raise
                rows = padded(rows // 2)
                continue
            columns = {"radius": radius.cpu().numpy(), "margin": margin.cpu().numpy().astype(np.float64)}
            queries = np.full(len(at), round(passes * certifier.cost), dtype=np.int64)
            writer.add({"position": at, **columns, "queries": queries, "gradients": np.zeros_like(queries), "seconds": np.zeros(1)})
            self.clock.tick(len(at))
            first += len(at)

    def _sample(self, stage: Stage, certifier: StatisticalCertifier, work: Ints, writer: _UnitWriter) -> None:
        classifier = self.judge.classifier
        sample = certifier.sample(classifier, self.judge.threat, self.seed)
        for first in range(0, len(work), PAD):
            at = work[first : first + PAD]
            x = self.data.images(torch.from_numpy(at)).to(classifier.device)
            y, index = torch.from_numpy(self.evidence.label[at]).to(x.device), torch.from_numpy(self.evidence.index[at])
            budget = torch.full((len(at),), float_below(stage.eps), dtype=torch.float64) if stage.mode == "settle" else None
            radius, margin, draws, *stricter = sample(index, x, y, budget, lambda: self.clock.tick(0))
            columns = {"radius": radius.numpy(), "margin": margin.numpy(), "queries": draws.numpy()}
            columns |= {"stricter": stricter[0].numpy()} if stricter else {}
            writer.add({"position": at, **columns, "gradients": np.zeros(len(at), dtype=np.int64), "seconds": np.zeros(1)})
            self.clock.tick(len(at))

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
            self.evidence.proved(at, unit["radius"], stage.method.guarantee, stage.number, unit.get("stricter"))
            tally.margin = min([tally.margin, *unit["margin"][unit["radius"] >= 0].tolist()])
        tally.seconds += float(unit["seconds"][0])
        tally.forwards += int(unit["queries"].sum())
        tally.queries += int(unit["queries"].sum()) if stage.kind == "attack" else 0
        tally.backwards += int(unit["gradients"].sum())


class _UnitWriter:
    """Gathers finished samples in whatever order they come; a full unit is stored and applied.

    Every CHECKPOINT seconds, and when the stage is ended early, units are stored as far as they are.
    """

    def __init__(self, bench: Bench, stage: Stage, folder: str, work: Ints, tally: Tally) -> None:
        self.bench, self.stage, self.folder, self.tally = bench, stage, folder, tally
        numbers, counts = np.unique(work // UNIT, return_counts=True)
        self.pending: dict[int, int] = dict(zip(numbers.tolist(), counts.tolist()))
        self.parts: dict[int, list[Arrays]] = {}
        self.since = self.saved = time.monotonic()

    def __enter__(self) -> _UnitWriter:
        return self

    def __exit__(self, kind: Any, problem: Any, trace: Any) -> None:
        if kind is not None:
            for number in list(self.parts):
                self.bench._apply(self.stage, self._store(number), self.tally)

    def take(self, work: Ints, outcome: Outcome) -> None:
        """Outcomes of an attack; their `at` counts in `work`."""
        outcome = outcome.pick(outcome.at.argsort())
        columns = {name: getattr(outcome, name).numpy() for name in ("size", "predicted", "queries", "gradients")}
        columns |= {"success": outcome.success.numpy().astype(np.uint8), "parameters": outcome.parameters[outcome.success].numpy()}
        self.add({"position": work[outcome.at.numpy()], **columns, "seconds": np.zeros(1)})

    def add(self, found: Arrays) -> None:
        """Finished samples of any units, in order of position."""
        number = found["position"] // UNIT
        for one in np.unique(number).tolist():
            mine = number == one
            part = {name: column[mine] for name, column in found.items() if name not in _OTHERWISE}
            if "parameters" in found:
                part["parameters"] = found["parameters"][mine[found["success"].astype(bool)]]
            self.parts.setdefault(one, []).append(part | {"seconds": found["seconds"]})
            self.pending[one] -= int(mine.sum())
            if self.pending[one] == 0:
                self.bench._apply(self.stage, self._store(one), self.tally)
                del self.parts[one]
        if time.monotonic() - self.saved > CHECKPOINT:
            self.saved = time.monotonic()
            for one in self.parts:
                self._store(one)

    def _store(self, number: int) -> Arrays:
        """Write a unit, as far as it is, and return it."""
        parts, now = self.parts[number], time.monotonic()
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "parameters"}
        order = joined["position"].argsort()
        whole = {name: column[order] for name, column in joined.items() if name not in _OTHERWISE}
        if "parameters" in parts[0]:
            hits = joined["position"][joined["success"].astype(bool)]
            filled = [part["parameters"] for part in parts if len(part["parameters"])]
            whole["parameters"] = np.concatenate(filled)[hits.argsort()] if filled else parts[0]["parameters"]
        whole["seconds"] = np.array([joined["seconds"].sum() + now - self.since])
        self.since = now
        self.parts[number] = [whole]
        self.bench.store.write_unit(self.folder, number, whole)
        return whole
