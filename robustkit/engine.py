"""evaluate() and certify(): one model, one data set, one threat, one bracket.

Clean pass, then the stages of the plan, then the honesty checks, then the answer. Whatever ends a
run early, what is finished is stored, the bracket so far is valid, and the same call resumes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robustkit.batch_size import BatchSize, check_batch
from robustkit.classifier import Classifier, pick_device
from robustkit.clock import Clock, seconds
from robustkit.core.comparisons import RULE
from robustkit.core.identity import identity
from robustkit.data import Data, as_data, load_data
from robustkit.data.dataset import hash_arrays
from robustkit.errors import BadInput, unknown
from robustkit.memory import keep_freed_memory
from robustkit.methods import Attack, Certifier
from robustkit.models import load_model
from robustkit.models.asking import objection, refuse_training_mode
from robustkit.models.weights import state_digest
from robustkit.numerics import PAD
from robustkit.plan import Stage, certifiers_of, check_guarantees, make_plan, with_sound, with_surface, without
from robustkit.pool import pool_of
from robustkit.run import Evaluation as Evaluation
from robustkit.run import Run
from robustkit.sharing import Processes, Sharing
from robustkit.spec import digest, number_text
from robustkit.store import Store, canonical_json
from robustkit.suites import has_suite
from robustkit.summary import environment
from robustkit.threads import threads_for
from robustkit.threats import Threat, load_threat
from robustkit.threats.base import exact
from robustkit.verdict.goals import Goal
from robustkit.verdict.judge import Judge

Budget = str | float | Fraction

DEFAULT_MODEL = "zoo:digits-ibp"
DEFAULT_DATA = "digits"
DEFAULT_THREAT = "linf:0.1"


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
    sound: bool = False,
    check_attack: bool = False,
    adaptive: str = "auto",
    checks: str = "auto",
    batch_size: BatchSize = "auto",
    processes: Processes = "auto",
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
        sound: certificates hold for the float32 logits, whatever the order of summation, not only in real arithmetic.
        adaptive: auto uses the adaptive surface that the model declares (and always attacks it as deployed
            too); off only attacks it as deployed.
        checks: off leaves out the honesty checks that attack the model, for models that take seconds an image.
        processes: among how many processes a CPU's cores share an attack; auto takes as many as torch has
            threads where that pays and neither model nor attack is code that could miss it.
        check_attack: test the attacks on binary tasks that have a known adversarial example.
        out: run folder; default runs/ and a name from the specification. An unfinished run resumes;
            a model handed over in Python gets a new folder each time unless `out` says which.
        time_limit: such as "2h"; the run then ends incomplete, with a valid bracket.

    Raises:
        BadInput, Missing: nothing was computed. RobustkitError: a stage failed; all before is saved.
    """
    keep_freed_memory()
    check_batch(batch_size)
    sharing = Sharing.asked(processes, unheard=True)
    goal_, threat_ = Goal(goal), load_threat(threat if threat is not None else DEFAULT_THREAT)
    if labels not in ("given", "predicted"):
        raise unknown("labels", labels, ("given", "predicted"))
    if adaptive not in ("auto", "off"):
        raise unknown("adaptive", adaptive, ("auto", "off"))
    if checks not in ("auto", "off"):
        raise unknown("checks", checks, ("auto", "off"))
    budgets = _budgets(eps, threat_)
    threat_ = threat_.at(max(budgets))
    searches = {"curve": curve, "certify_radius": certify_radius}
    stages = make_plan(threat_, budgets, suite=suite, attacks=attacks, certifiers=certifiers, seed=seed, **searches)
    stages = with_sound(stages) if sound else stages
    check_guarantees(stages)
    limit = seconds(time_limit)
    images = _data(DEFAULT_DATA if data is None else data, data_root)
    classifier = load_model(DEFAULT_MODEL if model is None else model, device=pick_device(device), allow_code=allow_code)
    classifier.check(images.images(slice(0, 1)), images.y)
    if (goal == "accepted-error") and not classifier.surface.rejects:
        raise BadInput("goal accepted-error is for models that reject: declare adaptive_surface with rejects=True, or use goal untargeted")
    stages = with_surface(stages, classifier.surface, adaptive == "auto")
    if suite == "certify":
        refuse_training_mode(classifier)
    stages, refused = _fitting(stages, classifier, threat_, images.images(slice(0, PAD)), proving=suite == "certify")

    specification = {
        "model": {
            "spec": _model_name(classifier),
            "sha256": classifier.sha256 or _weights_digest(classifier),
            "identity": identity(classifier.original, classifier.mean, classifier.std),
        },
        "data": {"spec": images.spec, "digest": images.digest, "values": hash_arrays(images.values, images.y)},
        "threat": str(threat_.spec),
        "eps": [number_text(e) for e in budgets],
        "goal": goal,
        "labels": labels,
        "stages": [s.describe() for s in stages],
        "seed": seed,
        "judge": RULE,
    } | ({"threat_version": threat_.version} if threat_.version > 1 else {})
    folder = Path(out) if out is not None else _folder(specification, resumes=classifier.sha256 is not None)
    store = Store(folder)
    with store.locked(), threads_for(images.shape):
        extra = {"status": "running", "environment": environment(classifier.device), "command": command}
        store.bind(specification, extra)
        pool, clock = cache(lambda: pool_of(images, data_root)), Clock(limit, progress)
        judge = Judge(classifier, threat_, goal_)
        subject = (judge, images, labels, budgets, stages, seed, batch_size, sharing, store, clock, pool)
        return Run(*subject, specification, extra, refused, suite == "certify", check_attack, checks == "off").work(report)


CASCADE = "cascade"
"""The method that stands for the suite `certify`."""


def certify(
    model: Any = None,
    data: Any = None,
    threat: Any = None,
    *,
    method: str | Certifier | Sequence[str | Certifier] = CASCADE,
    **options: Any,
) -> Evaluation:
    """Certify: the lower end of the bracket. Options as in evaluate; `curve=True` searches radii.

    `cascade` is the suite certify: an attack, then ever dearer certifiers on what is still open; for a
    model that names a certifier of its own (smoothed, or an analysis by synthesis), that certifier. A certifier that says how
    much to smooth (`smoothing:sigma=0.25`) certifies smooth:(MODEL),sigma=0.25.
    """
    given: list[str | Certifier] = [method] if isinstance(method, (str, Certifier)) else list(method)
    if CASCADE in given and len(given) > 1:
        raise BadInput(f"method {CASCADE} stands for all deterministic certifiers: name it alone, or name others without it")
    methods = certifiers_of([] if given == [CASCADE] else given)
    if not methods and given != [CASCADE]:
        raise BadInput(f"no method is named: leave it out for {CASCADE}, or name one (see: robustkit list certifiers)")
    where = {"device": pick_device(options.get("device", "auto")), "allow_code": options.get("allow_code", False)}
    classifier = load_model(DEFAULT_MODEL if model is None else model, **where)
    refuse_training_mode(classifier)
    own = getattr(classifier.module, "certifier", None)
    if given == [CASCADE] and own is not None:
        methods = certifiers_of([own])
    for one in methods:
        classifier = one.subject(classifier)
    if not methods and not has_suite("certify", load_threat(threat if threat is not None else DEFAULT_THREAT)):
        raise BadInput(f"no certifier works for threat {threat}: they know linf, l2 and l1")
    radius = options.pop("curve", False)
    plan = {"attacks": ["none"], "certifiers": methods} if methods else {"curve": radius}
    return evaluate(classifier, data, threat, suite="certify", certify_radius=radius, **plan, **options)


def _fitting(
    stages: list[Stage], classifier: Classifier, threat: Threat, x: Tensor, *, proving: bool
) -> tuple[list[Stage], dict[str, str]]:
    """The stages that can work on this model, tried on the first of a few images x (R,C,H,W), and why others of a suite cannot.

    What the user asked for by name has to fit: its BadInput is raised here, before the work begins; so
    is one where a certifier is asked for (`proving`) and none of the suite fits.
    """
    refused: dict[str, str] = {}
    against = objection(classifier, x) if any(isinstance(stage.method, Certifier) for stage in stages) else ""
    for stage in stages:
        method = stage.method
        if stage.label in refused:
            continue
        try:
            if isinstance(method, Attack):
                method.attempts(classifier.classes or 0)
            else:
                if against:
                    raise BadInput(f"{against}: no certificate can be about such a model")
                method.fits(classifier, threat, x[:1])
        except BadInput as problem:
            if not stage.optional:
                raise
            refused[stage.label] = str(problem)
    kept = without(stages, lambda s: s.label in refused)
    if proving and not any(isinstance(stage.method, Certifier) for stage in kept):
        raise BadInput(f"no certifier works here: {next(why for label, why in refused.items() if label.startswith('certifier'))}")
    return kept, refused


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
