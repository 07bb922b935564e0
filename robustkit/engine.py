"""evaluate() and certify(): one model, one data set, one threat, one bracket.

Clean pass, then the stages of the plan, then the honesty checks, then the answer. Whatever ends a
run early, what is finished is stored, the bracket so far is valid, and the same call resumes.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustkit import registry, witnesses
from robustkit.binarisation import Binarisation
from robustkit.classifier import Classifier, pick_device
from robustkit.clock import Clock, seconds
from robustkit.data import Data, as_data, load_data
from robustkit.diagnostics import Examination
from robustkit.driver import BatchSize, auto_batch, check_batch
from robustkit.errors import BadInput, OutOfTime, RobustkitError, unknown
from robustkit.evidence import Evidence
from robustkit.goals import Goal
from robustkit.judge import Judge
from robustkit.memory import keep_freed_memory
from robustkit.methods import Attack, Certifier, StatisticalCertifier
from robustkit.models import load_model
from robustkit.models.smoothed import Smoothing, smoothed
from robustkit.models.weights import state_digest
from robustkit.numerics import margins, padded
from robustkit.plan import Stage, make_plan, with_surface, without
from robustkit.pool import pool_of
from robustkit.probing import Finding
from robustkit.spec import digest, number_text, parse
from robustkit.stages import Bench
from robustkit.store import UNIT, Store, canonical_json, write_atomic
from robustkit.summary import environment, stage_rows, summarise
from robustkit.threads import threads_for
from robustkit.threats import Threat, load_threat
from robustkit.threats.base import exact

Budget = str | float | Fraction

DEFAULT_MODEL = "zoo:digits-ibp"
DEFAULT_DATA = "digits"
DEFAULT_THREAT = "linf:0.1"

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
        return (
            f"Evaluation({s['threat']}: certified {s['certified_accuracy']:.3f} <= true <= {s['robust_accuracy']:.3f}, "
            f"clean {s['clean_accuracy']:.3f}, n={s['data']['n']}, {self.status}, {self.folder})"
        )


def evaluate(
    model: str | Path | nn.Module | Classifier | None = None,
    data: str | Data | tuple[Any, Any] | None = None,
    threat: str | Threat | None = None,
    *,
    eps: Budget | Sequence[Budget] | None = None,
    suite: str = "standard",
    attacks: str | Attack | Sequence[str | Attack] | None = None,
    certifiers: str | Certifier | Sequence[str | Certifier] | None = None,
    goal: str = "untargeted",
    labels: str = "given",
    curve: bool = False,
    certify_radius: bool = False,
    check_attack: bool = False,
    adaptive: str = "auto",
    batch_size: BatchSize = "auto",
    device: str = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    time_limit: str | float | None = None,
    allow_code: bool = False,
    data_root: str | Path | None = None,
    progress: bool | None = None,
    command: str = "",
    report: bool = True,
) -> Evaluation:
    """Bracket a model's robust accuracy, sample by sample.

    Args:
        model: specification, path, nn.Module or Classifier; default a bundled model.
        data: specification, Data, or (x (N,C,H,W) in [0,1], y (N,)); default scikit-learn's digits.
        threat: such as "linf:8/255".
        eps: budgets to report; default the threat's own. The largest is the headline.
        suite: named list of stages; attacks or certifiers given replace the suite's.
        goal: untargeted, targeted:next or targeted:random.
        labels: given, or predicted (stability of the model's own answers).
        curve: search every correct sample's radius, for accuracies between the budgets.
        adaptive: auto uses the adaptive surface that the model declares (and always attacks it as deployed
            too); off only attacks it as deployed.
        check_attack: test the attacks on binary tasks that have a known adversarial example.
        out: run folder; default runs/ and a name from the specification. An unfinished run resumes;
            a model handed over in Python gets a new folder each time unless `out` says which.
        time_limit: such as "2h"; the run then ends incomplete, with a valid bracket.

    Raises:
        BadInput, Missing: nothing was computed. RobustkitError: a stage failed; all before is saved.
    """
    keep_freed_memory()
    check_batch(batch_size)
    goal_, threat_ = Goal(goal), load_threat(threat if threat is not None else DEFAULT_THREAT)
    if labels not in ("given", "predicted"):
        raise unknown("labels", labels, ("given", "predicted"))
    if adaptive not in ("auto", "off"):
        raise unknown("adaptive", adaptive, ("auto", "off"))
    budgets = _budgets(eps, threat_)
    threat_ = threat_.at(max(budgets))
    searches = {"curve": curve, "certify_radius": certify_radius}
    stages = make_plan(threat_, budgets, suite=suite, attacks=attacks, certifiers=certifiers, seed=seed, **searches)
    limit = seconds(time_limit)
    images = _data(DEFAULT_DATA if data is None else data, data_root)
    classifier = load_model(DEFAULT_MODEL if model is None else model, device=pick_device(device), allow_code=allow_code)
    classifier.check(images.images(slice(0, 1)), images.y)
    if (goal == "accepted-error") and not classifier.surface.rejects:
        raise BadInput("goal accepted-error is for models that reject: declare adaptive_surface with rejects=True, or use goal untargeted")
    stages = with_surface(stages, classifier.surface, adaptive == "auto")
    stages, refused = _fitting(stages, classifier, threat_, images.images(slice(0, 1)), from_suite=attacks is None)

    specification = {
        "model": {"spec": _model_name(classifier), "sha256": classifier.sha256 or _weights_digest(classifier)},
        "data": {"spec": images.spec, "digest": images.digest},
        "threat": str(threat_.spec),
        "eps": [number_text(e) for e in budgets],
        "goal": goal,
        "labels": labels,
        "stages": [s.describe() for s in stages],
        "seed": seed,
    }
    folder = Path(out) if out is not None else _folder(specification, resumes=classifier.sha256 is not None)
    store = Store(folder)
    with store.locked(), threads_for(images.shape):
        extra = {"status": "running", "environment": environment(classifier.device), "command": command}
        store.bind(specification, extra)
        pool, clock = cache(lambda: pool_of(images, data_root)), Clock(limit, progress)
        run = _Run(classifier, images, threat_, goal_, labels, budgets, stages, seed, batch_size, store, clock, pool)
        run.specification, run.extra, run.refused = specification, extra, refused
        run.check_attack = check_attack
        return run.work(report)


def certify(model: Any = None, data: Any = None, threat: Any = None, *, method: str | Sequence[str] = "ibp", **options: Any) -> Evaluation:
    """Certify only: the lower end of the bracket. Options as in evaluate; `curve=True` searches radii."""
    methods = [method] if isinstance(method, str) else list(method)
    radius = options.pop("curve", False)
    model = _smoothed(model, methods, options)
    return evaluate(model, data, threat, attacks=["none"], certifiers=methods, certify_radius=radius, **options)


def _smoothed(model: Any, methods: Sequence[str], options: dict[str, Any]) -> Any:
    """The model, smoothed where the method says by how much: `smoothing:sigma=0.25` certifies smooth:(MODEL),sigma=0.25."""
    named = [parse(m) for m in methods if isinstance(m, str) and parse(m).name in ("smoothing", "pixeldp", "renyi")]
    if not named:
        return model
    made = registry.make("certifier", methods[0] if len(methods) == 1 else str(named[0]))
    sigma: Any = getattr(made, "sigma", None)
    noise: Any = getattr(made, "noise", "") or "gaussian"
    if sigma is None:
        return model
    where = {"device": pick_device(options.get("device", "auto")), "allow_code": options.get("allow_code", False)}
    base = load_model(DEFAULT_MODEL if model is None else model, **where)
    return base if base.random else smoothed(base, Smoothing(sigma, noise))


def _fitting(
    stages: list[Stage], classifier: Classifier, threat: Threat, x: Tensor, *, from_suite: bool
) -> tuple[list[Stage], dict[str, str]]:
    """The stages that can work on this model, tried on one image x, and why others of a suite cannot.

    What the user asked for by name has to fit: its BadInput is raised here, before the work begins.
    """
    refused: dict[str, str] = {}
    for stage in stages:
        method = stage.method
        if stage.label in refused:
            continue
        try:
            if isinstance(method, Attack):
                method.attempts(classifier.classes or 0)
            elif isinstance(method, StatisticalCertifier):
                method.sample(classifier, threat, 0)
            else:
                method.bind(classifier, threat)(x, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64))
        except BadInput as problem:
            if not (from_suite if isinstance(method, Attack) else stage.on_trial):
                raise
            refused[stage.label] = str(problem)
    return without(stages, lambda s: s.label in refused), refused


class _Run:
    """The state of one run while it works."""

    specification: dict[str, Any]
    extra: dict[str, Any]
    refused: dict[str, str]
    check_attack: bool

    def __init__(
        self,
        classifier: Classifier,
        data: Data,
        threat: Threat,
        goal: Goal,
        labels: str,
        budgets: list[Fraction],
        stages: list[Stage],
        seed: int,
        batch_size: BatchSize,
        store: Store,
        clock: Clock,
        pool: Callable[[], Data],
    ) -> None:
        self.judge = Judge(classifier, threat, goal)
        self.data, self.labels, self.budgets, self.stages, self.seed = data, labels, budgets, stages, seed
        self.batch_size, self.store, self.clock, self.pool = batch_size, store, clock, pool
        self.history: dict[int, tuple[float, float]] = {}
        self.findings: list[Finding] = []

    def work(self, report: bool) -> Evaluation:
        """Clean pass, stages, checks, answer; ends with a stored summary unless nothing can be stored."""
        try:
            return self._work(report)
        except OSError as problem:
            saved = "everything finished is saved, and the same command goes on"
            raise RobustkitError(f"{self.store.folder} cannot be written ({problem}): make room; {saved}") from problem

    def _work(self, report: bool) -> Evaluation:
        status, failure = "complete", None
        self.bench: Bench | None = None
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
        rows = auto_batch(data.shape, classifier.device) if self.batch_size == "auto" else padded(self.batch_size)
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
        self.bench = Bench(self.judge, data, evidence, self.store, self.clock, self.seed, self.batch_size, logits, targets, self.pool)

    def _stage(self, stage: Stage) -> None:
        assert self.bench is not None
        self.bench.run(stage, self.stages)
        self.bench.evidence.contradicted()
        evidence = self.bench.evidence
        self.history[stage.number] = (evidence.robust_accuracy(stage.eps), evidence.certified_accuracy(stage.eps))

    def _again(self) -> None:
        """What contradicted certificates had settled no attack has seen: the attacks take it now."""
        assert self.bench is not None
        if self.bench.evidence.suspect:
            for stage in [s for s in self.stages if s.kind == "attack" and s.mode == "settle"]:
                self.stages.append(replace(stage, number=len(self.stages) + 1))
                self._stage(self.stages[-1])

    def _examine(self) -> None:
        """The honesty checks, and on request the test of the attacks themselves; each is done once a run."""
        assert self.bench is not None
        bench = self.bench
        subject = (self.judge, self.data, bench.evidence, bench.logits, bench.targets, self.stages)
        examination = Examination(*subject, self.seed, self.batch_size, self.clock.tick, self.pool)
        held = self.store.read_json("diagnostics.json")
        if held is None:
            with self.clock.stage("honesty checks", 1):
                held = examination.run()
            self.store.write_json("diagnostics.json", held)
        tested = self.store.read_json("check-attack.json")
        if tested is None and self.check_attack:
            with self.clock.stage("binary tasks", 1):
                tested = Binarisation(examination.probe, examination.used).run()
            self.store.write_json("check-attack.json", tested)
        self.findings = held + ([tested] if tested is not None else [])

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
        shown = [s for s in self.stages if s.mode != "probe" or bool((evidence.upper_stage == s.number).any())]
        classifier = judge.classifier
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
            stages=stage_rows(shown, self.bench.tallies, self.history),
            diagnostics=diagnostics,
            eight_bit=share,
            environment=self.extra["environment"],
            run=str(store.folder),
        )
        columns = evidence.columns()
        columns["lower_stage"] = np.where(columns["lower_stage"] > 0, columns["lower_stage"] - 1, -1)  # type: ignore[operator]
        columns["upper_stage"] = np.where(columns["upper_stage"] > 0, columns["upper_stage"] - 1, -1)  # type: ignore[operator]
        _save_columns(store, columns)
        witnesses.write_witnesses(store, self.stages, evidence, self.data, judge.threat)
        witnesses.write_gallery(store, self.stages, evidence, self.data, judge.threat)
        store.write_json("summary.json", summary)
        self._status(status)
        if report:
            from robustkit.report import write_report

            write_report([store.folder], store.path("report.html"))
        return Evaluation(store.folder, status, names, evidence, summary, tuple(self.stages), self.data, judge.threat)

    def _status(self, status: str) -> None:
        self.store.bind(self.specification, self.extra | {"status": status})


def _budgets(eps: Budget | Sequence[Budget] | None, threat: Threat) -> list[Fraction]:
    """The budgets asked for, exact and in order; the threat's own by default. Raises BadInput."""
    if eps is None:
        return [threat.eps]
    budgets = sorted({exact(one) for one in ([eps] if isinstance(eps, (str, float, int, Fraction)) else eps)})
    if not budgets:
        raise BadInput("eps names no budget: write for example eps=['2/255', '8/255']")
    return budgets


def _data(data: str | Data | tuple[Any, Any], root: str | Path | None) -> Data:
    if isinstance(data, Data):
        return data
    if isinstance(data, (str, Path)):
        return load_data(data, root)
    try:
        x, y = data
    except (TypeError, ValueError) as problem:
        raise BadInput(f"data is a {type(data).__name__}: expected a specification, Data, or a pair (images, labels)") from problem
    return as_data(x, y)


def _model_name(classifier: Classifier) -> str:
    return classifier.spec or type(classifier.original).__name__


def _weights_digest(classifier: Classifier) -> str | None:
    """sha256 of the weights of a module handed over in Python."""
    return state_digest(classifier.module) if isinstance(classifier.module, nn.Module) else None


def _folder(specification: dict[str, Any], resumes: bool) -> Path:
    """runs/ and a name from the specification; a new one where only the weights of the model are known.

    Two models handed over in Python may share their weights and differ in their code: the results of
    one must never be read back for the other.
    """
    named = Path("runs") / _folder_name(specification)
    if resumes or not named.exists():
        return named
    return next(path for n in itertools.count(2) if not (path := named.with_name(f"{named.name}-{n}")).exists())


def _folder_name(specification: dict[str, Any]) -> str:
    parts = [specification["model"]["spec"], specification["data"]["spec"].partition(":")[0], specification["threat"]]
    slug = "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", Path(part).name).strip("-") for part in parts)
    return f"{slug[:80]}-{digest(canonical_json(specification), 8)}"


def _save_columns(store: Store, columns: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **columns)
    write_atomic(store.path("samples.npz"), buffer.getvalue())
