"""The figure of the rank, and what counts towards it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from scipy.stats import beta

from robustkit.errors import BadInput
from robustkit.leaderboard import Leaderboard, figures, rerun_record
from robustkit.leaderboard.manifest import Entry
from robustkit.leaderboard.ranking import hidden_share, lower_end
from robustkit.leaderboard.rerun import draw
from robustkit.leaderboard.rerun_record import as_text, from_text, reruns_of
from robustkit.leaderboard.standings import Standing


@pytest.mark.parametrize(("called", "again", "fell", "percent"), [(887, 266, 0, 88.0), (976, 293, 27, 86.4), (976, 976, 89, 88.7)])
def test_leaving_adversarial_examples_out_does_not_pay(called: int, again: int, fell: int, percent: float) -> None:
    assert round(100 * lower_end(1000, called, again, fell), 1) == percent


def test_the_bound_is_clopper_and_pearsons() -> None:
    for again, fell in ((10, 0), (300, 7), (5, 4)):
        assert hidden_share(again, fell) == pytest.approx(beta.ppf(0.95, fell + 1, again - fell))
    assert hidden_share(0, 0) == hidden_share(4, 4) == 1.0
    assert lower_end(10, 8, 0, 0) == 0.0 and lower_end(10, 8, 8, 0) == 0.8 and lower_end(10, 8, 8, 3, gone=2) == 0.3
    for numbers in ((10, 11, 0, 0), (10, 8, 9, 0), (10, 8, 5, 6), (10, 8, 5, 4, 2), (0, 0, 0, 0), (10, 8, 5, -1)):
        with pytest.raises(BadInput, match="that cannot be"):
            lower_end(*numbers)


def test_more_work_never_widens_the_bound() -> None:
    ends = [lower_end(1000, 900, again, 0) for again in range(0, 901, 50)]
    assert ends == sorted(ends) and ends[-1] == 0.9


def test_what_no_rerun_drew_comes_first() -> None:
    before = np.zeros(50, dtype=bool)
    for seed in range(5):
        at = draw(50, 10, seed, before)
        assert len(at) == 10 and not before[at].any()
        before[at] = True
    assert before.all() and len(draw(50, 10, 9, before)) == 10
    assert draw(50, 99, 1, before).tolist() == list(range(50))


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
def test_positions_as_text(count: int) -> None:
    where = np.random.default_rng(count).random(count) < 0.5
    text = as_text(where)
    assert np.array_equal(from_text(text, count), where)  # type: ignore[arg-type]
    for bad in (None, 3, "", "?", text + "AAAA", "a" * 10_000, as_text(np.ones(count + 8, dtype=bool))):
        assert from_text(bad, count) is None
    if count % 8:
        assert from_text(as_text(np.ones(count + 1, dtype=bool)), count) is None


def event(board: Leaderboard, entry: Entry, at: Any, hit: Any = (), **more: Any) -> None:
    """A re-run as the ledger has it."""
    drawn, broken = np.zeros(48, dtype=bool), np.zeros(48, dtype=bool)
    drawn[list(at)], broken[list(hit)] = True, True
    again = drawn & (entry.columns["upper"] > 0.06)
    about = {"drawn": as_text(drawn), "again": as_text(again), "fell": as_text(broken), "ok": True, "problems": [], "checks": []}
    about |= {"judge": 10**6, "seed_given": False, "held": {}, "surface": "none", "checked": True}
    board.step("verify", {"entry": entry.id, "level": "rerun"} | about | more)


def row(board: Leaderboard, entry: Entry) -> Standing:
    return next(one for one in board.standings() if one.id == entry.id)


def test_reruns_count_together(board: Leaderboard) -> None:
    entry = board.entries()[0]
    robust = np.flatnonzero(entry.columns["upper"] > 0.06)
    event(board, entry, robust[:5], robust[:1])
    event(board, entry, robust[3:9], robust[8:9])
    told = row(board, entry)
    assert (told.attacked_again, told.called_robust) == (9, len(robust))
    assert told.robust_at_least == lower_end(48, len(robust), 9, 2)
    event(board, entry, robust[:1])  # it does not fall again: one that fell stays fallen
    assert row(board, entry).robust_at_least == told.robust_at_least
    event(board, entry, range(48))
    assert row(board, entry).robust_at_least == (len(robust) - 2) / 48


@pytest.mark.parametrize(
    "change",
    [
        {"seed_given": True},
        {"seed_given": None},
        {"judge": 0},
        {"judge": "2"},
        {"drawn": None},
        {"again": "x"},
        {"fell": as_text(np.ones(40, bool))},
    ],
    ids=str,
)
def test_what_does_not_count(board: Leaderboard, change: dict[str, Any]) -> None:
    """A seed given by hand, the old rule, an event of an older version or of another size."""
    entry = board.entries()[0]
    event(board, entry, range(48), **change)
    told = row(board, entry)
    assert (told.rank, told.robust_at_least, told.state) == (None, None, "evidence")
    event(board, entry, range(10))
    assert row(board, entry).rank == 1


def test_a_disagreement_stands_whatever_comes_later(board: Leaderboard) -> None:
    """A false certificate in one re-run is not made good by a re-run of other samples."""
    entry = board.entries()[0]
    event(board, entry, range(10), ok=False, problems=["sample 3: ibp does not prove the claimed radius 0.06"])
    event(board, entry, range(10, 48))
    told = row(board, entry)
    assert (told.state, told.rank) == ("failed", None) and "sample 3" in told.note


def test_entries_judged_by_the_old_rule(board: Leaderboard, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are listed without a rank until a re-run under the new one."""
    entry = board.entries()[0]
    newest = 10**6
    for module in (figures, rerun_record):
        monkeypatch.setattr(module, "RULE", newest)
    event(board, entry, range(48), judge=newest - 1)
    told = row(board, entry)
    assert (told.state, told.rank, told.note) == ("old rule", None, "judged by the old rule")
    event(board, entry, range(48))
    told = row(board, entry)
    assert (told.state, told.rank) == ("re-run", 1) and "judged by the old rule" in told.note


def error(check: str) -> list[dict[str, str]]:
    return [{"check": check, "status": "error", "message": "it is so"}]


def test_an_error_of_the_honesty_checks_unranks(board: Leaderboard) -> None:
    entry = board.entries()[0]
    event(board, entry, range(48), checks=error("zero gradients"))
    told = row(board, entry)
    assert (told.state, told.rank, told.diagnostics) == ("check failed", None, "1 error") and "it is so" in told.note
    event(board, entry, range(10))
    assert row(board, entry).rank is None, "a small re-run does not wash it away"


def test_a_small_rerun_condemns_nobody_for_good(board: Leaderboard) -> None:
    entry = board.entries()[0]
    event(board, entry, range(5), checks=error("zero gradients"))
    assert row(board, entry).rank is None
    event(board, entry, range(48))
    assert row(board, entry).rank == 1
    event(board, entry, range(5), checks=error("batch"))  # no matter of chance
    assert row(board, entry).state == "check failed"


@pytest.mark.parametrize("more", [{"checked": False}, {"checks": error("robust accuracy")}], ids=str)
def test_without_an_established_figure_there_is_no_rank(board: Leaderboard, more: dict[str, Any]) -> None:
    entry = board.entries()[0]
    event(board, entry, range(48), **more)
    told = row(board, entry)
    assert (told.state, told.rank, told.robust_at_least, told.suite, told.best_known) == ("not established", None, None, None, None)


def test_what_a_challenger_broke_is_not_robust(
    board: Leaderboard, runs: Any, plant: Callable[..., Entry], fitting: Callable[..., Any]
) -> None:
    """Before a re-run it leaves U; after one that it survived it leaves the survivors."""
    entry = board.entries()[0]
    own = {key: entry.columns[key].copy() for key in ("upper", "upper_stage", "adversarial_class")}
    hidden = np.flatnonzero(own["upper_stage"] >= 0)
    own["upper"][hidden], own["upper_stage"][hidden], own["adversarial_class"][hidden] = np.inf, -1, -1
    forged = plant(board, entry, columns=own, summary=fitting(entry, own), files={"witnesses.safetensors": None}, name="F")
    robust = int((own["upper"] > 0.06).sum())
    event(board, forged, hidden[:3])
    held = entry.witnesses()
    for part in (hidden[:1], hidden[3:5]):
        keep = np.isin(held["position"], part)
        path = board.path.parent / f"{part[0]}.safetensors"
        safetensors.numpy.save_file({key: np.ascontiguousarray(held[key][keep]) for key in ("position", "parameters")}, path)
        assert board.challenge("F", path, by="Me").accepted == len(part)
    reruns = reruns_of(board.ledger(), forged.id, 48)
    again = int(reruns.again.sum())
    assert again == 3
    assert row(board, forged).robust_at_least == lower_end(48, robust - 2, 3, 0, gone=1)


def test_a_rerun_needs_the_evidence(board: Leaderboard, plant: Callable[..., Entry]) -> None:
    """Whoever calls it directly gets no rank for an entry whose figures are forged."""
    plant(board, board.entries()[0], summary={"robust_accuracy": 0.95}, name="F")
    with pytest.raises(BadInput, match="does not hold at level evidence"):
        board.rerun("F", sample=4, progress=False)


def test_a_small_rerun_then_a_whole_one(board: Leaderboard, plant: Callable[..., Entry], fitting: Callable[..., Any]) -> None:
    """A submission without its adversarial examples never ranks above the honest one, and a whole re-run makes them equal."""
    entry = board.entries()[0]
    own = {key: entry.columns[key].copy() for key in ("upper", "upper_stage", "adversarial_class")}
    hidden = own["upper_stage"] >= 0
    own["upper"][hidden], own["upper_stage"][hidden], own["adversarial_class"][hidden] = np.inf, -1, -1
    forged = plant(board, entry, columns=own, summary=fitting(entry, own), files={"witnesses.safetensors": None}, name="F")
    for sample in (10, 12):
        for one in (entry, forged):
            board.rerun(one.id, sample=sample, progress=False)
    assert int(reruns_of(board.ledger(), forged.id, 48).drawn.sum()) == 22
    for one in (entry, forged):
        board.rerun(one.id, sample=48, progress=False)
    honest, cheat = row(board, entry), row(board, forged)
    assert honest.robust_at_least == honest.best_known <= honest.suite < cheat.suite  # type: ignore[operator]
    assert cheat.robust_at_least == cheat.best_known
    assert abs(cheat.robust_at_least - honest.robust_at_least) <= 2 / 48  # type: ignore[operator]
    assert honest.certified == honest.certified_submitted
