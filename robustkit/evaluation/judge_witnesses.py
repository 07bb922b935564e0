"""Many claimed witnesses against one model: each gets a verdict, and where it is no witness the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustkit.core.comparisons import close_call, within
from robustkit.errors import BadInput
from robustkit.evaluation.subject import Subject
from robustkit.numerics import wide
from robustkit.verdict.evidence import Ints
from robustkit.verdict.judge import Judge

Arrays = Mapping[str, NDArray[Any]]


def typed(held: Arrays, name: str, kind: str, shape: tuple[int | None, ...], where: str) -> NDArray[Any]:
    """One array of a file, its type and shape checked (None: any length); raises BadInput."""
    if name not in held:
        raise BadInput(f"{where} lacks {name}")
    array = held[name]
    fits = len(array.shape) == len(shape) and all(want is None or want == have for want, have in zip(shape, array.shape))
    if array.dtype != np.dtype(kind) or not fits:
        expected = "x".join("any" if size is None else str(size) for size in shape)
        raise BadInput(f"{where}: {name} is {array.dtype} of shape {array.shape}: expected {kind} of shape {expected}")
    return array


def parameters_of(held: Arrays, subject: Subject, count: int, where: str) -> Tensor:
    """(M,...) float32 parameters of the shape that the threat has; raises BadInput."""
    shape = tuple(subject.judge.threat.zero(subject.data.images(slice(0, 1))).shape[1:])
    return torch.from_numpy(typed(held, "parameters", "float32", (count, *shape), where))


def judge_rows(
    subject: Subject, at: Ints, p: Tensor, eps: Tensor, label: Tensor, judge: Judge | None = None, *, stored: bool = False
) -> tuple[NDArray[np.bool_], NDArray[np.float64], Ints, list[str]]:
    """Judge claimed witnesses at positions `at`.

    Args:
        p: (M,...) parameters; eps: (M,) float64 budgets, rounded down; label: (N,) of all samples.
        stored: they were judged before, perhaps on another machine: one whose two best logits are a close
            call there stays an error. A new claim has to err here.

    Returns:
        verified (M,), size (M,) as measured, the model's answer (M,) (-1 where `stored` and a close call), and why not,
        one text each.
    """
    judge = judge or subject.judge
    threat = judge.threat
    targets = subject.targets(label)
    good, sizes, answers, why = [], [], [], []
    for rows in subject.batches(len(at)):
        mine = torch.from_numpy(at[rows])
        x, q = subject.data.images(mine).to(subject.classifier.device), p[rows].to(subject.classifier.device)
        y, target, budget = (v.to(x.device) for v in (label[mine], targets[mine], eps[rows]))
        finite = torch.isfinite(q).flatten(1).all(1)
        q = torch.where(wide(finite, q), q, torch.zeros_like(q))
        verified, _, logits = judge.confirm(x, y, target, q, budget)
        image, size = threat.apply(x, q), threat.size(x, q)
        inside, boxed = within(size, budget), ((image >= 0) & (image <= 1)).flatten(1).all(1)
        answer = logits.nan_to_num(-torch.inf).argmax(1)
        if stored and not subject.classifier.random:
            verified = verified | (inside & boxed & almost_wrong(judge, logits, y, target))
            answer = torch.where(close_call(logits, subject.classifier.logits_dtype), -1, answer)
        verified = verified & finite
        good.append(verified.cpu())
        sizes.append(size.cpu())
        answers.append(answer.cpu())
        for ok, number_ok, box_ok, in_budget, far, most in zip(*(v.tolist() for v in (verified, finite, boxed, inside, size, budget))):
            why.append(
                "" if ok else "it is not finite" if not number_ok else "its image leaves the box [0,1]" if not box_ok
                else f"its size {far:.9g} is above {most:.9g}" if not in_budget else "the model answers correctly"
            )  # fmt: skip
    if not good:
        return np.zeros(0, bool), np.zeros(0), np.zeros(0, np.int64), []
    return torch.cat(good).numpy(), torch.cat(sizes).numpy(), torch.cat(answers).numpy(), why


def almost_wrong(judge: Judge, logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """(R,) bool: whether rounding alone may have turned an error into the right answer.

    The two best logits are a close call, and where the goal is a target, it is one of the two.
    """
    seen = judge.goal.seen(logits, y)
    close = close_call(seen, judge.classifier.logits_dtype)
    if judge.goal.targeted:
        second = seen.nan_to_num(-torch.inf).topk(2, dim=1).values[:, 1]
        close = close & (seen.gather(1, target[:, None])[:, 0] >= second)
    return close
