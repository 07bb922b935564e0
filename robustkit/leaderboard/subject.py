"""The submitted model and the board's data, brought together for a judge. Runs no code of a submission unless allowed."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from robustkit import streams
from robustkit.batch_size import auto_batch
from robustkit.classifier import Classifier, pick_device
from robustkit.data import Data
from robustkit.errors import BadInput, Missing
from robustkit.leaderboard.definition import Definition
from robustkit.leaderboard.files import HEADER
from robustkit.leaderboard.limits import COPIES, LIMITS, Limits
from robustkit.leaderboard.manifest import MODEL, Entry
from robustkit.models import load_model
from robustkit.models.files import checkpoint_model
from robustkit.models.weights import read_checkpoint, state_digest
from robustkit.verdict.evidence import Ints
from robustkit.verdict.goals import Goal
from robustkit.verdict.judge import Judge

_BUNDLED = re.compile(r"(zoo:[A-Za-z0-9._-]+|smooth:\(zoo:[A-Za-z0-9._-]+\)(,[A-Za-z0-9=./]+)*)")
"""Names that run no code: robustkit's own models, smoothed or not."""


@dataclass(frozen=True)
class Subject:
    """One model under the board's question."""

    definition: Definition
    classifier: Classifier
    data: Data

    @property
    def judge(self) -> Judge:
        return Judge(self.classifier, self.definition.load_threat(), Goal(self.definition.goal))

    def fresh_judge(self) -> Judge:
        """For new witnesses: a random model draws from seeds that nobody could know, and has to fail twice."""
        if not self.classifier.random:
            return self.judge
        return FreshJudge(self.classifier, self.definition.load_threat(), Goal(self.definition.goal))

    def batches(self, count: int) -> Iterator[slice]:
        """Rows to send through the model together."""
        rows = auto_batch(self.data.shape, self.classifier.device)
        return (slice(first, min(count, first + rows)) for first in range(0, count, rows))

    def targets(self, label: Tensor) -> Tensor:
        """(N,) target classes of the goal."""
        return Goal(self.definition.goal).targets(label, self.data.index, self.classifier.classes or 0, self.definition.seed)

    def images(self, at: Ints) -> Tensor:
        return self.data.images(torch.from_numpy(at))


class FreshJudge(Judge):
    """Judges a random model by two votes from secret seeds; the level of both together withstands many tries."""

    def confirm(self, x: Tensor, y: Tensor, target: Tensor, p: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.secret = secrets.randbits(62)
        first, size, logits = super().confirm(x, y, target, p, eps)
        self.secret = secrets.randbits(62)
        second, _, _ = super().confirm(x, y, target, p, eps)
        return first & second, torch.where(first & second, size, torch.inf), logits

    def _votes(self, x: Tensor) -> Tensor:
        x = x.to(self.classifier.device)
        return self.classifier.tally(x, streams.child(streams.content_keys(x), self.secret))


def load_subject(entry: Entry, data: Data, *, device: str = "auto", allow_code: bool = False, limits: Limits = LIMITS) -> Subject:
    """The submitted model, its digest checked; raises BadInput, or Missing where it needs --allow-code, is not here or too large."""
    about = entry.manifest["model"]
    if about["file"] is not None:
        limits.space(COPIES * float(next(one["size"] for one in entry.manifest["files"] if one["path"] == MODEL)), "reading its weights")
        classifier = model_of_bytes(entry.read(MODEL), str(about["spec"]), device, limits, len(data))
    else:
        spec = str(about["spec"])
        if not allow_code and not _BUNDLED.fullmatch(spec):
            raise Missing(
                f"the model of {entry.name} is only named ({spec}): give --allow-code if you trust what this name stands for here"
            )
        classifier = load_model(spec, device=pick_device(device), allow_code=allow_code)
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


def model_of_bytes(raw: bytes, spec: str, device: str, limits: Limits = LIMITS, images: int = 1) -> Classifier:
    """A Classifier from the bytes of a safetensors file that a stranger may have made; raises BadInput.

    One that would cost more than the limits for so many `images` raises TooMuch before it is asked anything.
    """
    header = int.from_bytes(raw[:8], "little") if len(raw) >= 8 else 0
    if not 2 <= header <= min(HEADER, len(raw) - 8):
        what = "is a Python pickle, which can run code when read" if raw[:1] == b"\x80" else "is no safetensors file"
        raise BadInput(f"the submitted model {what}: nothing of it is read")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL
        path.write_bytes(raw)
        try:
            checkpoint = read_checkpoint(path)
            classifier = checkpoint_model(checkpoint, spec, spec, pick_device(device))  # no larger than its file, and not asked yet
            limits.network(checkpoint.metadata, images)
        except BadInput as problem:
            raise BadInput(f"the submitted model: {str(problem).replace(str(path), MODEL)}") from problem
        except (RuntimeError, TypeError, ValueError, OverflowError, MemoryError, RecursionError) as problem:
            line = (str(problem).splitlines() or [""])[0][:120]
            raise BadInput(f"the submitted model cannot be built ({type(problem).__name__}: {line})") from problem
    return classifier


def identity(classifier: Classifier) -> str:
    """What makes a model the same whatever its file is called and says: structure, weights, normalisation."""
    made = hashlib.sha256(repr(classifier.original).encode())
    if isinstance(classifier.original, nn.Module):
        made.update(state_digest(classifier.original).encode())
    made.update(repr((classifier.mean.flatten().tolist(), classifier.std.flatten().tolist())).encode())
    return made.hexdigest() if isinstance(classifier.original, nn.Module) else ""


def weights_file(spec: str, given: str | None) -> Path | None:
    """The safetensors file behind a run's model, None where it has none."""
    from robustkit.filetypes import content, existing
    from robustkit.models.load import ZOO

    if given is not None:
        path = existing(given)
        if path is None:
            raise Missing(f"there is no model file {given} (looked from {os.getcwd()})")
        return path
    path = ZOO / f"{spec.removeprefix('zoo:')}.safetensors" if spec.startswith("zoo:") else existing(spec)
    return path if path is not None and path.is_file() and content(path) == "safetensors" else None


def positions(index: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Positions of dataset indices, -1 for those that are not there."""
    order = np.argsort(index, kind="stable")
    at = np.clip(np.searchsorted(index[order], wanted), 0, len(index) - 1)
    found = order[at]
    return np.where(index[found] == wanted, found, -1)
