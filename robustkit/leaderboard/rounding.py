"""Witnesses that are so by rounding only: a proof in real arithmetic is silent about them, so they do not refute one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robustkit.leaderboard.manifest import Entry
from robustkit.leaderboard.subject import Subject
from robustkit.verdict.evidence import Bools, Ints


def rounded(entry: Entry, subject: Subject, at: Ints, p: Tensor) -> Bools:
    """(M,) which witnesses p (M,...) at positions `at` are so by rounding only, and meet a certificate in real arithmetic."""
    ask = getattr(subject.judge, "by_rounding", None)
    found = np.zeros(len(at), dtype=bool)
    stages, stage = entry.summary["stages"], entry.columns["lower_stage"][at]
    real = [0 <= one < len(stages) and stages[one].get("guarantee", "real-arithmetic") == "real-arithmetic" for one in stage.tolist()]
    some = np.flatnonzero((entry.columns["lower"][at] > 0) & np.array(real, dtype=bool))
    if ask is None or subject.classifier.random or not len(some):
        return found
    where = torch.from_numpy(at[some])
    label = torch.from_numpy(entry.columns["label"])
    x, y, target, q = subject.images(at[some]), label[where], subject.targets(label)[where], p[torch.from_numpy(some)]
    found[some] = ask(*(value.to(subject.classifier.device) for value in (x, y, target, q))).cpu().numpy()
    return found
