"""The campaigns in their short forms: nothing they look for is there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_damaged_files() -> None:
    from campaign_files import campaign

    found = campaign(25, seed=1)
    assert found["different"] == {}
    assert found["tracebacks"] == 0
    assert found["exit 2"] > 0
    assert found["longest"] < 20


def test_malformed_words() -> None:
    from campaign_words import campaign

    found = campaign(1500, seed=1)
    assert found["bad"] == 0, found["different"]
    assert found["understood"] > 0


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals and limits of Linux")
def test_kills_and_full_disks() -> None:
    from campaign_stops import campaign

    found = campaign(2, seed=1)
    assert found["said"] == []
    assert found["bad"] == 0


@pytest.mark.slow
def test_cheats() -> None:
    from campaign_cheats import cheats, tally
    from cheating_models import CHEATS

    one_of_each = {cheat.kind: cheat for cheat in CHEATS if cheat.kind in ("scale", "batch", "calls")}
    rows = list(cheats(list(one_of_each.values()), n=20))
    counts = tally(rows)
    assert counts["cheats"] == len(one_of_each) == 3
    assert counts["wrong"] == counts["crashes"] == 0, rows
