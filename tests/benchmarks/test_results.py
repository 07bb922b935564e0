"""The table of results: figures come from run folders, words from figures, runs are made once."""

from __future__ import annotations

import importlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROBUST = {"robust_accuracy": 0.88, "certified_accuracy": 0.0, "clean_accuracy": 0.99}
PASSED = {"check": "binarisation", "status": "pass", "message": "pgd solves 64 of 64 binary tasks; made of logits", "cure": ""}


@pytest.fixture(scope="session")
def results(their_folder: None) -> Any:
    return importlib.import_module("results")


@pytest.fixture(scope="session")
def words(their_folder: None) -> Any:
    return importlib.import_module("results_page")


@pytest.fixture(scope="session")
def row(their_folder: None) -> Any:
    made: Any = importlib.import_module("published").Row
    return made("pgd", "zoo:digits-pgd", "linf:0.15", "somebody", "much", "nobody", data="digits", slow=True)


@pytest.fixture(scope="module")
def page(results: Any, row: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of one row that runs and one whose model is not there, made as a user makes it."""
    folder = tmp_path_factory.mktemp("results")
    gone = type(row)("gone", "zoo:no-such-model", "linf:0.1", "a", "b", "c")
    arguments = ["--n", "16", "--runs", str(folder / "runs"), "--out", str(folder / "RESULTS.md")]
    assert results.main(arguments, [row, gone]) == 0
    return folder / "RESULTS.md"


def summary(n: int = 500, **given: Any) -> dict[str, Any]:
    """What a run would say."""
    from robustkit.summary import interval

    told = ROBUST | given
    told.setdefault("diagnostics", [PASSED])
    told.setdefault("stages", [{"kind": "certifier", "queries": 0}, {"kind": "attack", "queries": 1000}])
    told["interval95"] = {name: None if told[name] is None else interval(told[name], n) for name in ROBUST}
    told.setdefault("robust_accuracy_at_most", told["robust_accuracy"])
    told |= {"checked": True, "not_established": ""} | {key: given[key] for key in ("checked", "not_established") if key in given}
    return {"certified_statistical": 0.0, "certified_conditional": 0.0, "data": {"n": n}, "model": {}, **told}


def table(text: str, heading: str) -> list[dict[str, str]]:
    """The rows of the first Markdown table whose first columns are `heading`."""
    lines = text.split("\n")
    first = next(i for i, line in enumerate(lines) if [cell.strip() for cell in line.split("|")[1:3]] == heading.split())
    columns = [cell.strip() for cell in lines[first].split("|")[1:-1]]
    rows = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(columns, (cell.strip() for cell in line.split("|")[1:-1]), strict=True)))
    return rows


def test_the_figures_are_those_of_the_run_folders(page: Path) -> None:
    runs = [json.loads((place / "summary.json").read_text()) for place in sorted((page.parent / "runs").iterdir())]
    (told,) = table(page.read_text(), "defense threat")
    naive, standard = sorted(runs, key=lambda one: len(one["stages"]))
    assert [told["n"], told["threat"]] == ["16", "`linf:0.15`"]
    assert told["naive"] == f"{100 * naive['robust_accuracy_at_most']:.1f} %"
    ends = [100 * standard[f"{name}_accuracy"] for name in ("certified", "robust")]
    assert told["standard"] == "{:.1f} – {:.1f} %".format(*ends)
    assert told["clean"] == f"{100 * standard['clean_accuracy']:.1f} %"
    queries = sum(stage["queries"] or 0 for stage in standard["stages"]) // 16
    assert f"standard {queries}" in told["queries an image"]
    assert "square" in [stage["name"] for stage in standard["stages"]]
    assert any(one["check"] == "binarisation" for one in standard["diagnostics"])
    assert naive["stages"][0]["spec"].startswith("pgd:steps=40")


def test_the_commands_name_the_runs_and_absent_models_are_told(page: Path) -> None:
    text = page.read_text()
    assert [one["run"] for one in table(text, "defense run")] == ["naive", "standard"]
    assert all(one["command"].startswith("`robustkit evaluate zoo:digits-pgd --data digits:n=16") for one in table(text, "defense run"))
    assert "gone: there is no bundled model no-such-model" in text


def test_what_is_there_is_not_run_again(page: Path, results: Any, row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **options: Any) -> None:
        raise AssertionError("a run was made again")

    monkeypatch.setattr(subprocess, "run", refuse)
    again = page.with_name("again.md")
    arguments = ["--n", "16", "--runs", str(page.parent / "runs"), "--out", str(again)]
    assert results.main(arguments, [row]) == 0
    assert table(again.read_text(), "defense threat") == table(page.read_text(), "defense threat")
    with pytest.raises(AssertionError, match="made again"):
        results.main([*arguments, "--seed", "1"], [row])


def test_rows_that_are_not_asked_for_stay_on_the_page_and_are_not_run(page: Path, results: Any, row: Any) -> None:
    other = type(row)(**{**vars(row), "name": "other"})
    again = page.with_name("rows.md")
    arguments = ["--n", "16", "--runs", str(page.parent / "runs"), "--out", str(again)]
    assert results.main([*arguments, "--rows", "pgd"], [row, other]) == 0
    assert table(again.read_text(), "defense threat") == table(page.read_text(), "defense threat")
    assert "other: not measured yet: name it with --rows" in again.read_text()


def test_a_run_by_a_method_that_has_changed_since_does_not_count(page: Path, results: Any, tmp_path: Path) -> None:
    some = next((page.parent / "runs").iterdir())
    for name in ("run.json", "summary.json"):
        (tmp_path / name).write_text((some / name).read_text())
    assert results.held_run(tmp_path) is not None
    bound = json.loads((some / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(bound | {"status": "incomplete"}))
    assert results.held_run(tmp_path) is None
    bound["specification"]["stages"][0]["version"] -= 1
    (tmp_path / "run.json").write_text(json.dumps(bound))
    assert results.held_run(tmp_path) is None
    assert results.changed(tmp_path) == bound["specification"]["stages"][0]["method"].partition(":")[0]


def test_a_run_that_fails_is_told_and_the_other_rows_stay(page: Path, results: Any, row: Any) -> None:
    bad = type(row)("bad", "zoo:digits-pgd", "linf:0.15", "a", "b", "c", data="no-such-data", slow=True)
    out = page.with_name("bad.md")
    assert results.main(["--n", "16", "--runs", str(page.parent / "runs"), "--out", str(out)], [bad, row]) == 1
    assert "bad: its run `naive` failed: " in out.read_text()
    assert "no-such-data" in out.read_text()
    assert len(table(out.read_text(), "defense threat")) == 1


@pytest.mark.parametrize(
    ("naive", "best", "claim", "expected"),
    [
        (
            {"robust_accuracy": 0.36},
            {"robust_accuracy": 0.006},
            0.6,
            ["does not hold", "0.6 % left", "flatters it by 35.4", "59.4 points"],
        ),
        ({"robust_accuracy": 0.89}, {}, 0.9, ["as published"]),
        ({"robust_accuracy": 0.95}, {}, 0.8, ["flatters it by 7.0", "8.0 points above"]),
        ({"robust_accuracy": 0.89}, {"certified_accuracy": 0.5}, None, ["at least 50.0 % proven"]),
        ({"robust_accuracy": 0.89}, {}, None, ["holds so far"]),
        ({"robust_accuracy": 0.89}, {"checked": False}, None, ["not checked"]),
        (
            {"robust_accuracy": 0.89},
            {"robust_accuracy": None, "robust_accuracy_at_most": 0.88, "not_established": "unbounded: 9 of 64 survive"},
            None,
            ["**not established** (unbounded)"],
        ),
    ],
)
def test_the_words_follow_from_the_figures(
    words: Any, row: Any, naive: dict[str, Any], best: dict[str, Any], claim: float | None, expected: list[str]
) -> None:
    found = {"naive": summary(**naive), "standard": summary(**best)}
    told = words.verdict(type(row)(**{**vars(row), "claim": claim}), found).replace("\u00a0", " ")
    assert all(part in told for part in expected), told
    assert ("does not hold" in told) == ("does not hold" in expected[0])
    assert ("flatters" in told) == any("flatters" in part for part in expected)


def test_a_failed_test_of_the_attacks_and_failed_checks_are_said(words: Any, row: Any) -> None:
    failed = PASSED | {"status": "error", "message": "pgd solves 3 of 64 binary tasks; made of logits"}
    masked = {"check": "zero gradients", "status": "error", "message": "", "cure": ""}
    found = {"standard": summary(diagnostics=[failed, masked], model={"surface": "declared: surrogate for gradients"})}
    told = words.verdict(row, found)
    assert "its upper end says little (pgd solves 3 of 64 binary tasks)" in told
    assert "honesty checks object to the run `standard`: zero gradients" in told
    assert words.surface(found) == "declared: surrogate for gradients"
    assert words.surface({"standard": summary()}) == "tested: plain"
    assert words.surface({"standard": summary(diagnostics=[])}) == "not tested: plain"


def test_brackets_and_the_strongest_run(words: Any) -> None:
    assert words.bracket(summary(certified_accuracy=0.5)) == "50.0 – 88.0 %"
    assert words.bracket(summary(stages=[{"kind": "attack", "queries": 1}])).replace("\u00a0", " ") == "at most 88.0 %"
    assert "(40.0\u00a0% certified, statistical)" in words.bracket(summary(certified_statistical=0.4))
    equal = {"naive": summary(robust_accuracy=0.9), "standard": summary(), "adaptive": summary()}
    assert words.strongest(equal)[0] == "adaptive"


def test_models_are_trained_again_by_the_command_in_their_file(page: Path, results: Any, row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    retrain = importlib.import_module("retrain")
    words = retrain.command("digits-pgd", Path("x.safetensors"))
    assert words[:2] == ["train", "pgd:epochs=100,eps=0.15"]
    assert words[words.index("--seed") + 1] == "1"
    assert words[words.index("--out") + 1] == "x.safetensors"
    quick = ["train", "pgd:epochs=3,eps=0.15", *words[2:]]
    monkeypatch.setattr(retrain, "command", lambda name, out: [str(out) if word == "x.safetensors" else word for word in quick])
    out = page.with_name("twice.md")
    arguments = ["--n", "16", "--runs", str(page.parent / "runs"), "--out", str(out)]
    assert results.main([*arguments, "--again"], [row]) == 0
    told = table(out.read_text().partition("## Trained again")[2], "defense threat")
    assert (page.parent / "runs" / "seed-1" / "digits-pgd.safetensors").exists()
    runs = [json.loads(file.read_text()) for file in (page.parent / "runs").glob("*/summary.json")]
    mine = [one for one in runs if "seed-1" in one["model"]["spec"]]
    assert [one["standard"].partition("– ")[2] for one in told] == [f"{100 * min(one['robust_accuracy'] for one in mine):.1f} %"]
    assert "points" in told[0]["beside the first"]
    assert results.main(arguments, [row]) == 0
    assert "## Trained again" in out.read_text()


def test_every_row_of_the_real_table_is_a_command_that_is_understood(results: Any) -> None:
    from robustkit import registry
    from robustkit.cli.arguments import parser

    for row in results.ROWS:
        for kind in results.KINDS:
            given = results.command(row, kind, None, 0)
            if given is not None:
                told = parser().parse_args(given)
                for attack in told.attack or []:
                    registry.make("attack", attack)
        assert row.claim is None or 0 < row.claim < 1
