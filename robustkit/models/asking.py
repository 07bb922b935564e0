"""Models that look at how they are asked: at the batch, at what they were asked before, at the gradient mode, at the dtype.

An image has one answer, whatever is asked beside it, before it, and how. Where it has not, attacks, Judge and
certifiers speak of different models, and no figure is about the one that is deployed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from robustkit.classifier import Classifier, frozen_copy
from robustkit.core.answers import Answers, apart
from robustkit.core.state import changed, snapshot
from robustkit.errors import BadInput, first_line
from robustkit.memory import out_of_memory
from robustkit.numerics import PAD, exact_mode, pad_rows, padded

CLEARLY = 0.1
"""Share of the usual gap by which no sound model moves a logit, whatever lies beside it in a batch."""

HARDLY = 0.01
"""Share by which a sound model moves none when nothing but the mode of autograd is another."""

OTHERWISE = 0.5
"""Share by which float64 moves a logit only where another function is computed: rounding by large offsets moves much."""

FEW = 4
"""Images that are asked alone before certifiers start, of models that may take seconds for each."""


@dataclass
class Asking:
    """One model asked about the same images in several ways."""

    classifier: Classifier
    x: Tensor
    """(R,C,H,W) images, on the classifier's device."""

    def ask(self, x: Tensor | None = None) -> Tensor:
        """(R,K) answers as verdicts are given: padded, without gradients."""
        x = self.x if x is None else x
        with exact_mode():
            return self.classifier.logits(pad_rows(x, padded(len(x))))[: len(x)]

    @cached_property
    def answers(self) -> Answers:
        """What others are compared with."""
        return Answers(self.ask(), self.classifier.half)

    def repeats(self) -> str:
        """What two forwards of the same images disagree on, or what is drawn in them; "" where nothing."""
        first, state = self.answers, _drawn()
        other = self.ask()
        if bool((first.decided_otherwise(other) | first.moved(other, HARDLY)).any()):
            largest = float(apart(first.logits, other).max())
            return f"two forwards of the same images differ by {largest:.3g}: the model is random or keeps state"
        if _drawn() != state:
            return "a forward draws random numbers, although it did not change its answer here"
        return ""

    def batch(self, rows: int, beside: Tensor, single: int) -> tuple[str, str]:
        """(status, what changes with the batch): error where answers do, warn where one image alone cannot be asked.

        Args:
            rows: of a batch of the run.
            beside: (M,C,H,W) other images, to fill such a batch with.
            single: how many images, the first ones, are also asked alone.
        """
        largest = Answers(self._in_batches(self.x, rows, beside), self.classifier.half)
        other = PAD if rows != PAD else 2 * PAD
        smaller = self._in_batches(self.x.flip(0), other, self.x).flip(0)
        changes = self._changes(largest, smaller, f"at another place of a batch of {other}, than in one of {rows}")
        if changes:
            return "error", changes
        try:
            alone = self._alone(single)
        except Exception as problem:  # whatever a user's forward raises
            if out_of_memory(problem):
                raise
            return "warn", f"no image can be asked alone, in a batch of 1: {first_line(problem)}"
        changes = self._changes(Answers(largest.logits[:single], largest.half), alone, f"in a batch of 1, than in one of {rows}")
        return ("error", changes) if changes else ("pass", f"the same answers in batches of {rows}, of {other} and of 1")

    def _changes(self, before: Answers, after: Tensor, where: str) -> str:
        decided, moved = before.decided_otherwise(after), before.moved(after, CLEARLY)
        if not bool((decided | moved).any()):
            return ""
        what, count = ("another decision", decided) if bool(decided.any()) else ("other logits", moved)
        return f"{int(count.sum())} of {len(after)} images get {what} {where}"

    def _in_batches(self, x: Tensor, rows: int, beside: Tensor) -> Tensor:
        """(R,K) answers in batches of so many rows, filled up with other images behind them."""
        found = []
        for part in torch.split(x, rows):
            other = beside[torch.arange(rows - len(part), device=x.device) % len(beside)] if len(part) < rows else part[:0]
            with exact_mode():
                found.append(self.classifier.logits(torch.cat([part, other]))[: len(part)])
        return torch.cat(found)

    def _alone(self, single: int) -> Tensor:
        with exact_mode():
            answers = [self.classifier.logits(row) for row in torch.split(self.x[:single], 1)]
        if any(answer.shape != answers[0].shape or answer.dim() != 2 for answer in answers):
            raise ValueError(f"it returns {tuple(answers[0].shape)} for one image")
        return torch.cat(answers)

    def remembers(self) -> list[str]:
        """Where the model keeps something else after a second forward of the same images than after the first."""
        model = self.classifier.module
        self.ask()
        before = snapshot(model)
        self.ask()
        return changed(before, snapshot(model))

    def looks_at(self) -> str:
        """What other than the image the answer depends on: calls, gradient mode, inference mode, dtype; "" where on nothing."""
        first = self.answers
        for what, how, share in self._ways():
            try:
                answer = how().to(first.logits.device)
            except Exception as problem:  # a way in which the model cannot be asked
                if out_of_memory(problem):
                    raise
                continue
            count = int((first.decided_otherwise(answer) | first.moved(answer, share)).sum())
            single = 0.05 * len(self.x) if share == OTHERWISE else 0  # rounding in another dtype may move single ones
            if count > single:
                return f"{count} of {len(self.x)} images get another answer {what}"
        return ""

    def _ways(self) -> Iterator[tuple[str, Callable[[], Tensor], float]]:
        yield "with gradients than without", self._with_gradients, HARDLY
        yield "in inference_mode than without", self._in_inference_mode, HARDLY
        if isinstance(self.classifier.module, nn.Module):
            yield "in float64 than in float32", lambda: self.classifier.logits64(self.x), OTHERWISE
        yield "after more calls than before", self.ask, HARDLY

    def _with_gradients(self) -> Tensor:
        with exact_mode(), torch.enable_grad():
            fed = pad_rows(self.x, padded(len(self.x))).clone().requires_grad_()
            return self._through_copy(fed)

    def _in_inference_mode(self) -> Tensor:
        with exact_mode(), torch.inference_mode():
            return self._through_copy(pad_rows(self.x, padded(len(self.x)))).clone()

    def _through_copy(self, fed: Tensor) -> Tensor:
        """Answers of a copy, so that a cache filled here, in another mode, is not found later."""
        module = self.classifier.module
        network = frozen_copy(module) if isinstance(module, nn.Module) else module
        return self.classifier.through(network, fed)[: len(self.x)].detach().float()


def refuse(classifier: Classifier, x: Tensor) -> None:
    """Raises BadInput where no proof can be about the model as deployed, asked about the first of images x (R,C,H,W):
    layers in training mode, state, answers that depend on how they are asked for."""
    refuse_training_mode(classifier)
    refuse_other_answers(classifier, x)


def refuse_other_answers(classifier: Classifier, x: Tensor) -> None:
    """Raises BadInput where a model that is asked in eval mode keeps state, or depends on how it is asked."""
    why = objection(classifier, x[:PAD])
    if why:
        raise BadInput(f"{why}: no certificate can be about such a model")


def objection(classifier: Classifier, x: Tensor) -> str:
    """Why nothing can be proven of a model; "" where nothing speaks against it."""
    if classifier.random:
        return ""
    try:
        return _objection(Asking(classifier, x.to(classifier.device)))
    except Exception as problem:  # whatever a user's forward raises
        if out_of_memory(problem):
            raise
        return f"the model fails on {len(x)} images ({first_line(problem)})"


def _objection(asking: Asking) -> str:
    kept = asking.remembers()
    if kept or asking.repeats():
        return left_behind(kept) if kept else asking.repeats()
    status, message = asking.batch(2 * PAD, asking.x, single=FEW)
    return message if status == "error" else asking.looks_at()


def refuse_training_mode(classifier: Classifier) -> None:
    """Raises BadInput where layers were handed over in training mode, or a forward sets them so."""
    if classifier.in_training:
        raise BadInput(f"in training mode, where something else is computed: {few(classifier.in_training)}: call model.eval() first")
    if classifier.switched:
        layers = few(classifier.switched)
        raise BadInput(f"a forward sets {layers} to training mode, where something else is computed: leave train() out of it")


def few(names: Sequence[str]) -> str:
    """The first of many names, and how many are left out."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def left_behind(kept: list[str]) -> str:
    """In words, that a forward keeps state in these places."""
    return f"a forward leaves {few(kept)} otherwise than an earlier forward of the same images"


def _drawn() -> tuple[object, ...]:
    """The state of the generators that a forward may draw from."""
    cuda = [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else []
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), repr(np.random.get_state(legacy=False)), *cuda
