"""The Driver: keeps an attack's rows in full batches, drops the settled ones, counts everything.

A row is (sample, attempt). A sample's attempts (restarts, targets) follow one another, and only
while the sample is unbroken, so no work is done on settled samples. Rows leave a batch and others
take their place in groups that keep it a multiple of 16. What would be padding tries the next
attempts of the last samples ahead of their turn; they count only when their turn comes, so that
nothing depends on it but time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from robustkit import streams
from robustkit.batch_size import BatchSize, Work, auto_batch, batch_rows, check_batch
from robustkit.errors import BadInput
from robustkit.memory import keep_freed_memory, out_of_memory
from robustkit.methods import Attack, Rows, State
from robustkit.numerics import PAD, padded, whole
from robustkit.samples import Outcome, Samples
from robustkit.search.loss_scale import loss_scale
from robustkit.verdict.judge import Judge
from robustkit.views import VIEWS, View

if TYPE_CHECKING:
    from robustkit.data import Data

Stop = Literal["first", "smallest", "never"]
Entry = tuple[int, int]
"""(position of a sample, attempt)."""
Queue = deque[Entry]


@dataclass
class _Batch:
    """Rows at work, a multiple of 16; those that are not live are padding."""

    rows: Rows
    state: State
    live: Tensor


def make_rows(attack: Attack, judge: Judge, seed: int, samples: Samples, at: Tensor, attempt: Tensor) -> Rows:
    """The samples at positions `at` (R,) in their attempts (R,), on the classifier's device."""
    y, target = samples.y[at], samples.target[at]
    if not judge.goal.targeted:
        target = attack.target(judge.goal.seen(samples.logits[at], y), y, attempt)
    key = streams.row_keys(seed, attack.digest, samples.index[at], attempt)
    scale = torch.ones(len(at)) if judge.classifier.random else loss_scale(samples.logits[at])
    parts = [samples.index[at], attempt, samples.images(at), y, target, samples.eps[at], key, torch.zeros_like(attempt), scale]
    return Rows(*(part.to(judge.classifier.device) for part in parts))


class Driver:
    """Runs one attack under one Judge."""

    views: ClassVar[dict[str, type[View]]] = VIEWS
    """What an attack gets to see of the model, by access."""

    def __init__(
        self,
        attack: Attack,
        judge: Judge,
        *,
        seed: int = 0,
        stop: Stop = "first",
        batch_size: BatchSize = "auto",
        tick: Callable[[int], None] | None = None,
        pool: Callable[[], Data] | None = None,
        surrogate: bool = True,
    ) -> None:
        check_batch(batch_size)
        attack.accepts(judge.threat)
        if stop == "never" and not attack.bounded:
            raise BadInput(f"{attack.name} looks beyond the budget: stop='never' needs an attack that stays within it")
        self.attack, self.judge, self.seed, self.stop, self.batch_size = attack, judge, seed, stop, batch_size
        self.threat, self.classifier = judge.threat, judge.classifier
        keep = "best" if stop == "never" or (stop == "first" and self.classifier.random and attack.bounded) else "first"
        self.view = self.views[attack.access](judge, keep, attack.bounded)
        self.view.surrogate = surrogate and self.classifier.surface.surrogate is not None
        if attack.draws:
            self.view.draws = attack.draws if self.classifier.random else 1
        self.tick = tick or (lambda finished: None)
        self.pool = pool
        self.width = attack.width * self.view.draws
        self.unit = PAD if attack.access == "gradient" else whole(self.width)
        """Rows that padding completes."""
        self.poll = 1 if self.classifier.device.type == "cpu" else 4
        self.crowd = 1
        """Processes that share the machine and the work."""

    def run(self, samples: Samples, deliver: Callable[[Outcome], None]) -> None:
        """Attack all samples; `deliver` gets each sample's outcome once, in groups as they finish.

        `tick` is called between steps with the number of samples that have just finished; what it
        raises (a time limit, an interrupt) ends the run.
        """
        self.prepare(samples)
        self.work(samples, deliver)

    def prepare(self, samples: Samples) -> None:
        """What the attack makes once, before the first sample."""
        if len(samples):
            keep_freed_memory()
            most = float(samples.eps.max())
            self.view.shared = self.attack.prepare(self.pool or self._no_pool, self.classifier, self.threat, most, self.seed)

    def work(self, samples: Samples, deliver: Callable[[Outcome], None]) -> None:
        """Attack the samples after `prepare`."""
        if not len(samples):
            return
        self.samples, self.deliver = samples, deliver
        self.spent = torch.zeros(2, len(samples), dtype=torch.int64)
        self.best: dict[int, tuple[tuple[bool, float], Outcome]] = {}
        self.turn = torch.zeros(len(samples), dtype=torch.int64)
        self.begun = [1] * len(samples)
        self.ahead: dict[Entry, tuple[Outcome, Tensor]] = {}
        self.attempts = self.attack.attempts(self.judge.goal.seen(samples.logits[:1], samples.y[:1]).shape[1])
        shape = tuple(samples.images(torch.tensor([0])).shape[1:])
        device = self.classifier.device
        work: Work = "gradients" if self.attack.access == "gradient" else "scores"
        capacity = batch_rows(self.batch_size, shape, device, work, self.crowd)
        if work == "scores" and device.type == "cpu":  # there a batch goes forward in parts, of the size asked for at most
            self.view.piece = min(capacity, auto_batch(shape, device, "part"))
            capacity = max(capacity, auto_batch(shape, device, work, self.crowd))
        capacity = padded(max(1, capacity // self.width), self.unit)
        queue: Queue = deque((at, 0) for at in range(len(samples)))
        while queue:
            self.entries: list[Entry] = []
            try:
                self._drain(queue, capacity)
            except RuntimeError as problem:
                if not out_of_memory(problem) or capacity <= self.unit:
                    raise
                capacity = padded(capacity // 2, self.unit)
                queue.extendleft(reversed([e for e in self.entries if self.turn[e[0]] <= e[1]]))
                torch.cuda.empty_cache()

    def _no_pool(self) -> Data:
        raise BadInput(f"{self.attack.name} needs other images to learn from or to start at: hand some over with pool=")

    def _drain(self, queue: Queue, capacity: int) -> None:
        """Work until queue and batch are empty; `entries` are the rows at work, begun anew after out-of-memory."""
        batch = self._refill(queue, capacity, None)
        while batch is not None:
            for _ in range(self.poll):
                batch.state = self.attack.step(batch.rows, batch.state, self.view, self.threat)
                batch.rows.steps += 1
                self.view.least += 1
                over = batch.rows.steps >= self.attack.iterations
                self.view.finish(batch.state["p"], over | batch.state["over"] if "over" in batch.state else over)
            self.view.ask_judge()
            self.tick(0)
            over = self.view.book["done"] & batch.live
            finished = int(over.sum())
            left = len(self.entries) - finished
            if left and padded(left, self.unit) == len(batch.rows) and not (queue and finished >= self.unit) and not self.early:
                continue
            if finished:
                self._settle(queue, batch.rows.pick(over), over)
                batch = self._refill(queue, capacity, batch)

    def _refill(self, queue: Queue, capacity: int, batch: _Batch | None) -> _Batch | None:
        """The unfinished rows, then fresh ones, then padding that nobody looks at; None when all is done."""
        keep = torch.zeros(0, dtype=torch.int64)
        if batch is not None:
            at, attempt = torch.tensor(self.entries).unbind(1)
            wanted = (self.turn[at] <= attempt).to(batch.live.device)
            keep = (wanted & ~self.view.book["done"][: len(wanted)]).nonzero()[:, 0]
        fresh = [queue.popleft() for _ in range(min(len(queue), max(0, capacity - len(keep))))]
        self.entries = [self.entries[i] for i in keep.tolist()] + fresh
        self.early = not queue and 1 < self.attempts and self._try_ahead(fresh, padded(len(self.entries), self.unit) - len(self.entries))
        total = len(self.entries)
        filler = padded(total, self.unit) - total
        parts: list[tuple[Rows, State, State]] = []
        if batch is not None and len(keep):
            where = keep if fresh else torch.cat([keep, keep[-1:].expand(filler)])
            parts.append((batch.rows.pick(where), _pick(batch.state, where), _pick(self.view.book, where)))
        if fresh:
            count = len(fresh) + filler
            rows = self._rows(fresh + [fresh[-1]] * (padded(count, self.unit) - len(fresh)))
            self.view.rows, self.view.book = rows, self.view.open(rows)
            state = self.attack.init(rows, self.view, self.threat)
            where = torch.arange(count, device=rows.x.device)
            parts.append((rows.pick(where), _pick(state, where), _pick(self.view.book, where)))
        if not parts:
            return None
        rows = Rows.join([part[0] for part in parts])
        live = torch.arange(len(rows), device=rows.x.device) < total
        book = _join([part[2] for part in parts])
        book["done"] = book["done"] | ~live
        self.view.rows, self.view.book, self.view.least = rows, book, int(rows.steps.min())
        return _Batch(rows, _join([part[1] for part in parts]), live)

    def _try_ahead(self, fresh: list[Entry], room: int) -> bool:
        """Fill `room` with later attempts of the samples at work; whether any row is ahead of its turn."""
        while room:
            behind = [at for at in sorted({at for at, _ in self.entries}) if self.begun[at] < self.attempts][:room]
            if not behind:
                break
            ahead = [(at, self.begun[at]) for at in behind]
            for at in behind:
                self.begun[at] += 1
            fresh += ahead
            self.entries += ahead
            room -= len(ahead)
        return any(self.turn[at] < attempt for at, attempt in self.entries)

    def _rows(self, entries: list[Entry]) -> Rows:
        at, attempt = torch.tensor(entries).unbind(1)
        return make_rows(self.attack, self.judge, self.seed, self.samples, at, attempt)

    def _settle(self, queue: Queue, rows: Rows, over: Tensor) -> None:
        """Judge the candidates of finished rows; deliver samples that are through, requeue those with attempts left."""
        book = _pick(self.view.book, over)
        p, verified, size, predicted, loss = self._verdict(rows, book)
        entries = [self.entries[i] for i in over.nonzero()[:, 0].tolist()]
        at, attempt = torch.tensor(entries).unbind(1)
        judged = [part.cpu() for part in (verified, size, p, predicted, book["queries"], book["gradients"])]
        found, loss = Outcome(at, *judged), loss.cpu()
        while len(at):
            due = attempt == self.turn[at]
            for i in (attempt > self.turn[at]).nonzero()[:, 0].tolist():
                self.ahead[int(at[i]), int(attempt[i])] = found.pick(torch.tensor([i])), loss[i : i + 1]
            self._advance(queue, found.pick(due), attempt[due], loss[due])
            parts = [(held, entry) for entry, held in self.ahead.items() if self.turn[entry[0]] == entry[1]]
            self.ahead = {entry: held for entry, held in self.ahead.items() if self.turn[entry[0]] < entry[1]}
            if not parts:
                break
            at, attempt = torch.tensor([entry for _, entry in parts]).unbind(1)
            found, loss = Outcome.join([held[0] for held, _ in parts]), torch.cat([held[1] for held, _ in parts])

    def _advance(self, queue: Queue, found: Outcome, attempt: Tensor, loss: Tensor) -> None:
        """Attempts whose turn it was are decided: deliver samples that are through, let the others' next attempt begin."""
        self.spent[0].index_add_(0, found.at, found.queries)
        self.spent[1].index_add_(0, found.at, found.gradients)
        found = replace(found, queries=self.spent[0][found.at], gradients=self.spent[1][found.at])
        last = attempt + 1 >= self.attempts
        if self.stop == "first":
            last = last | found.success
        elif self.attempts > 1:
            found = self._best(found, loss.tolist())
        self.turn[found.at] = torch.where(last, self.attempts, attempt + 1)
        for at, following in zip(found.at[~last].tolist(), (attempt[~last] + 1).tolist()):
            if self.begun[at] == following:
                self.begun[at] += 1
                queue.append((at, following))
        if bool(last.any()):
            self.deliver(found.pick(last))
            self.tick(int(last.sum()))

    def _verdict(self, rows: Rows, book: State) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Candidates p of finished rows with the Judge's (verified, size, predicted class) and their loss.

        What the view has had confirmed is not asked again; stop="never" weighs the last point too.
        """
        if self.view.keep == "first":
            p, verified, size, predicted = (book[name] for name in ("candidate", "verified", "size", "predicted"))
            book["queries"] = book["queries"] + 1
            at = (~verified).nonzero()[:, 0]
            if len(at):
                found, sizes, logits = self.judge.confirm(rows.x[at], rows.y[at], rows.target[at], p[at], rows.eps[at])
                verified, size = verified.index_copy(0, at, found), size.index_copy(0, at, sizes)
                predicted = predicted.index_copy(0, at, logits.argmax(1))
            return p, verified, size, predicted, self._rank(size)
        p = book["last"]
        verified, size, logits = self.judge.confirm(rows.x, rows.y, rows.target, p, rows.eps)
        book["queries"] = book["queries"] + 1
        loss = self.view.value(logits, rows)
        older = (book["highest"] > loss).nonzero()[:, 0]
        if len(older):
            p = p.index_copy(0, older, book["candidate"][older])
            again = self.judge.confirm(rows.x[older], rows.y[older], rows.target[older], p[older], rows.eps[older])
            verified, size, logits = (a.index_copy(0, older, b) for a, b in zip((verified, size, logits), again))
            loss = loss.index_copy(0, older, book["highest"][older])
            book["queries"][older] += 1
        return p, verified, size, logits.argmax(1), loss

    def _rank(self, size: Tensor) -> Tensor:
        """(R,) what ranks the attempts of a sample, from the sizes of what they found."""
        return torch.zeros_like(size)

    def _best(self, found: Outcome, losses: list[float]) -> Outcome:
        """Each sample's best attempt so far (a verified one, then the highest loss), with what all of them cost."""
        best = []
        for i, (at, loss) in enumerate(zip(found.at.tolist(), losses)):
            rank, one = (bool(found.success[i]), loss), found.pick(torch.tensor([i]))
            if at not in self.best or rank > self.best[at][0]:
                self.best[at] = rank, one
            best.append(replace(self.best[at][1], queries=one.queries, gradients=one.gradients))
        return Outcome.join(best)


def _pick(state: State, where: Tensor) -> State:
    return {k: v[where] for k, v in state.items()}


def _join(parts: list[State]) -> State:
    return parts[0] if len(parts) == 1 else {k: torch.cat([part[k] for part in parts]) for k in parts[0]}
