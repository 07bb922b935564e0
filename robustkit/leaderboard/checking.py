"""Level `evidence`: clean answers, witnesses and figures computed again; each disagreement told exactly."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustkit.core.comparisons import close_call, margins
from robustkit.leaderboard.challenges import Challenge
from robustkit.leaderboard.files import Arrays, typed
from robustkit.leaderboard.judging import judge_rows, parameters_of
from robustkit.leaderboard.manifest import Entry
from robustkit.leaderboard.question import question
from robustkit.leaderboard.subject import Subject
from robustkit.spec import number
from robustkit.summary import accuracies, curve, interval
from robustkit.verdict.evidence import Evidence, Ints


class Check:
    """One entry against one loaded model. `all` yields problems; nothing is written."""

    def __init__(self, entry: Entry, subject: Subject) -> None:
        self.entry, self.subject = entry, subject
        self.columns: Arrays = entry.columns
        self.judge = subject.judge
        self.judged = 0
        """Witnesses judged so far."""

    def all(self) -> Iterator[str]:
        """Every disagreement, cheapest checks first; the model is not asked about samples or labels that are not the board's."""
        yield from self.question()
        wrong = [*self.samples(), *self.intervals()]
        yield from wrong
        yield from self.figures()
        if not any("label" in problem or "index" in problem for problem in wrong):
            yield from self.clean()
            yield from self.witnesses()

    # what was asked

    def question(self) -> Iterator[str]:
        """The run is about the board's question, finished, and has run what the board demands."""
        yield from question(self.entry.record, self.entry.summary, self.subject)
        if self.entry.summary["model"]["sha256"] != self.entry.manifest["model"]["sha256"]:
            yield "summary.json is about another model (sha256) than the manifest"
        if self.entry.record["specification"]["model"]["sha256"] != self.entry.manifest["model"]["sha256"]:
            yield "run.json is about another model (sha256) than the manifest"

    # columns against themselves and the data

    def samples(self) -> Iterator[str]:
        """The board's samples, each once, with the right label."""
        data, own = self.subject.data, self.columns
        yield from told("index", own["index"], data.index.numpy(), "the board's data")
        label = own["predicted"] if self.subject.definition.labels == "predicted" else data.y.numpy()
        yield from told("label", own["label"], label, "the board's data")

    def intervals(self) -> Iterator[str]:
        """lower < upper everywhere, and every end names the stage it comes from."""
        own, stages = self.columns, self.entry.summary["stages"]
        upper, lower = own["upper"], own["lower"]
        correct, broken = upper > 0, np.isfinite(upper) & (upper > 0)
        kinds = np.array([stage["kind"] for stage in stages] + [""])
        rules = [
            ("upper is negative", ~(upper >= 0)),
            ("lower reaches upper: a certificate is contradicted", correct & (lower >= upper)),
            ("lower is not -inf although the clean answer is wrong", ~correct & (lower != -np.inf)),
            ("lower is below 0 or infinite although the clean answer is right", correct & ~((lower >= 0) & np.isfinite(lower))),
            ("a broken sample names no attack", broken & (_kind(kinds, own["upper_stage"]) != "attack")),
            ("an unbroken sample names an attack", ~broken & (own["upper_stage"] != -1)),
            ("a certificate names no certifier", correct & (lower > 0) & (_kind(kinds, own["lower_stage"]) != "certifier")),
            ("the label has no class", (own["label"] < 0) | (own["label"] >= (self.subject.classifier.classes or 0))),
        ]
        for kind in ("statistical", "conditional"):
            weak = own[f"lower_{kind}"]
            rules.append((f"lower_{kind} is no radius", (weak != -np.inf) & ~((weak >= 0) & np.isfinite(weak))))
        for what, where in rules:
            if bool(where.any()):
                yield f"sample {_first(where)}: {what}"

    def figures(self) -> Iterator[str]:
        """The summary, read off the columns once more."""
        summary, evidence = self.entry.summary, as_evidence(self.columns)
        budgets = sorted(number(text) for text in summary["eps"])
        count = len(evidence)
        top: dict[str, Any] = accuracies(evidence, budgets[-1])
        top["interval95"] = {key: interval(top[key], count) for key in ("clean_accuracy", "robust_accuracy", "certified_accuracy")}
        top["population95"] = [interval(top["certified_accuracy"], count)[0], interval(top["robust_accuracy"], count)[1]]
        top["curve"] = curve(evidence, budgets)
        for key, value in top.items():
            if not _near(summary[key], value):
                yield f"summary.json: {key} is {_shown(summary[key])}, the columns give {_shown(value)}"
        if summary["data"]["n"] != count:
            yield f"summary.json: n is {summary['data']['n']}, there are {count} samples"
        if summary["model"]["parameters"] != self.subject.classifier.parameters:
            yield f"summary.json: the model has {self.subject.classifier.parameters} parameters, not {summary['model']['parameters']}"
        at = [
            stage["robust_accuracy"]
            for stage in summary["stages"]
            if stage["eps"] == summary["eps"][-1] and stage["robust_accuracy"] is not None
        ]
        if at and abs(at[-1] - top["robust_accuracy"]) > 1e-9:
            yield f"summary.json: the last stage leaves {at[-1]}, the columns give {top['robust_accuracy']}"

    # columns against the model

    @cached_property
    def logits(self) -> Tensor:
        """(N,K) clean logits, computed again."""
        data = self.subject.data
        return torch.cat(
            [self.judge.logits(data.images(rows).to(self.subject.classifier.device)).cpu() for rows in self.subject.batches(len(data))]
        )

    def clean(self) -> Iterator[str]:
        """The model's clean answers."""
        own, data = self.columns, self.subject.data
        logits = self.logits
        predicted = logits.nan_to_num(-torch.inf).argmax(1)
        label = torch.from_numpy(own["label"])
        right = torch.cat([self._correct(rows, label) for rows in self.subject.batches(len(data))]).numpy()
        margin = -margins(logits, label).double().numpy()
        targets = self.subject.targets(label)
        if self.judge.goal.targeted:
            right &= (predicted != targets).numpy()
        clear = ~close_call(logits, self.subject.classifier.logits_dtype).numpy()  # nearer than this another machine may round otherwise
        yield from told("predicted", own["predicted"], predicted.numpy(), "the model", clear)
        yield from told("clean and correct", own["upper"] > 0, right, "the model", clear)
        scale = 1 + np.abs(margin)
        off = ~(np.abs(own["clean_margin"] - margin) <= 1e-3 * scale) & np.isfinite(margin)
        if bool(off.any()):
            yield f"sample {_first(off)}: clean_margin is {own['clean_margin'][off][0]:.6g}, the model gives {margin[off][0]:.6g}"
        confidence = logits.double().softmax(1).gather(1, label[:, None])[:, 0].numpy()
        off = ~(np.abs(own["confidence"] - confidence) <= 1e-3) & np.isfinite(confidence)
        if bool(off.any()):
            yield f"sample {_first(off)}: confidence is {own['confidence'][off][0]:.6g}, the model gives {confidence[off][0]:.6g}"

    def _correct(self, rows: slice, label: Tensor) -> Tensor:
        x = self.subject.data.images(rows).to(self.subject.classifier.device)
        return self.judge.correct(x, label[rows].to(x.device), self.logits[rows].to(x.device)).cpu()

    def witnesses(self) -> Iterator[str]:
        """Every broken sample has its witness, which breaks it at the size that is claimed."""
        own = self.columns
        at = np.flatnonzero(np.isfinite(own["upper"]) & (own["upper"] > 0))
        held = self.entry.witnesses()
        if not held:
            if len(at):
                yield f"{len(at)} samples are called broken, and there is no witness"
            return
        where = f"{self.entry.id}/witnesses.safetensors"
        position = typed(held, "position", "int64", (None,), where)
        count = len(position)
        if not np.array_equal(position, at):
            odd = sorted(set(position.tolist()) ^ set(at.tolist()))
            yield f"the witnesses are not those of the {len(at)} broken samples ({count} witnesses; differing samples: {odd[:5]})"
            return
        size, stage = typed(held, "size", "float64", (count,), where), typed(held, "stage", "int64", (count,), where)
        index = typed(held, "index", "int64", (count,), where)
        yield from told("witness index", index, own["index"][at], "the columns")
        yield from told("witness stage", stage, own["upper_stage"][at], "the columns")
        yield from told("witness size", size, own["upper"][at], "the columns")
        p = parameters_of(held, self.subject, count, where)
        verified, measured, predicted, why = judge_rows(
            self.subject, at, p, torch.from_numpy(own["upper"][at]), torch.from_numpy(own["label"])
        )
        self.judged += count
        for place in np.flatnonzero(~verified)[:5].tolist():
            yield f"witness of sample {int(at[place])}: {why[place]}"
        off = verified & ~(np.abs(measured - own["upper"][at]) <= 1e-9 * (1 + np.abs(measured)))
        if bool(off.any()):
            place = _first(off)
            yield f"witness of sample {int(at[place])}: its size is {measured[place]:.9g}, the columns say {own['upper'][at[place]]:.9g}"
        yield from told("adversarial_class", own["adversarial_class"][at], predicted, "the model", verified)

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
        verified, measured, _, why = judge_rows(self.subject, at, p, eps, torch.from_numpy(self.columns["label"]))
        self.judged += len(at)
        for place in np.flatnonzero(~verified)[:5].tolist():
            yield f"{where}, sample {int(at[place])}: {why[place]}"
        off = verified & ~(np.abs(measured - size) <= 1e-9 * (1 + np.abs(measured)))
        if bool(off.any()):
            yield f"{where}, sample {int(at[_first(off)])}: its size is {measured[off][0]:.9g}, the file says {size[off][0]:.9g}"


def as_evidence(columns: Arrays) -> Evidence:
    """Columns as the evidence they were written from."""
    own = [columns[key] for key in ("index", "label", "predicted", "confidence", "clean_margin")]
    found = Evidence(own[0], own[1], own[2], own[3], own[4], columns["upper"] > 0)
    found.upper, found.upper_stage = columns["upper"], columns["upper_stage"]
    found.adversarial_class, found.radius_covered = columns["adversarial_class"], columns["radius_covered"]
    found.proofs = {0: ("deterministic", np.where(columns["lower"] > 0, columns["lower"], -np.inf))}
    found.proofs |= {n + 1: (kind, columns[f"lower_{kind}"]) for n, kind in enumerate(("statistical", "conditional"))}
    return found


def told(name: str, own: NDArray[Any], wanted: NDArray[Any], who: str, only: NDArray[np.bool_] | None = None) -> Iterator[str]:
    """The first place where a column differs from what it should be, and how many there are."""
    off = own != wanted
    off = off if only is None else off & only
    if bool(off.any()):
        place = _first(off)
        yield f"{name} of row {place} is {own[place]}, {who} says {wanted[place]} ({int(off.sum())} such)"


def _kind(kinds: NDArray[Any], stage: Ints) -> NDArray[Any]:
    legal = (stage >= 0) & (stage < len(kinds) - 1)
    return kinds[np.where(legal, stage, len(kinds) - 1)]


def _first(where: NDArray[np.bool_]) -> int:
    return int(np.flatnonzero(where)[0])


def _near(told_: Any, found: Any) -> bool:
    if isinstance(found, dict):
        return isinstance(told_, dict) and all(key in told_ and _near(told_[key], value) for key, value in found.items())
    if isinstance(found, list):
        return isinstance(told_, list) and len(told_) == len(found) and all(_near(a, b) for a, b in zip(told_, found))
    if found is None or told_ is None:
        return found is told_
    return bool(abs(told_ - found) <= 1e-9)


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, (int, float)) else str(value)[:120]
