"""`robustkit verify`: a run folder, from anybody, complete or not, checked again. Nothing in it is believed.

Four layers, each as far as it can go: the documents against each other, the columns against the figures and the
stored units, the witnesses against the data, everything against the model. Names in the folder open nothing
but what comes with robustkit and what lies in the folder (untrusted_names.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from robustkit.classifier import Classifier, as_classifier, pick_device
from robustkit.core.comparisons import float_below
from robustkit.data import Data, as_data, load_data
from robustkit.data.dataset import hash_arrays
from robustkit.errors import BadInput, Missing, RobustkitError, first_line
from robustkit.evaluation.check_answers import Answers, check_samples, check_witness_images, check_witness_rows
from robustkit.evaluation.check_certificates import Certificates
from robustkit.evaluation.check_columns import check_figures, check_intervals
from robustkit.evaluation.check_record import check_digest, check_record, told_of_old_rule
from robustkit.evaluation.check_units import check_units, judge_units
from robustkit.evaluation.run_files import RunFiles, read_run
from robustkit.evaluation.subject import Asked, Subject
from robustkit.evaluation.untrusted_names import open_data, open_model
from robustkit.models import load_model, state_digest
from robustkit.spec import number
from robustkit.threats import Threat, load_threat

MOST = 50
"""Disagreements told of one run."""


@dataclass
class Verification:
    """What a check of one run folder found."""

    run: str
    problems: list[str] = field(default_factory=list)
    """Each names exactly what disagrees; empty when all agree."""
    unchecked: list[str] = field(default_factory=list)
    """What could not be checked here, and why."""
    notes: list[str] = field(default_factory=list)
    """What has to be known to read the run, and is no disagreement."""
    measured: dict[str, int] = field(default_factory=dict)
    """How much was checked: samples, witnesses, certificates, forwards."""

    @property
    def ok(self) -> bool:
        """Whether everything was checked and all agree."""
        return not self.problems and not self.unchecked

    @property
    def exit_code(self) -> int:
        """0 all agree, 1 something disagrees, 3 something could not be checked here."""
        return 1 if self.problems else Missing.exit_code if self.unchecked else 0

    def document(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {"ok": self.ok, **vars(self)}

    def add(self, problems: Iterable[str]) -> None:
        """Take up disagreements, each once; raises BadInput where a file has not the documented form."""
        try:
            for problem in problems:
                if problem not in self.problems and len(self.problems) < MOST:
                    self.problems.append(problem)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as problem:
            if isinstance(problem, RobustkitError):
                raise
            line = first_line(problem)[:100]
            raise BadInput(f"{self.run} has not the form of a run folder ({type(problem).__name__}: {line})") from problem


def verify(
    run: str | Path,
    model: str | Path | nn.Module | Classifier | None = None,
    data: str | Path | Data | tuple[Any, Any] | None = None,
    *,
    threat: Threat | None = None,
    certificates: bool = False,
    allow_code: bool = False,
    device: str = "auto",
    data_root: str | Path | None = None,
) -> Verification:
    """Check a run folder again: every witness, every column, every figure.

    Args:
        run: folder that evaluate or certify wrote, finished or not.
        model, data: those of the run, as evaluate takes them; needed where the folder names code, or files that do not
            lie in it.
        threat: the run's, where it is of the user's own class.
        certificates: prove every certificate again (deterministic ones at their radius, statistical ones from new draws).
        allow_code: the code that the folder names is trusted, and run here.
        data_root: where data sets lie.

    Returns:
        the Verification: `problems` names each disagreement, `unchecked` what could not be checked here.

    Raises:
        Missing: there is no such folder, or a model or data that was given is not here. BadInput: a file is damaged.
    """
    held = read_run(Path(run))
    found = Verification(str(run))
    found.notes += [line] if (line := told_of_old_rule(held.record)) else []
    asked = _question(held, threat, found)
    images = _data(held, data, data_root, allow_code, found)
    classifier = _model(held, model, device, allow_code, found)
    if classifier is not None and images is not None:
        try:
            classifier.check(images.images(slice(0, 1)), images.y)
        except BadInput as problem:
            found.add([str(problem)])
            classifier = None
    subject = None
    if asked is not None and images is not None and classifier is not None:
        subject = Subject(asked, classifier, images)
    if held.summary:
        _finished(held, asked, images, subject, certificates, found)
    else:
        _unfinished(held, subject, found)
    return found


def _finished(
    held: RunFiles, asked: Asked | None, images: Data | None, subject: Subject | None, certificates: bool, found: Verification
) -> None:
    own, summary = held.columns, held.summary
    said = held.specification
    found.add(check_record(held.record, summary))
    if held.contradiction:
        found.add([held.contradiction])
        return
    found.measured["samples"] = len(own["index"])
    classes = len(summary["data"].get("class_names") or ()) if subject is None else subject.classifier.classes or 0
    found.add(check_intervals(own, summary["stages"], classes or 1 << 31))
    found.add(check_figures(summary, own))
    found.add(check_units(held))
    witnesses, where = held.witnesses(), "witnesses.safetensors"
    before = len(found.problems)
    found.add(check_witness_rows(own, witnesses, where))
    sound = len(found.problems) == before
    if images is not None:
        before = len(found.problems)
        found.add(check_samples(own, images, str(said["labels"])))
        sound = sound and len(found.problems) == before
        if sound and witnesses and asked is not None:
            found.add(check_witness_images(own, witnesses, images, asked.threat, where))
    if subject is None or len(own["index"]) != len(subject.data) or _beyond(own["label"], subject):
        return
    before = subject.classifier.forwards
    answers = Answers(subject, own)
    if summary["model"].get("parameters") != subject.classifier.parameters:
        found.add([f"summary.json: the model has {subject.classifier.parameters} parameters, not {summary['model'].get('parameters')}"])
    found.add(answers.clean())
    if sound and witnesses:
        found.add(answers.witnesses(witnesses, where))
    found.measured["witnesses"] = answers.judged
    if certificates:
        proofs = Certificates(subject, own, summary["stages"])
        found.add(proofs.deterministic())
        found.add(proofs.weaker([float_below(number(text)) for text in summary["eps"]]))
        found.measured["certificates"] = proofs.proven
        found.unchecked += proofs.left
    elif bool((own["lower"] > 0).any() or (own["lower_statistical"] > 0).any() or (own["lower_conditional"] > 0).any()):
        found.notes.append("certificates were not proven again: --certificates does it")
    found.measured["forwards"] = subject.classifier.forwards - before


def _unfinished(held: RunFiles, subject: Subject | None, found: Verification) -> None:
    """A run that was stopped before its answer has its record and its units."""
    found.add(check_digest(held.record))
    status = str(held.record.get("status"))[:20]
    found.unchecked.append(f"the run has no answer yet (status {status!a}): only what its stages stored was looked at")
    if subject is not None:
        found.add(judge_units(held, subject))


def _beyond(label: Any, subject: Subject) -> bool:
    """Whether labels have no class of the model, so that it cannot be asked about them."""
    return bool((label < 0).any() or (label >= (subject.classifier.classes or 0)).any())


def _question(held: RunFiles, threat: Threat | None, found: Verification) -> Asked | None:
    said = held.specification
    try:
        known = load_threat(said["threat"]) if threat is None else threat
        if str(known.spec) != said["threat"]:
            found.add([f"run.json: the threat is {said['threat'][:80]!a}, the one given is {str(known.spec)!a}"])
            return None
        asked = Asked(known, said["goal"], said["labels"], said["seed"])
        if asked.labels not in ("given", "predicted"):
            raise BadInput(f"labels {asked.labels[:40]!a} is neither given nor predicted")
        return asked
    except RobustkitError as problem:
        why = "a threat of the user's own needs threat= in Python"
        found.unchecked.append(f"witnesses and answers: the run's question is not known here ({problem}); {why}")
        return None


def _data(
    held: RunFiles, given: str | Path | Data | tuple[Any, Any] | None, root: str | Path | None, allow_code: bool, found: Verification
) -> Data | None:
    """The run's images, None where they are not here or are others."""
    said = held.specification["data"]
    if given is None:
        try:
            images = open_data(str(said.get("spec")), held.folder, root, allow_code=allow_code)
        except RobustkitError as problem:
            found.unchecked.append(f"samples, witnesses and answers: {problem}")
            return None
    elif isinstance(given, (str, Path, Data)):
        images = load_data(given, root)
    else:
        images = as_data(*given)
    pairs = [(said.get("digest"), images.digest), (said.get("values"), hash_arrays(images.values, images.y) if "values" in said else None)]
    for wanted, digest in pairs:
        if wanted != digest:
            found.add([f"run.json: the data's digest is {str(wanted)[:16]!a}, that of {images.spec} is {str(digest)[:16]!a}"])
            return None
    return images


def _model(
    held: RunFiles, given: str | Path | nn.Module | Classifier | None, device: str, allow_code: bool, found: Verification
) -> Classifier | None:
    """The run's model, None where it is not here or is another."""
    said = held.specification["model"]
    spec, wanted = str(said.get("spec")), said.get("sha256")
    if given is None:
        try:
            classifier = open_model(spec, held.folder, device=device, allow_code=allow_code)
        except Missing as problem:
            found.unchecked.append(f"the model's answers: {problem}")
            return None
        except BadInput as problem:
            found.unchecked.append(f"the model's answers: {problem}; give the model with --model")
            return None
    elif isinstance(given, (str, Path)):
        classifier = load_model(given, device=pick_device(device), allow_code=allow_code)
    else:
        classifier = as_classifier(given, device=pick_device(device))
    digest = classifier.sha256 or (state_digest(classifier.module) if isinstance(classifier.module, nn.Module) else None)
    if digest != wanted:
        found.add([f"run.json: the model's sha256 is {str(wanted)[:16]!a}, that of {classifier.spec or spec} is {str(digest)[:16]!a}"])
        return None
    if wanted is None:
        found.notes.append("the model has no digest: nothing shows that it is the one that was evaluated")
    return classifier
