"""The submitted model and the board's data, brought together for a judge. Runs no code of a submission unless allowed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PureWindowsPath

import numpy as np
from torch import nn

from robustkit.classifier import Classifier
from robustkit.data import Data
from robustkit.errors import BadInput, Missing
from robustkit.evaluation import subject
from robustkit.evaluation.untrusted_names import inside, model_of_bytes, open_model
from robustkit.filetypes import content, existing
from robustkit.leaderboard.definition import Definition
from robustkit.leaderboard.limits import COPIES, LIMITS, Limits
from robustkit.leaderboard.manifest import MODEL, Entry
from robustkit.models import zoo_names
from robustkit.models.load import ZOO
from robustkit.models.weights import state_digest


class Subject(subject.Subject):
    """One model under the board's question."""

    question: Definition

    @property
    def definition(self) -> Definition:
        return self.question


def load_subject(entry: Entry, data: Data, *, device: str = "auto", allow_code: bool = False, limits: Limits = LIMITS) -> Subject:
    """The submitted model, its digest checked; raises BadInput, or Missing where it needs --allow-code, is not here or too large."""
    about = entry.manifest["model"]
    if about["file"] is not None:
        limits.space(COPIES * float(next(one["size"] for one in entry.manifest["files"] if one["path"] == MODEL)), "reading its weights")
        classifier = model_of_bytes(entry.read(MODEL), str(about["spec"]), device, lambda metadata: limits.network(metadata, len(data)))
    else:
        spec = str(about["spec"])
        try:
            classifier = open_model(spec, None, device=device, allow_code=allow_code)
        except Missing as problem:
            hint = "the entry does not hold it, so it cannot be checked here, not even with --allow-code"
            raise Missing(f"{entry.name}: {str(problem).replace('give it with --model', hint)}") from problem
        if classifier.sha256 != about["sha256"]:
            digests = f"sha256 {str(classifier.sha256)[:12]}..., submitted {about['sha256'][:12]}..."
            raise BadInput(f"{spec} is here another model than the one submitted ({digests})")
    if about["identity"] != identity(classifier):
        raise BadInput("the model's weights are not those that the manifest names")
    try:
        classifier.check(data.images(slice(0, 1)), data.y)
    except BadInput as problem:
        raise BadInput(f"the submitted model does not fit the board: {problem}") from problem
    return Subject(entry.definition, classifier, data)


def identity(classifier: Classifier) -> str:
    """What makes a model the same whatever its file is called and says: structure, weights, normalisation."""
    made = hashlib.sha256(repr(classifier.original).encode())
    if isinstance(classifier.original, nn.Module):
        made.update(state_digest(classifier.original).encode())
    made.update(repr((classifier.mean.flatten().tolist(), classifier.std.flatten().tolist())).encode())
    return made.hexdigest() if isinstance(classifier.original, nn.Module) else ""


def weights_file(spec: str, given: str | None, folder: Path) -> Path | None:
    """The safetensors file behind a run's model: given by the user, bundled, or inside the run's folder. None where it has none."""
    if given is not None:
        path = existing(given)
        if path is None and ":" not in given:
            raise Missing(f"there is no model file {given} (looked from {os.getcwd()})")
        return path
    name = spec.removeprefix("zoo:")
    if name != spec:
        return ZOO / f"{name}.safetensors" if name in zoo_names() else None
    path = None if ":" in spec and not PureWindowsPath(spec).drive else inside(folder, spec, PureWindowsPath(spec).name, MODEL)
    return path if path is not None and content(path) == "safetensors" else None


def positions(index: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Positions of dataset indices, -1 for those that are not there."""
    order = np.argsort(index, kind="stable")
    at = np.clip(np.searchsorted(index[order], wanted), 0, len(index) - 1)
    found = order[at]
    return np.where(index[found] == wanted, found, -1)
