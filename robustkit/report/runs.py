"""A run folder, read back: nothing is computed again that the engine has written."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustkit.core.comparisons import float_below
from robustkit.errors import BadInput, Missing
from robustkit.report.older import upgraded
from robustkit.report.palette import STATES
from robustkit.report.wording import stage_labels
from robustkit.spec import number, number_text

SCHEMA = 2
Columns = Mapping[str, NDArray[Any]]

_COLUMNS = (
    "label",
    "predicted",
    "confidence",
    "clean_margin",
    "lower",
    "lower_statistical",
    "lower_conditional",
    "upper",
    "radius_covered",
)
_GALLERY = ("clean", "adversarial", "label", "predicted", "adversarial_class", "index", "stage")


@dataclass(frozen=True)
class Run:
    """One run: what was asked (record), the answer (summary), one row per sample (columns)."""

    folder: Path
    record: Mapping[str, Any]
    summary: Mapping[str, Any]
    columns: Columns
    gallery: Columns = field(default_factory=dict)

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
        exact = sorted((number(str(text)), str(text)) for text in self.summary["eps"])
        return [(text, float_below(value)) for value, text in exact]

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
        """Figures of the summary that the sample columns do not bear out."""
        budget = self.budget[1]
        read = {
            "clean_accuracy": self.columns["upper"] > 0,
            "robust_accuracy_at_most": self.columns["upper"] > budget,
            "certified_accuracy": self.columns["lower"] >= budget,
        }
        if self.summary["robust_accuracy"] is not None:
            read["robust_accuracy"] = read["robust_accuracy_at_most"]
        pairs = [(name, float(self.summary[name]), float(found.mean())) for name, found in read.items()]
        return [f"{name}: {told:.6g} in the summary, {seen:.6g} in the samples" for name, told, seen in pairs if abs(told - seen) > 1e-6]


def load_run(folder: Path) -> Run:
    """Read a run folder; raises Missing or BadInput in one clear line."""
    folder = Path(folder)
    if not folder.is_dir():
        raise Missing(f"no run folder at {folder}: give the folder that `robustkit evaluate --out` wrote")
    summary = _read_json(folder / "summary.json")
    record = _read_json(folder / "run.json")
    if summary.get("schema_version", SCHEMA) not in (1, SCHEMA):
        found = f"{folder / 'summary.json'} has schema_version {summary['schema_version']}"
        raise BadInput(f"{found}, this robustkit reads 1 and {SCHEMA}: use the version that wrote it")
    needed = ("model", "data", "threat", "eps", "goal", "labels", "seed", "clean_accuracy", "robust_accuracy", "certified_accuracy")
    more = ["open", "interval95", "population95", "curve", "stages", "diagnostics", "environment"]
    if summary.get("schema_version", SCHEMA) == SCHEMA:
        more += ["robust_accuracy_at_most", "checked", "not_established"]
    absent = [key for key in (*needed, *more) if key not in summary]
    if absent or not summary["eps"]:
        raise BadInput(
            f"{folder / 'summary.json'} lacks {', '.join(absent) or 'a budget'}: run the same `robustkit evaluate` command again"
        )
    summary = upgraded(summary) if summary.get("schema_version") == 1 else summary
    return Run(folder, record, summary, _read_columns(folder / "samples.npz"), _read_gallery(folder / "gallery.safetensors"))


def _absent(path: Path) -> Missing:
    return Missing(f"{path} is missing: the run was not finished; the same `robustkit evaluate` command completes it")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as problem:
        raise _absent(path) from problem
    except (OSError, ValueError) as problem:
        raise BadInput(f"{path} cannot be read ({problem}): run the same `robustkit evaluate` command again") from problem
    if not isinstance(found, dict):
        raise BadInput(f"{path} holds no JSON object: run the same `robustkit evaluate` command again")
    return found


def _read_columns(path: Path) -> Columns:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            columns = {name: stored[name] for name in stored.files}
    except FileNotFoundError as problem:
        raise _absent(path) from problem
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as problem:
        raise BadInput(f"{path} cannot be read ({problem}): run the same `robustkit evaluate` command again") from problem
    absent = [name for name in _COLUMNS if name not in columns]
    if absent:
        raise BadInput(f"{path} lacks the columns {', '.join(absent)}: run the same `robustkit evaluate` command again")
    lengths = {len(columns[name]) for name in _COLUMNS}
    if len(lengths) != 1 or 0 in lengths:
        raise BadInput(f"{path} has columns of lengths {sorted(lengths)}: expected one row for each sample, at least one")
    return columns


def _read_gallery(path: Path) -> Columns:
    if not path.exists():
        return {}
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found: dict[str, NDArray[Any]] = load_file(path)
    except (OSError, SafetensorError) as problem:
        raise BadInput(f"{path} cannot be read ({problem}): delete it, or run the same `robustkit evaluate` command again") from problem
    absent = [name for name in _GALLERY if name not in found]
    shapes = {found[name].shape for name in ("clean", "adversarial") if name in found}
    if absent or len(shapes) != 1 or any(len(shape) != 4 for shape in shapes):
        raise BadInput(
            f"{path} is no gallery (lacks {', '.join(absent) or 'images of one shape (G,C,H,W)'}): delete it, or run the same command again"
        )
    return found


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
