"""Pictures and the full report of an entry, made again from its witnesses and the board's data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from robustkit.data import Data
from robustkit.leaderboard.files import Arrays
from robustkit.leaderboard.manifest import Entry
from robustkit.report.gallery import Picture, pictures
from robustkit.report.page import render
from robustkit.report.runs import Run
from robustkit.store import write_atomic


def _chosen(entry: Entry, data: Data, most: int) -> Arrays:
    """A gallery of up to `most` witnesses, re-made from their parameters."""
    held = entry.witnesses()
    if not held:
        return {}
    own, count = entry.columns, len(held["position"])
    picked = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))
    at = held["position"][picked]
    x = data.images(torch.from_numpy(at))
    image = entry.definition.load_threat().apply(x, torch.from_numpy(held["parameters"][picked]))
    columns = {key: own[key][at] for key in ("label", "predicted", "adversarial_class", "index")}
    return {"clean": x.numpy(), "adversarial": image.numpy(), **columns, "stage": own["upper_stage"][at]}


def _run(entry: Entry, data: Data, most: int) -> Run:
    return Run(entry.folder, entry.record, entry.summary, entry.columns, _chosen(entry, data, most))


def gallery(entry: Entry, data: Data | None) -> list[Picture]:
    """Up to eight witnesses as pictures; none without the data."""
    try:
        return pictures(_run(entry, data, 8)) if data is not None else []
    except Exception:  # what a stranger's file may hold is told by verify, not here
        return []


def write_report(entry: Entry, data: Data | None, out: Path) -> str:
    """Write the run's own report beside the entry's page; its name, empty where there is none."""
    if data is None:
        return ""
    name = f"{entry.id}-report.html"
    try:
        write_atomic(out / "entry" / name, render([_run(entry, data, 24)]).encode())
    except OSError:
        raise
    except Exception:  # as above
        return ""
    return name
