"""Many claimed witnesses against one model: each gets a verdict, and where it is no witness the reason."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustkit.core.comparisons import close_call, within
from robustkit.leaderboard.files import Arrays, typed
from robustkit.leaderboard.subject import Subject
from robustkit.numerics import wide
from robustkit.verdict.evidence import Ints
from robustkit.verdict.judge import Judge


def parameters_of(held: Arrays, subject: Subject, count: int, where: str) -> Tensor:
    """(M,...) float32 parameters of the shape that the threat has; raises BadInput."""
    shape = tuple(subject.judge.threat.zero(subject.data.images(slice(0, 1))).shape[1:])
    return torch.from_numpy(typed(held, "parameters", "float32", (count, *shape), where))


def judge_rows(
    subject: Subject, at: Ints, p: Tensor, eps: Tensor, label: Tensor, judge: Judge | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.float64], Ints, list[str]]:
    """Judge claimed witnesses at positions `at`.

    Args:
        p: (M,...) parameters; eps: (M,) float64 budgets, rounded down; label: (N,) of all samples.

    Returns:
        verified (M,), size (M,) as measured, the model's answer (M,), and why not, one text each.
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
        near = (
            ~verified
            & finite
            & inside
            & boxed
            & close_call(judge.goal.seen(logits, y), subject.classifier.logits_dtype)
            & (not subject.classifier.random)
        )
        if bool(near.any()):  # another machine rounds otherwise: float64 decides
            redone = judge.goal.margin(subject.classifier.logits64(image[near]), y[near], target[near])
            verified = verified.index_put((near.nonzero()[:, 0],), redone > 0)
        verified &= finite
        good.append(verified.cpu())
        sizes.append(size.cpu())
        answers.append(logits.nan_to_num(-torch.inf).argmax(1).cpu())
        for ok, number_ok, box_ok, in_budget, far, most in zip(*(v.tolist() for v in (verified, finite, boxed, inside, size, budget))):
            why.append(
                "" if ok else "it is not finite" if not number_ok else "its image leaves the box [0,1]" if not box_ok
                else f"its size {far:.9g} is above {most:.9g}" if not in_budget else "the model answers correctly"
            )  # fmt: skip
    if not good:
        return np.zeros(0, bool), np.zeros(0), np.zeros(0, np.int64), []
    return torch.cat(good).numpy(), torch.cat(sizes).numpy(), torch.cat(answers).numpy(), why
