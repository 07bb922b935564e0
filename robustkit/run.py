"""One run at work: clean pass, then the stages of the plan, then the honesty checks, then the answer.

Whatever ends it early, what is finished is stored and the bracket so far is valid.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustkit import witnesses
from robustkit.batch_size import BatchSize, batch_rows
from robustkit.checks.binarisation import Binarisation
from robustkit.checks.diagnostics import Examination
from robustkit.checks.established import blinding, not_established
from robustkit.checks.probe import Finding
from robustkit.clock import Clock
from robustkit.core.comparisons import margins
from robustkit.data import Data
from robustkit.errors import BadInput, OutOfTime, RobustkitError
from robustkit.plan import Stage, after_blindness
from robustkit.sharing import Sharing
from robustkit.simultaneous import lower_at_once, simultaneous
from robustkit.stages import Bench
from robustkit.store import UNIT, Store, write_atomic
from robustkit.summary import certified_radius, stage_rows, summarise
from robustkit.threats import Threat
from robustkit.verdict.evidence import Evidence
from robustkit.verdict.judge import Judge

EXIT = {"complete": 0, "incomplete": 4, "interrupted": 130}


@dataclass(frozen=True)
class Evaluation:
    """The outcome of a run. `summary()` is the JSON answer, `lower`/`upper` the intervals."""

    folder: Path
    status: str
    """complete, incomplete (time limit) or interrupted."""
    contradicted: tuple[str, ...]
    """Certifier stages that a judged witness has contradicted; their certificates do not count."""
    evidence: Evidence
    _summary: dict[str, Any]
    _stages: tuple[Stage, ...]
    _data: Data
    _threat: Threat

    def summary(self) -> dict[str, Any]:
        """summary.json as a dictionary."""
        return dict(self._summary)

    @property
    def lower(self) -> NDArray[np.float64]:
        """(N,) largest radius with a deterministic certificate; 0 where only clean, -inf for errors."""
        return self.evidence.lower

    @property
    def upper(self) -> NDArray[np.float64]:
        """(N,) size of the smallest witness; +inf for none, 0 for clean errors."""
        return self.evidence.upper

    @property
    def exit_code(self) -> int:
        return 1 if self.contradicted else EXIT[self.status]

    def witness(self, i: int) -> Tensor:
        """(C,H,W) the adversarial image of the i-th sample; raises BadInput where there is none."""
        if not 0 <= i < len(self.evidence) or self.evidence.upper_stage[i] < 0:
            raise BadInput(f"sample {i} has no witness: choose one of numpy.flatnonzero(evaluation.evidence.upper_stage >= 0)")
        at = np.array([i])
        p = witnesses.parameters(Store(self.folder), self._stages, self.evidence, at)
        return self._threat.apply(self._data.images(torch.from_numpy(at)), p)[0]

    def __repr__(self) -> str:
        s = self._summary
        robust = s["robust_accuracy"]
        high = "not established" if robust is None else f"{robust:.3f}" + ("" if s["checked"] else " (not checked)")
        return (
            f"Evaluation({s['threat']}: certified {s['certified_accuracy']:.3f} <= true <= {high}, "
            f"clean {s['clean_accuracy']:.3f}, n={s['data']['n']}, {self.status}, {self.folder})"
        )


@dataclass
class Run:
    """The state of one run while it works: the question, where it is stored, and the evidence so far."""

    judge: Judge
    data: Data
    labels: str
    budgets: list[Fraction]
    stages: list[Stage]
    seed: int
    batch_size: BatchSize
    sharing: Sharing
    store: Store
    clock: Clock
    pool: Callable[[], Data]
    """Images of the training split."""
    specification: dict[str, Any]
    extra: dict[str, Any]
    """What run.json holds besides: environment and command."""
    refused: dict[str, str]
    """Stages of the suite that cannot work on this model, and why."""
    proving: bool = False
    """Whether certifiers are its point: attacks then only spare them work, and are not examined."""
    check_attack: bool = False
    unchecked: bool = False
    """Without the honesty checks that attack the model."""
    history: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Stage -> robust and certified accuracy after it, at its budget."""
    findings: list[Finding] = field(default_factory=list)
    checked: bool = False
    """Whether the honesty checks of the run's attacks were made to the end."""
    bench: Bench | None = None

    def work(self, report: bool) -> Evaluation:
        """Clean pass, stages, checks, answer; ends with a stored summary unless nothing can be stored."""
        try:
            return self._work(report)
        except OSError as problem:
            saved = "everything finished is saved, and the same command goes on"
            raise RobustkitError(f"{self.store.folder} cannot be written ({problem}): make room; {saved}") from problem

    def _work(self, report: bool) -> Evaluation:
        status, failure = "complete", None
        try:
            self._clean()
            for stage in self.stages:
                self._stage(stage)
            self._again()
            self._examine()
        except OutOfTime:
            status = "incomplete"
        except KeyboardInterrupt:
            status = "interrupted"
        except RobustkitError:
            self._status("failed")
            raise
        except Exception as problem:
            status, failure = "failed", problem
        if self.bench is None:
            self._status(status)
            if status == "interrupted":
                raise KeyboardInterrupt
            why = f"{type(failure).__name__}: {failure}" if failure else "the time limit was reached before the clean pass ended"
            raise (RobustkitError if failure else OutOfTime)(f"{why}; the same command goes on") from failure
        evaluation = self._finish(status if failure is None else "incomplete", report)
        if failure is not None:
            self._status("failed")
            saved = f"everything finished is saved in {self.store.folder}, and the same command resumes"
            raise RobustkitError(f"a stage failed ({type(failure).__name__}: {failure}); {saved}") from failure
        return evaluation

    def _clean(self) -> None:
        """The shared clean check: logits of every sample, exact verdicts."""
        classifier, data = self.judge.classifier, self.data
        rows = batch_rows(self.batch_size, data.shape, classifier.device)
        parts: list[Tensor] = []
        good: list[Tensor] = []
        with self.clock.stage("clean", len(data)):
            for number in range(-(-len(data) // UNIT)):
                held = self.store.read_unit("00-clean", number)
                where = slice(number * UNIT, min(len(data), (number + 1) * UNIT))
                if held is None:
                    self.clock.tick(0)
                    x, y = data.images(where).to(classifier.device), data.y[where].to(classifier.device)
                    logits = torch.cat([self.judge.logits(x[i : i + rows]) for i in range(0, len(x), rows)])
                    y = logits.argmax(1) if self.labels == "predicted" else y
                    right = self.judge.correct(x, y, logits)
                    held = {"logits": logits.cpu().numpy(), "correct": right.cpu().numpy().astype(np.uint8)}
                    self.store.write_unit("00-clean", number, held)
                parts.append(torch.from_numpy(held["logits"]))
                good.append(torch.from_numpy(held["correct"]).bool())
                self.clock.tick(where.stop - where.start)
        logits, correct = torch.cat(parts), torch.cat(good)
        predicted = logits.nan_to_num(-torch.inf).argmax(1)
        label = predicted if self.labels == "predicted" else data.y
        targets = self.judge.goal.targets(label, data.index, logits.shape[1], self.seed)
        if self.judge.goal.targeted:
            correct = correct & (predicted != targets)
        confidence = logits.double().softmax(1).gather(1, label[:, None])[:, 0]
        margin = -margins(logits, label).double()
        evidence = Evidence(data.index.numpy(), label.numpy(), predicted.numpy(), confidence.numpy(), margin.numpy(), correct.numpy())
        evidence.spared = not self.judge.classifier.half
        options = (self.seed, self.batch_size, self.sharing)
        self.bench = Bench(self.judge, data, evidence, self.store, self.clock, *options, logits, targets, self.pool)

    def _stage(self, stage: Stage) -> None:
        assert self.bench is not None
        evidence = self.bench.evidence
        self.bench.run(stage, self.stages)
        self._ask_float64()
        evidence.contradicted()
        self.history[stage.number] = (evidence.robust_accuracy(stage.eps), evidence.certified_accuracy(stage.eps))

    def _ask_float64(self) -> None:
        """Whether adversarial examples inside proven balls exist by rounding only: float64 then calls them right."""
        assert self.bench is not None
        evidence = self.bench.evidence
        at = evidence.to_ask64()
        if len(at):
            where = torch.from_numpy(at)
            p = witnesses.parameters(self.store, self.stages, evidence, at)
            asked = (self.data.images(where), torch.from_numpy(evidence.label)[where], self.bench.targets[where])
            evidence.answered64(at, self.judge.by_rounding(*asked, p).cpu().numpy())

    def _again(self) -> None:
        """What only contradicted or refuted certificates had settled no attack has seen: the attacks take it now."""
        assert self.bench is not None
        if self.bench.evidence.suspect or self.bench.evidence.by_rounding.any():
            for stage in [s for s in self.stages if s.kind == "attack" and s.mode == "settle"]:
                self.stages.append(replace(stage, number=len(self.stages) + 1, again=True))
                self._stage(self.stages[-1])

    def _examine(self) -> None:
        """The honesty checks, and on request the test of the attacks themselves; each is done once a run."""
        assert self.bench is not None
        bench = self.bench
        subject = (self.judge, self.data, bench.evidence, bench.logits, bench.targets, list(self.stages))
        options = (self.seed, self.batch_size, self.clock.tick, self.pool, not self.proving, self.unchecked)
        examination = Examination(*subject, *options, self.sharing)
        held, blind = self.store.read_json("diagnostics.json"), self.store.read_json("blind.json")
        if held is None and blind is None:
            with self.clock.stage("honesty checks", 1):
                held = examination.run()
            if not self.unchecked and blinding(held):
                blind, held = {"findings": held, "broke": [*examination.probe.more]}, None
                self.store.write_json("blind.json", blind)
            elif not self.unchecked:
                self.store.write_json("diagnostics.json", held)
        if blind is not None:
            self.findings = blind["findings"]
            self._look_without_eyes(blind["broke"])
            if held is None:
                examination.after = True
                with self.clock.stage("honesty checks", 1):
                    held = examination.run()
                self.store.write_json("diagnostics.json", held)
        assert held is not None
        tested = self.store.read_json("check-attack.json")
        if tested is None and self.check_attack:
            with self.clock.stage("binary tasks", 1):
                tested = Binarisation(examination.probe, examination.used).run()
            self.store.write_json("check-attack.json", tested)
        self.findings = held + ([tested] if tested is not None else [])
        self.checked = bool(examination.used) and not self.proving and not self.unchecked

    def _look_without_eyes(self, found: list[str]) -> None:
        """Where the suite chose the attacks and they were blind, others take on what is open; radii that blind attacks
        searched say nothing."""
        assert self.bench is not None
        evidence, suspect = self.bench.evidence, set(self.bench.evidence.suspect)
        for stage in [] if self.proving else after_blindness(found, self.stages, self.judge.threat, self.bench.logits.shape[1]):
            try:
                self.stages.append(replace(stage, number=len(self.stages) + 1))
                self._stage(self.stages[-1])
            except BadInput as problem:
                self.refused[self.stages.pop().label] = str(problem)
        if evidence.suspect - suspect:
            self._again()
        evidence.radius_covered[:] = False

    def _finish(self, status: str, report: bool) -> Evaluation:
        """Read the answer off the evidence and store it."""
        assert self.bench is not None
        evidence, store, judge = self.bench.evidence, self.store, self.judge
        bad = evidence.contradicted()
        names = tuple(f"{s.number:02d} {s.name}" for s in self.stages if s.number in bad)
        diagnostics = list(self.findings)
        for label, why in self.refused.items():
            diagnostics.append({"check": label, "status": "skipped", "message": why, "cure": ""})
        if names:
            message = f"a verified witness lies inside a certified ball of: {', '.join(names)}; these certificates do not count"
            cure = "report this: the certifier or its use is wrong"
            diagnostics.append({"check": "contradiction", "status": "error", "message": message, "cure": cure})
        lost = evidence.lost_by_rounding()
        if lost:
            message = f"{lost} samples have an adversarial example by rounding inside a ball that is proven in real arithmetic"
            message = f"{message}: these proofs do not count, and all that such proofs had settled was attacked too"
            diagnostics.append({"check": "rounding", "status": "warn", "message": message, "cure": "certify the float32 logits: --sound"})
        blind = not_established(diagnostics)
        last = self.stages[-1] if self.stages else None  # a probe that found nothing is not shown, unless others stand behind it
        silent = last is not None and last.mode == "probe" and not bool((evidence.upper_stage == last.number).any())
        shown = self.stages[:-1] if silent else self.stages
        classifier = judge.classifier
        at_once = lower_at_once(evidence, self.stages)
        share = witnesses.eight_bit_share(store, self.stages, evidence, self.data, judge, self.bench.targets)
        surface = {"surface": f"declared: {classifier.surface}"} if not classifier.surface.plain else {}
        model = self.specification["model"] | {"parameters": classifier.parameters} | surface
        data: dict[str, Any] = {"spec": self.data.spec, "sha256": self.data.sha256, "n": len(self.data), "digest": self.data.digest}
        data |= {"class_names": list(self.data.class_names)} | ({"note": self.data.note} if self.data.note else {})
        summary = summarise(
            evidence,
            self.budgets,
            model=model,
            data=data,
            threat=str(judge.threat.spec),
            goal=judge.goal.name,
            labels=self.labels,
            seed=self.seed,
            stages=stage_rows(shown, self.bench.tallies, self.history, evidence, blind),
            diagnostics=diagnostics,
            eight_bit=share,
            environment=self.extra["environment"],
            run=str(store.folder),
            checked=self.checked,
            not_established=blind,
            simultaneous=None if at_once is None else simultaneous(*at_once, max(self.budgets)),
            radius=certified_radius(evidence, self.stages),
        )
        columns = evidence.columns()
        columns |= {} if at_once is None else {"lower_simultaneous": at_once[0]}
        columns["lower_stage"] = np.where(columns["lower_stage"] > 0, columns["lower_stage"] - 1, -1)  # type: ignore[operator]
        columns["upper_stage"] = np.where(columns["upper_stage"] > 0, columns["upper_stage"] - 1, -1)  # type: ignore[operator]
        _save_columns(store, columns)
        witnesses.write_witnesses(store, self.stages, evidence, self.data, judge.threat)
        witnesses.write_gallery(store, self.stages, evidence, self.data, judge.threat)
        store.write_json("summary.json", summary)
        self._status(status)
        if report:
            from robustkit.report import write_pictures, write_report

            write_report([store.folder], store.path("report.html"))
            write_pictures(store.folder)
        return Evaluation(store.folder, status, names, evidence, summary, tuple(self.stages), self.data, judge.threat)

    def _status(self, status: str) -> None:
        self.store.bind(self.specification, self.extra | {"status": status})


def _save_columns(store: Store, columns: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **columns)
    write_atomic(store.path("samples.npz"), buffer.getvalue())
