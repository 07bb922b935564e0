"""Two runs or entries, sample by sample: who is robust where, and whether the difference could be chance."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustkit.binomial import at_least
from robustkit.core.comparisons import float_below
from robustkit.errors import BadInput, Missing
from robustkit.leaderboard.definition import FILE as BOARD
from robustkit.leaderboard.files import Arrays
from robustkit.report.runs import load_run
from robustkit.spec import Spec, number, parse
from robustkit.threats import load_threat


@dataclass(frozen=True)
class Side:
    """One of the two: its question and its columns."""

    name: str
    data: str
    threat: str
    family: str
    eps: tuple[str, ...]
    goal: str
    labels: str
    columns: Arrays
    upper: NDArray[np.float64]
    not_established: str
    """Why it has no robust accuracy, "" where it has one."""
    checked: bool


@dataclass(frozen=True)
class Comparison:
    """What the paired samples say."""

    first: str
    second: str
    eps: str
    paired: int
    """Samples that both have."""
    clean: tuple[float, float]
    robust: tuple[float | None, float | None]
    """None where it is not established."""
    robust_at_most: tuple[float, float]
    caution: tuple[str, str]
    """Why robust accuracy is not established, or that it was not checked."""
    certified: tuple[float, float]
    only_first: int
    """Samples on which only the first is (empirically) robust."""
    only_second: int
    p_value: float
    """McNemar's exact two-sided test on these."""
    overlap: tuple[float, float] | None
    """True robust accuracies that both brackets allow, None where the brackets are disjoint."""

    @property
    def verdict(self) -> str:
        """In one sentence."""
        better = self.first if self.robust_at_most[0] >= self.robust_at_most[1] else self.second
        if self.overlap is None:
            return f"{better} is more robust on these samples: the brackets do not overlap, whatever stronger attacks may find"
        blind = [name for name, robust in ((self.first, self.robust[0]), (self.second, self.robust[1])) if robust is None]
        if blind:
            return f"which one is more robust is not established: the attacks on {' and '.join(blind)} may only have been blind"
        if self.p_value < 0.05:
            tail = "the brackets overlap, so stronger attacks could turn it"
            return f"{better} withstands the attacks more often (p = {self.p_value:.2g}); {tail}"
        return f"no difference that chance does not explain (p = {self.p_value:.2g})"

    def document(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict}


def compare(first: str | Path, second: str | Path, *, eps: str | None = None) -> Comparison:
    """Compare two run folders or entries (BOARD/ID or BOARD/NAME) on the samples that both have.

    Args:
        eps: the budget, by default the largest that both report.

    Raises:
        BadInput: other data, threat, goal or labels, no common budget or sample. Missing: nothing there.
    """
    one, other = side(first), side(second)
    for key in ("data", "family", "goal", "labels"):
        mine, theirs = getattr(one, key), getattr(other, key)
        if mine != theirs:
            what = "threat" if key == "family" else key
            both = f"{one.name}: {_what(one, key)}, {other.name}: {_what(other, key)}"
            raise BadInput(f"the two cannot be compared: {what} differs ({both})")
    common = sorted({number(text) for text in one.eps} & {number(text) for text in other.eps})
    if eps is not None and number(eps) not in common:
        raise BadInput(f"eps {eps} is not reported by both: {one.name} has {', '.join(one.eps)}, {other.name} has {', '.join(other.eps)}")
    if not common:
        raise BadInput(f"no common budget: {one.name} has {', '.join(one.eps)}, {other.name} has {', '.join(other.eps)}")
    chosen = number(eps) if eps is not None else common[-1]
    budget = float_below(chosen)
    _, left, right = np.intersect1d(one.columns["index"], other.columns["index"], return_indices=True)
    if not len(left):
        raise BadInput("no common sample: the two were evaluated on different images")
    if not np.array_equal(one.columns["label"][left], other.columns["label"][right]) and one.labels == "given":
        raise BadInput("the same samples have other labels in the two: one of them was changed")
    mine, theirs = one.upper[left] > budget, other.upper[right] > budget
    only_first, only_second = int((mine & ~theirs).sum()), int((theirs & ~mine).sum())
    proven = [float((s.columns["lower"][at] >= budget).mean()) for s, at in ((one, left), (other, right))]
    left_over = (float(mine.mean()), float(theirs.mean()))
    low, high = max(proven), min(left_over)
    return Comparison(
        one.name,
        other.name,
        next(text for text in one.eps if number(text) == chosen),
        len(left),
        (float((one.upper[left] > 0).mean()), float((other.upper[right] > 0).mean())),
        (None if one.not_established else left_over[0], None if other.not_established else left_over[1]),
        left_over,
        (_caution(one), _caution(other)),
        (proven[0], proven[1]),
        only_first,
        only_second,
        mcnemar(only_first, only_second),
        (low, high) if low <= high else None,
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of the discordant pairs."""
    total = only_first + only_second
    return min(1.0, 2 * float(at_least(max(only_first, only_second), total, 0.5)))


def side(place: str | Path) -> Side:
    """A run folder, or an entry written as BOARD/ID, BOARD/NAME or BOARD/entries/ID; raises BadInput or Missing."""
    path = Path(place)
    board = path.parent if (path.parent / BOARD).exists() else path.parent.parent
    if (board / BOARD).exists() and not (path / BOARD).exists():
        from robustkit.leaderboard.board import Leaderboard
        from robustkit.leaderboard.challenges import best_known

        found = Leaderboard(board)
        entry = found.entry(path.name)
        told = entry.summary
        upper = best_known(entry, found.challenges().get(entry.id, []))
        return _side(entry.name, told, entry.columns, upper)
    if (path / BOARD).exists():
        raise BadInput(f"{path} is a whole board: name one of its entries, for example {path}/ID")
    if not path.is_dir():
        raise Missing(f"there is no run folder or entry {path}")
    run = load_run(path)
    columns = {name: np.asarray(values) for name, values in run.columns.items()}
    if "index" not in columns:
        raise BadInput(f"{path / 'samples.npz'} lacks the column index: run the same robustkit evaluate command again")
    return _side(run.name, run.summary, columns, columns["upper"])


def _side(name: str, told: Any, columns: Arrays, upper: NDArray[np.float64]) -> Side:
    data = str(told["data"].get("sha256") or told["data"]["spec"])
    question = (name, data, str(told["threat"]), _family(str(told["threat"])), tuple(told["eps"]), str(told["goal"]), str(told["labels"]))
    return Side(*question, columns, upper, str(told["not_established"]), bool(told["checked"]))


def _caution(one: Side) -> str:
    return f"not established ({one.not_established})" if one.not_established else "" if one.checked else "not checked"


def _family(text: str) -> str:
    """What two threats have in common but for their budgets; of a family that is not robustkit's, its own text."""
    try:
        return load_threat(text).family
    except BadInput:
        spec = parse(text)
        return str(Spec(spec.name, spec.items[1:], spec.options))


def _what(one: Side, key: str) -> str:
    return one.threat if key == "family" else str(getattr(one, key))[:40]
