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
    found = np.zeros(len(at), dtype=bool)
    stages, stage = entry.summary["stages"], entry.columns["lower_stage"][at]
    real = [0 <= one < len(stages) and stages[one].get("guarantee", "real-arithmetic") == "real-arithmetic" for one in stage.tolist()]
    some = np.flatnonzero((entry.columns["lower"][at] > 0) & np.array(real, dtype=bool))
    if subject.classifier.random:
        return found
    label = torch.from_numpy(entry.columns["label"])
    targets = subject.targets(label)
    for rows in subject.batches(len(some)):
        where, q = torch.from_numpy(at[some[rows]]), p[torch.from_numpy(some[rows])]
        found[some[rows]] = subject.judge.by_rounding(subject.data.images(where), label[where], targets[where], q).cpu().numpy()
    return found
