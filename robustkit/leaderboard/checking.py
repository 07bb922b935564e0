"""Level `evidence`: clean answers, witnesses and figures computed again; each disagreement told exactly.

The checks themselves stand in `robustkit.evaluation`, where `robustkit verify` uses them too; here is what a board adds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from robustkit.evaluation.check_answers import Answers, check_samples, check_witness_rows
from robustkit.evaluation.check_columns import check_figures, check_intervals, first
from robustkit.evaluation.check_record import check_record
from robustkit.evaluation.judge_witnesses import judge_rows, parameters_of, typed
from robustkit.leaderboard.challenges import Challenge
from robustkit.leaderboard.files import Arrays
from robustkit.leaderboard.manifest import Entry
from robustkit.leaderboard.question import question
from robustkit.leaderboard.subject import Subject


class Check:
    """One entry against one loaded model. `all` yields problems; nothing is written."""

    def __init__(self, entry: Entry, subject: Subject) -> None:
        self.entry, self.subject = entry, subject
        self.columns: Arrays = entry.columns
        self.answers = Answers(subject, self.columns)
        self.challenged = 0

    @property
    def judged(self) -> int:
        """Witnesses judged so far."""
        return self.answers.judged + self.challenged

    def all(self) -> Iterator[str]:
        """Every disagreement, cheapest checks first; the model is not asked about samples or labels that are not the board's."""
        entry, own, subject = self.entry, self.columns, self.subject
        yield from self.question()
        wrong = [*check_samples(own, subject.data, subject.definition.labels, "the board's data")]
        wrong += check_intervals(own, entry.summary["stages"], subject.classifier.classes or 0)
        yield from wrong
        yield from check_figures(entry.summary, own)
        if entry.summary["model"]["parameters"] != subject.classifier.parameters:
            yield f"summary.json: the model has {subject.classifier.parameters} parameters, not {entry.summary['model']['parameters']}"
        if any("label" in problem or "index" in problem for problem in wrong):
            return
        yield from self.answers.clean()
        held, where = entry.witnesses(), f"{entry.id}/witnesses.safetensors"
        odd = [*check_witness_rows(own, held, where)]
        yield from odd
        if held and not any("are not those of" in problem for problem in odd):
            yield from self.answers.witnesses(held, where)

    def question(self) -> Iterator[str]:
        """The run is about the board's question, finished, and has run what the board demands."""
        yield from question(self.entry.record, self.entry.summary, self.subject)
        yield from check_record(self.entry.record, self.entry.summary)
        if self.entry.summary["model"]["sha256"] != self.entry.manifest["model"]["sha256"]:
            yield "summary.json is about another model (sha256) than the manifest"

    def challenge(self, challenge: Challenge) -> Iterator[str]:
        """The witnesses of an accepted challenge, each within the board's budget."""
        held, where = challenge.witnesses(), f"challenge {challenge.id}"
        at = typed(held, "position", "int64", (None,), where)
        if len(at) == 0 or bool((np.diff(at) <= 0).any()) or at[0] < 0 or at[-1] >= len(self.subject.data):
            yield f"{where}: its positions are not ascending positions of the board's samples"
            return
        size = typed(held, "size", "float64", (len(at),), where)
        p = parameters_of(held, self.subject, len(at), where)
        eps = torch.full((len(at),), challenge.budget, dtype=torch.float64)
        verified, measured, _, why = judge_rows(self.subject, at, p, eps, torch.from_numpy(self.columns["label"]), stored=True)
        self.challenged += len(at)
        for place in np.flatnonzero(~verified)[:5].tolist():
            yield f"{where}, sample {int(at[place])}: {why[place]}"
        off = verified & ~(np.abs(measured - size) <= 1e-9 * (1 + np.abs(measured)))
        if bool(off.any()):
            yield f"{where}, sample {int(at[first(off)])}: its size is {measured[off][0]:.9g}, the file says {size[off][0]:.9g}"
