"""A run folder, read back, whoever made it: files are read with care, figures are those of the sample columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustkit.core.comparisons import float_below
from robustkit.core.untrusted_files import read_file, tensors, typed
from robustkit.core.untrusted_json import read_json
from robustkit.errors import BadInput, Missing
from robustkit.report.columns import MOST_BYTES, read_columns
from robustkit.report.palette import STATES
from robustkit.report.recompute import budgets, old_rule, recomputed
from robustkit.report.wording import stage_labels
from robustkit.spec import number, number_text

Columns = Mapping[str, NDArray[Any]]

MOST_GALLERY = 1 << 28
"""Bytes of a gallery that is shown."""

_GALLERY = ("clean", "adversarial", "label", "predicted", "adversarial_class", "index", "stage")


@dataclass(frozen=True)
class Run:
    """One run: what was asked (record), the answer (summary, its figures those of the columns), one row per sample (columns)."""

    folder: Path
    record: Mapping[str, Any]
    summary: Mapping[str, Any]
    columns: Columns
    gallery: Columns = field(default_factory=dict)
    differences: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.columns["label"])

    @property
    def status(self) -> str:
        """complete, incomplete, interrupted or running."""
        return str(self.record.get("status", "complete"))

    @cached_property
    def budgets(self) -> list[tuple[str, float]]:
        """(text, float64 rounded down) of every reported budget, smallest first."""
        return [(text, float_below(value)) for text, value in budgets(self.summary, str(self.folder))]

    @property
    def budget(self) -> tuple[str, float]:
        """The largest budget: the one that the headline is about."""
        return self.budgets[-1]

    @property
    def budget_label(self) -> str:
        """The largest budget as a plain number text, safe to draw."""
        return number_text(number(self.budget[0]))

    @property
    def family(self) -> str:
        """Name of the threat family."""
        return str(self.summary["threat"]).partition(":")[0]

    @property
    def exact_curve(self) -> bool:
        """Whether a radius stage ran on every correct sample, so the curve is exact everywhere."""
        correct = self.columns["upper"] > 0
        return bool(correct.any() and self.columns["radius_covered"][correct].all())

    @cached_property
    def states(self) -> NDArray[np.int64]:
        """(N,) index into STATES at the largest budget; a witness outweighs a certificate."""
        budget = self.budget[1]
        upper, lower = self.columns["upper"], self.columns["lower"]
        found = np.where(lower >= budget, 0, 1)
        found[upper <= budget] = 2
        found[~(upper > 0)] = 3
        return found

    @cached_property
    def shares(self) -> dict[str, float]:
        """Share of samples in each state."""
        return {name: float((self.states == place).mean()) for place, name in enumerate(STATES)}

    def class_name(self, label: int) -> str:
        """The name of a class, its number where no names are known."""
        names = self.summary["data"].get("class_names") or ()
        return str(names[label]) if 0 <= label < len(names) else str(label)

    @cached_property
    def stage_labels(self) -> list[str]:
        """A name for each stage that tells it from the others."""
        return stage_labels(self.summary["stages"])

    def stage_name(self, place: int) -> str:
        """The name of a stage by its position, empty for -1."""
        return self.stage_labels[place] if 0 <= place < len(self.stage_labels) else ""

    def disagreements(self) -> list[str]:
        """Figures of the stored summary that the sample columns do not bear out."""
        return list(self.differences)


def load_run(folder: Path) -> Run:
    """Read a run folder, whoever made it; raises Missing or BadInput in one clear line.

    Its figures are read off the sample columns; where the stored summary says something else, `differences` tells.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise Missing(f"no run folder at {folder}: give the folder that `robustkit evaluate --out` wrote")
    summary = _read_json(folder / "summary.json", "summary")
    record = _read_json(folder / "run.json", "run")
    columns = _read_columns(folder / "samples.npz")
    old = old_rule(record["specification"])
    told, differences = recomputed(summary, columns, old=old, where=str(folder / "summary.json"))
    return Run(folder, record, told, columns, _read_gallery(folder / "gallery.safetensors"), tuple(differences))


_AGAIN = "run the same `robustkit evaluate` command again"


def _read_json(path: Path, form: str) -> dict[str, Any]:
    try:
        return read_json(path, form)
    except Missing as problem:
        raise _absent(path) from problem
    except BadInput as problem:
        raise BadInput(f"{problem}: {_AGAIN}") from problem


def _read_columns(path: Path) -> Columns:
    try:
        return read_columns(read_file(path, MOST_BYTES), str(path))
    except Missing as problem:
        raise _absent(path) from problem
    except BadInput as problem:
        raise BadInput(f"{problem}: {_AGAIN}") from problem


def _absent(path: Path) -> Missing:
    return Missing(f"{path} is missing: the run was not finished; the same `robustkit evaluate` command completes it")


def _read_gallery(path: Path) -> Columns:
    """The gallery, {} where there is none or it is larger than a report shows."""
    try:
        if path.lstat().st_size > MOST_GALLERY:
            return {}
        found = tensors(read_file(path, MOST_GALLERY), str(path))
        images = typed(found, "clean", "float32", (None, None, None, None), str(path))
        typed(found, "adversarial", "float32", images.shape, str(path))
        for name in _GALLERY[2:]:
            typed(found, name, "int64", (len(images),), str(path))
        if 0 in images.shape:
            raise BadInput(f"{path} holds images of shape {images.shape}")
    except FileNotFoundError:
        return {}
    except BadInput as problem:
        raise BadInput(f"{problem}: delete it, or {_AGAIN}") from problem
    return {name: found[name] for name in _GALLERY}


def accuracy_at(values: NDArray[np.float64], where: NDArray[np.float64], *, closed: bool) -> NDArray[np.float64]:
    """mean(values > w) for each w, or mean(values >= w) when `closed`."""
    ordered = np.sort(values)
    return 1 - np.searchsorted(ordered, where, side="left" if closed else "right") / max(1, len(ordered))


def finite_max(values: NDArray[np.float64]) -> float:
    """The largest finite value, 0 where there is none."""
    kept = values[np.isfinite(values)]
    return float(kept.max()) if len(kept) else 0.0


def half_width(n: int) -> float:
    """Half the 95 % interval, in percentage points, at an accuracy of one half."""
    return 196 * math.sqrt(0.25 / max(1, n))
