"""The answer in the terminal."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from robustkit.tables import bracket_table, listing, terminal

SUMMARY: dict[str, Any] = {
    "model": {"spec": "mine:make,[bold]layers[/bold]=[1,2]", "sha256": None, "parameters": 7},
    "data": {"spec": "digits:n=400", "sha256": "aa", "n": 400},
    "threat": "linf:8/255",
    "eps": ["8/255", "0.01"],
    "goal": "untargeted",
    "labels": "given",
    "seed": 0,
    "clean_accuracy": 0.95,
    "robust_accuracy": 0.6,
    "robust_accuracy_at_most": 0.6,
    "certified_accuracy": 0.25,
    "checked": True,
    "not_established": "",
    "certified_statistical": 0.0,
    "certified_conditional": 0.0,
    "open": 0.35,
    "interval95": {"clean_accuracy": [0.924, 0.967], "robust_accuracy": [0.551, 0.647], "certified_accuracy": [0.21, 0.295]},
    "population95": [0.21, 0.647],
    "curve": [
        {"eps": 0.01, "robust_accuracy": 0.9, "robust_accuracy_at_most": 0.9, "certified_accuracy": 0.8125},
        {"eps": 8 / 255, "robust_accuracy": 0.6, "robust_accuracy_at_most": 0.6, "certified_accuracy": 0.25},
    ],
    "stages": [
        {
            "name": "ibp",
            "spec": "ibp",
            "kind": "certifier",
            "guarantee": "real-arithmetic",
            "received": 380,
            "settled": 100,
            "robust_accuracy": 0.95,
            "robust_accuracy_at_most": 0.95,
            "certified_accuracy": 0.25,
            "seconds": 0.4,
            "forwards": 1140,
            "backwards": 0,
            "queries": 0,
        },
        {
            "name": "apgd",
            "spec": "apgd",
            "kind": "attack",
            "received": 280,
            "settled": 140,
            "robust_accuracy": 0.6,
            "robust_accuracy_at_most": 0.6,
            "certified_accuracy": 0.25,
            "seconds": 75.0,
            "forwards": 28000,
            "backwards": 27720,
            "queries": 28280,
        },
    ],
    "diagnostics": [
        {"check": "logits", "status": "pass", "message": "fine", "cure": "PASS-CURE"},
        {"check": "restarts", "status": "warn", "message": "10 more restarts lower it [red]!", "cure": "use more restarts"},
        {"check": "train mode", "status": "error", "message": "dropout was active", "cure": "call eval()"},
    ],
    "environment": {},
    "run": "runs/x",
}


def printed(summary: dict[str, Any] = SUMMARY) -> str:
    stream = io.StringIO()
    bracket_table(summary, terminal(stream))
    return stream.getvalue().replace("\u00a0", " ")


def test_the_answer_in_full() -> None:
    text = printed()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "certified 25.0 % ≤ true robust accuracy at 8/255 ≤ 60.0 % empirical (clean 95.0 %)" in lines
    small = lines.index("0.01 95.0 % [92.4-96.7] 90.0 % [86.6-92.8] 81.2 % [77.1-85.0] 8.8 %")  # the summary has no interval here: computed
    assert small < lines.index("8/255 95.0 % [92.4-96.7] 60.0 % [55.1-64.7] 25.0 % [21.0-29.5] 35.0 %")
    assert "ibp 380 100 95.0 % 25.0 % 0.40 s 1.14k 0 0" in lines
    assert "apgd 280 140 60.0 % 25.0 % 75 s 28k 27.7k 28.3k" in lines
    assert "Guarantee class: real-arithmetic (ibp)." in text


def test_intervals_are_spelt_out_where_the_table_is_too_narrow_for_them() -> None:
    stream = io.StringIO()
    bracket_table(SUMMARY, Console(file=stream, width=60, highlight=False))
    text = " ".join(stream.getvalue().split())
    assert "95 % intervals at 8/255, for all images of this kind: certified [21.0-29.5], robust [55.1-64.7]." in text


def test_stages_of_one_name_are_told_apart() -> None:
    first, attack = SUMMARY["stages"]
    stages = [
        first,
        *({**attack, "spec": f"apgd:loss={loss},steps=100", "eps": eps} for loss in ("ce", "dlr-targeted") for eps in ("0.01", "8/255")),
    ]
    lines = [" ".join(line.split()) for line in printed({**SUMMARY, "stages": [{**stages[0], "eps": "0.01"}, *stages[1:]]}).splitlines()]
    for label in ("apgd ce", "apgd dlr-targeted"):
        for eps in ("0.01", "8/255"):
            assert f"{label} {eps} 280 140 60.0 % 25.0 % 75 s 28k 27.7k 28.3k" in lines


def test_user_text_is_never_markup() -> None:
    text = printed()
    assert "mine:make,[bold]layers[/bold]=[1,2]" in text
    assert "lower it [red]!" in text


def test_diagnostics_come_with_their_cures_errors_first() -> None:
    text = printed()
    assert (
        text.index("error: train mode: dropout was active")
        < text.index("cure: call eval()")
        < text.index("warn: restarts")
        < text.index("cure: use more restarts")
    )
    assert "PASS-CURE" not in text
    assert "1 check, nothing to report" in printed({**SUMMARY, "diagnostics": SUMMARY["diagnostics"][:1]})


def test_nothing_proven_is_not_called_fragile() -> None:
    alone = {**SUMMARY, "stages": SUMMARY["stages"][1:], "certified_accuracy": 0.0, "open": 0.6}
    assert "nothing was proven, not that nothing is robust" in printed(alone)
    assert "Beside the bracket: 40.0 % certified statistically" in printed({**alone, "certified_statistical": 0.4})


@pytest.mark.parametrize("columns", ["", "60", "140", "wide"])
def test_a_pipe_is_at_least_100_wide_and_has_no_colour(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    console = terminal(io.StringIO())
    assert console.width == (140 if columns == "140" else 100)
    text = printed()
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 140


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_every_encoding_can_carry_it(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    odd = {**SUMMARY, "model": {**SUMMARY["model"], "spec": "modèle:ε→∞"}}
    bracket_table(odd, terminal(stream))
    listing("attacks — всё", [("pgd", "Mądry 2018")], ("name", "paper"), terminal(stream))
    stream.flush()
    text = raw.getvalue().decode(encoding)
    assert "true robust accuracy at 8/255" in text
    assert ("<=" in text) == (encoding != "utf-8")


@pytest.mark.parametrize("width", [50, 60, 80, 100, 200])
def test_the_bar_and_the_tables_fit_the_terminal(width: int) -> None:
    stream = io.StringIO()
    bracket_table(SUMMARY, Console(file=stream, width=width, highlight=False))
    lines = stream.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    assert "…" not in stream.getvalue()
    bar = next(line for line in lines if re.fullmatch("[█▒▓░ ]+", line))
    size = min(width, 100) - 2
    assert len(bar.rstrip()) == size
    for block, share in zip("█▒▓░", (0.25, 0.35, 0.35, 0.05)):
        assert bar.count(block) == pytest.approx(share * size, abs=1.5)


def test_a_share_above_zero_is_never_invisible() -> None:
    tiny = {**SUMMARY, "certified_accuracy": 0.0025, "open": 0.5975}
    bar = next(line for line in printed(tiny).splitlines() if re.fullmatch("[█▒▓░ ]+", line))
    assert bar.count("█") == 1


@pytest.mark.parametrize("system", ["standard", "256", "truecolor"])
def test_states_differ_in_every_colour_system(system: Any) -> None:
    stream = io.StringIO()
    bracket_table(SUMMARY, Console(file=stream, width=100, force_terminal=True, color_system=system, highlight=False))
    codes = {re.search(rf"\x1b\[([\d;]+)m{block}+", stream.getvalue())[1] for block in "█▒▓░"}  # type: ignore[index]
    assert len(codes) == 4


def test_a_budget_that_was_not_measured_is_a_dash() -> None:
    point = {"eps": 0.01, "robust_accuracy": None, "robust_accuracy_at_most": None, "certified_accuracy": 0.8125}
    unmeasured = {**SUMMARY, "curve": [point]}
    row = next(line for line in printed(unmeasured).splitlines() if line.startswith("0.01"))
    assert row.split() == ["0.01", "95.0", "%", "[92.4-96.7]", "-", "81.2", "%", "[77.1-85.0]", "-"]


def test_a_listing_shows_every_value() -> None:
    stream = io.StringIO()
    listing("attacks", [("pgd", "gradient", 2), ("square", "score [x]", None)], ("name", "access", "n"), terminal(stream))
    lines = [line.split() for line in stream.getvalue().splitlines() if line.strip()]
    assert lines[0] == ["attacks"]
    assert ["pgd", "gradient", "2"] in lines
    assert ["square", "score", "[x]"] in lines
    with pytest.raises(ValueError, match="2 values for 1 columns"):
        listing("broken", [("a", "b")], ("name",), terminal(stream))
