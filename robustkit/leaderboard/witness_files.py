"""Witnesses as a challenger hands them in: a run folder, or a safetensors file of parameters or images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustkit.core.comparisons import float_below
from robustkit.errors import BadInput, Missing
from robustkit.leaderboard.definition import Definition
from robustkit.leaderboard.documents import parse
from robustkit.leaderboard.files import Arrays, read_file, tensors, typed
from robustkit.leaderboard.judging import parameters_of
from robustkit.leaderboard.subject import Subject, positions
from robustkit.spec import number
from robustkit.threats import load_threat
from robustkit.verdict.evidence import Ints

_WITNESSES = "witnesses.safetensors"
_MOST = 4
"""Witnesses of every sample that a file may hold: more are not read."""


def read_witnesses(definition: Definition, subject: Subject, path: Path) -> tuple[Ints, Tensor, Counter[str]]:
    """Positions, parameters, and why others were left out; raises BadInput or Missing."""
    if path.is_dir():
        record = parse(read_file(path / "run.json", 1 << 24), str(path / "run.json"))
        told = record.get("specification")
        told = told if isinstance(told, dict) else {}
        try:
            same = load_threat(str(told.get("threat"))).family == definition.load_threat().family
        except BadInput:
            same = False
        if not same:
            raise BadInput(f"{path} is about threat {str(told.get('threat'))[:60]}, the board about {definition.threat}")
        if not (path / _WITNESSES).exists():
            raise BadInput(f"{path} holds no witness: nothing was broken there")
        origin = (told.get("data") or {}).get("digest") if isinstance(told.get("data"), dict) else None
        held = tensors(read_file(path / _WITNESSES, _MOST * definition.most_witnesses), str(path / _WITNESSES))
        if origin != definition.data["digest"]:
            raise BadInput(f"{path} is about other data than the board ({definition.data['spec']})")
        held.pop("position", None)
        held.pop("image", None)
    elif path.exists():
        held = tensors(read_file(path.resolve(), _MOST * definition.most_witnesses), str(path))
    else:
        raise Missing(f"there is no {path}: give a run folder or a safetensors file of witnesses")
    return _rows(subject, held, str(path))


def _rows(subject: Subject, held: Arrays, where: str) -> tuple[Ints, Tensor, Counter[str]]:
    count = len(subject.data)
    if "position" in held:
        at = typed(held, "position", "int64", (None,), where)
        at = np.where((at >= 0) & (at < count), at, -1)
    else:
        at = positions(subject.data.index.numpy(), typed(held, "index", "int64", (None,), where))
    refused: Counter[str] = Counter({"no sample of the board": int((at < 0).sum())})
    if "parameters" in held:
        p = parameters_of(held, subject, len(at), where)
        here = at >= 0
        return at[here], p[torch.from_numpy(here)], refused
    image = torch.from_numpy(typed(held, "image", "float32", (len(at), *subject.data.shape), where))
    snap = getattr(subject.judge.threat, "snap", None)
    if snap is None:
        raise BadInput(f"{where} holds images: witnesses of threat {subject.definition.threat} need `parameters`")
    budget = float_below(number(subject.definition.eps))
    kept, found = [], []
    for rows in subject.batches(len(at)):
        where_ = torch.from_numpy(at[rows])
        x, given = subject.data.images(where_.clamp(min=0)), image[rows]
        finite = torch.isfinite(given).flatten(1).all(1)
        boxed = ((given >= -1e-6) & (given <= 1 + 1e-6)).flatten(1).all(1)
        near = subject.judge.threat.size(x, torch.nan_to_num(given) - x) <= budget * (1 + 1e-5) + 1e-6
        known = where_ >= 0
        refused["it is not finite"] += int((known & ~finite).sum())
        refused["its image leaves the box [0,1]"] += int((known & finite & ~boxed).sum())
        refused["it is outside the budget"] += int((known & finite & boxed & ~near).sum())
        good = known & finite & boxed & near
        kept.append(where_[good])
        found.append(snap(x[good], given[good], torch.full((int(good.sum()),), budget, dtype=torch.float64)))
    if not kept:
        return at[:0], image[:0], refused
    return torch.cat(kept).numpy(), torch.cat(found), refused
