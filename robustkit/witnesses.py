"""The witnesses of a run: read from the units, re-made as images, written beside the summary."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from robustkit.data import Data
from robustkit.plan import Stage
from robustkit.store import UNIT, Arrays, Store, write_atomic, write_rows
from robustkit.threats import Threat
from robustkit.verdict.evidence import Evidence, Ints
from robustkit.verdict.judge import Judge

GALLERY = 24
GALLERY_BYTES = 1 << 27
"""What the pictures of a gallery may weigh: of large images fewer are kept."""


def holders(evidence: Evidence) -> Ints:
    """Positions that have a witness."""
    return np.flatnonzero(evidence.upper_stage >= 0)


def parameters(store: Store, stages: Sequence[Stage], evidence: Evidence, at: Ints) -> Tensor:
    """(M,...) threat parameters of the best witnesses at positions `at`, which all have one."""
    found: list[Tensor | None] = [None] * len(at)
    by_number = {s.number: s for s in stages}
    keys = list(zip(evidence.upper_stage[at].tolist(), (at // UNIT).tolist()))
    for stage, unit in sorted(set(keys)):
        arrays = store.read_unit(by_number[stage].id, unit)
        assert arrays is not None
        hits = arrays["position"][arrays["success"].astype(bool)]
        for i in (i for i, key in enumerate(keys) if key == (stage, unit)):
            found[i] = torch.from_numpy(arrays["parameters"][int(np.searchsorted(hits, at[i]))])
    return torch.stack([p for p in found if p is not None]) if found else torch.zeros(0)


def in_units(
    store: Store, stages: Sequence[Stage], evidence: Evidence, data: Data, threat: Threat
) -> Iterator[tuple[Ints, Tensor, Tensor, Tensor]]:
    """(positions, clean, parameters, adversarial images), unit by unit."""
    at = holders(evidence)
    for number in np.unique(at // UNIT):
        mine = at[at // UNIT == number]
        p = parameters(store, stages, evidence, mine)
        x = data.images(torch.from_numpy(mine))
        yield mine, x, p, threat.apply(x, p)


def write_witnesses(store: Store, stages: Sequence[Stage], evidence: Evidence, data: Data, threat: Threat) -> None:
    """witnesses.safetensors: index, parameter and re-made image of every witness, and its size."""
    at = holders(evidence)
    path = store.path("witnesses.safetensors")
    path.unlink(missing_ok=True)
    if not len(at):
        return
    shape = tuple(parameters(store, stages, evidence, at[:1]).shape[1:])
    shapes = {
        "index": ((len(at),), "I64"),
        "position": ((len(at),), "I64"),
        "size": ((len(at),), "F64"),
        "stage": ((len(at),), "I64"),
        "parameters": ((len(at), *shape), "F32"),
        "image": ((len(at), *data.shape), "F32"),
    }

    def parts() -> Iterator[Arrays]:
        for mine, _, p, image in in_units(store, stages, evidence, data, threat):
            yield {
                "index": evidence.index[mine],
                "position": mine,
                "size": evidence.upper[mine],
                "stage": evidence.upper_stage[mine] - 1,
                "parameters": p.numpy(),
                "image": image.numpy(),
            }

    write_rows(path, shapes, parts())


def write_gallery(store: Store, stages: Sequence[Stage], evidence: Evidence, data: Data, threat: Threat) -> None:
    """gallery.safetensors: up to 24 broken samples, spread evenly over the run."""
    at = holders(evidence)
    path = store.path("gallery.safetensors")
    path.unlink(missing_ok=True)
    if not len(at):
        return
    most = max(1, min(GALLERY, GALLERY_BYTES // (8 * math.prod(data.shape)), len(at)))
    at = at[np.unique(np.linspace(0, len(at) - 1, most).round().astype(np.int64))]
    x = data.images(torch.from_numpy(at))
    columns = {
        "clean": x.numpy(),
        "adversarial": threat.apply(x, parameters(store, stages, evidence, at)).numpy(),
        "label": evidence.label[at],
        "predicted": evidence.predicted[at],
        "adversarial_class": evidence.adversarial_class[at],
        "index": evidence.index[at],
        "stage": evidence.upper_stage[at] - 1,
    }
    write_atomic(path, safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in columns.items()}))


def eight_bit_share(store: Store, stages: Sequence[Stage], evidence: Evidence, data: Data, judge: Judge, targets: Tensor) -> float | None:
    """Share of witnesses that still fool the model, within its budget, when rounded to k/255.

    None where there is no witness, the data is not 8-bit, or the threat is not a norm.
    """
    threat = judge.threat
    snap = getattr(threat, "snap", None)
    if snap is None or not data.eight_bit or not len(holders(evidence)):
        return None
    kept = total = 0
    top = float(threat.eps)
    for mine, x, _, image in in_units(store, stages, evidence, data, threat):
        budget = torch.from_numpy(np.maximum(evidence.upper[mine], top))
        clean = torch.round(x * 255)
        steps = torch.round(image * 255) - clean
        if threat.name == "linf":
            most = torch.floor(budget * 255 + 1e-9).to(steps.dtype).view(-1, 1, 1, 1)
            steps = steps.clamp(-most, most)
        rounded = (clean + steps) / 255
        size = torch.linalg.vector_norm(((rounded - x).double()).flatten(1), ord=torch.inf if threat.name == "linf" else 2, dim=1)
        logits = judge.logits(rounded.to(judge.classifier.device)).cpu()
        label = torch.from_numpy(evidence.label[mine])
        fooled = judge.goal.margin(logits, label, targets[torch.from_numpy(mine)]) > 0
        kept += int((fooled & (size <= budget + 1e-6)).sum())
        total += len(mine)
    return kept / total
