"""The columns and witnesses of a run against its data and its model: everything that a forward pass can tell again."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from robustkit.core.comparisons import close_call, margins
from robustkit.data import Data
from robustkit.evaluation.check_columns import first, told
from robustkit.evaluation.judge_witnesses import Arrays, judge_rows, parameters_of, typed
from robustkit.evaluation.subject import Subject, batches
from robustkit.numerics import wide
from robustkit.threats import Threat
from robustkit.verdict.evidence import Ints

NEAR = 1e-3
"""Share by which another machine may see another confidence or clean margin."""


def check_samples(own: Arrays, data: Data, labels: str, who: str = "the data") -> Iterator[str]:
    """The samples of the data, each once, with the right label."""
    if len(own["index"]) != len(data):
        yield f"there are {len(own['index'])} rows, {who} has {len(data)} samples"
        return
    yield from told("index", own["index"], data.index.numpy(), who)
    label = own["predicted"] if labels == "predicted" else data.y.numpy()
    yield from told("label", own["label"], label, who)


def check_witness_rows(own: Arrays, held: Arrays, where: str) -> Iterator[str]:
    """Every broken sample has its witness, which says of itself what the columns say."""
    at = np.flatnonzero(np.isfinite(own["upper"]) & (own["upper"] > 0))
    if not held:
        if len(at):
            yield f"{len(at)} samples are called broken, and there is no witness"
        return
    position = typed(held, "position", "int64", (None,), where)
    count = len(position)
    if not np.array_equal(position, at):
        odd = sorted(set(position.tolist()) ^ set(at.tolist()))
        yield f"the witnesses are not those of the {len(at)} broken samples ({count} witnesses; differing samples: {odd[:5]})"
        return
    yield from told("witness index", typed(held, "index", "int64", (count,), where), own["index"][at], "the columns")
    yield from told("witness stage", typed(held, "stage", "int64", (count,), where), own["upper_stage"][at], "the columns")
    yield from told("witness size", typed(held, "size", "float64", (count,), where), own["upper"][at], "the columns")


def check_witness_images(own: Arrays, held: Arrays, data: Data, threat: Threat, where: str) -> Iterator[str]:
    """Each witness made again from its parameters: its size by the threat's own measure, its box, the stored image."""
    at = typed(held, "position", "int64", (None,), where)
    shape = tuple(threat.zero(data.images(slice(0, 1))).shape[1:])
    p = torch.from_numpy(typed(held, "parameters", "float32", (len(at), *shape), where))
    stored = typed(held, "image", "float32", (len(at), *data.shape), where) if "image" in held else None
    for rows in batches(len(at), data):
        mine = torch.from_numpy(at[rows])
        x, q = data.images(mine), p[rows]
        finite = torch.isfinite(q).flatten(1).all(1)
        q = torch.where(wide(finite, q), q, torch.zeros_like(q))
        image, size = threat.apply(x, q), threat.size(x, q)
        boxed = ((image >= 0) & (image <= 1)).flatten(1).all(1)
        upper = torch.from_numpy(own["upper"][at[rows]])
        same = (size - upper).abs() <= 1e-9 * (1 + size.abs())
        for place in torch.nonzero(~(finite & boxed & same))[:3, 0].tolist():
            why = (
                "its parameters are not finite" if not finite[place] else "its image leaves the box [0,1]" if not boxed[place]
                else f"its size is {float(size[place]):.9g}, the columns say {float(upper[place]):.9g}"
            )  # fmt: skip
            yield f"witness of sample {int(mine[place])}: {why}"
        if stored is not None:
            off = (torch.from_numpy(stored[rows]) - image).abs().flatten(1).amax(1)
            bad = ~(off <= 1e-6) & finite
            if bool(bad.any()):
                place = int(bad.nonzero()[0, 0])
                yield (
                    f"witness of sample {int(mine[place])}: its stored image differs from the one that its parameters make "
                    f"by {float(off[place]):.3g} ({int(bad.sum())} such)"
                )


class Answers:
    """The model asked again, about the samples and about the witnesses."""

    def __init__(self, subject: Subject, own: Arrays) -> None:
        self.subject, self.own = subject, own
        self.judge = subject.judge
        self.judged = 0
        """Witnesses judged so far."""

    @cached_property
    def logits(self) -> Tensor:
        """(N,K) clean logits, computed again."""
        data, device = self.subject.data, self.subject.classifier.device
        return torch.cat([self.judge.logits(data.images(rows).to(device)).cpu() for rows in self.subject.batches(len(data))])

    def clean(self) -> Iterator[str]:
        """The model's clean answers."""
        own, data, logits = self.own, self.subject.data, self.logits
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
        largest = logits.nan_to_num(0, 0, 0).gather(1, torch.stack([label, predicted], 1)).abs().amax(1).double().numpy()
        scale = 1 + np.where(np.isfinite(margin), np.abs(margin), 0) + 2**-10 * largest
        yield from self._close("clean_margin", own["clean_margin"], margin, scale)
        confidence = logits.double().softmax(1).gather(1, label[:, None])[:, 0].numpy()
        yield from self._close("confidence", own["confidence"], confidence, 1.0)

    def _close(self, name: str, own: np.ndarray, found: np.ndarray, scale: np.ndarray | float) -> Iterator[str]:
        with np.errstate(invalid="ignore"):
            off = ~(np.abs(own - found) <= NEAR * scale) & np.isfinite(found)
        if bool(off.any()):
            yield f"sample {first(off)}: {name} is {own[off][0]:.6g}, the model gives {found[off][0]:.6g}"

    def _correct(self, rows: slice, label: Tensor) -> Tensor:
        x = self.subject.data.images(rows).to(self.subject.classifier.device)
        return self.judge.correct(x, label[rows].to(x.device), self.logits[rows].to(x.device)).cpu()

    def witnesses(self, held: Arrays, where: str) -> Iterator[str]:
        """Every witness breaks its sample at the size that is claimed."""
        own = self.own
        at: Ints = typed(held, "position", "int64", (None,), where)
        p = parameters_of(held, self.subject, len(at), where)
        most, label = torch.from_numpy(own["upper"][at]), torch.from_numpy(own["label"])
        verified, measured, predicted, why = judge_rows(self.subject, at, p, most, label, stored=True)
        self.judged += len(at)
        for place in np.flatnonzero(~verified)[:5].tolist():
            yield f"witness of sample {int(at[place])}: {why[place]}"
        off = verified & ~(np.abs(measured - own["upper"][at]) <= 1e-9 * (1 + np.abs(measured)))
        if bool(off.any()):
            place = first(off)
            yield f"witness of sample {int(at[place])}: its size is {measured[place]:.9g}, the columns say {own['upper'][at[place]]:.9g}"
        clear = verified & (predicted >= 0)
        found = np.where(clear, predicted, own["adversarial_class"][at])
        off = found != own["adversarial_class"][at]
        if bool(off.any()):
            place = first(off)
            yield (
                f"adversarial_class of row {int(at[place])} is {own['adversarial_class'][at[place]]}, "
                f"the model says {found[place]} ({int(off.sum())} such)"
            )
