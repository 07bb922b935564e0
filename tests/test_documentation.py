"""What the documents show is what happens: examples run, tables are complete, links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import robustkit as rk
from robustkit import registry

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("pip install -c constraints.txt . && robustkit evaluate", "pip install -c constraints.txt -e '.[test]' && pytest")
NUMBER = r"\d+(?:\.\d+)?"


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    """Fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text(name), flags=re.DOTALL | re.MULTILINE)


def execute(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a block as a script in `folder`; its global names."""
    monkeypatch.chdir(folder)
    script = folder / "example.py"
    script.write_text(code)
    return runpy.run_path(str(script))


def environment() -> dict[str, str]:
    """For processes of their own: this tree, also where it is not installed, and a terminal of the README's width."""
    return os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}


def same(found: str, shown: str) -> None:
    """The same words, and every number near the one shown: other machines round in other places."""
    assert re.sub(NUMBER, "#", found).split() == re.sub(NUMBER, "#", shown).split()
    ours, theirs = ([float(n) for n in re.findall(NUMBER, each)] for each in (found, shown))
    assert np.allclose(ours, theirs, rtol=0.05, atol=0.02), (found, shown)


def test_both_commands_are_on_the_first_screen_and_in_ci() -> None:
    first = text("README.md").splitlines()[:24]
    assert [line.strip() for line in first if line.strip() in COMMANDS] == list(COMMANDS)
    install, test = COMMANDS[1].split(" && ")
    assert f"pip install --quiet{install.removeprefix('pip install')}" in text(".ci/run")
    assert re.search(rf"^(OMP_NUM_THREADS=1 )?{test} ", text(".ci/run"), flags=re.MULTILINE)


def test_the_python_of_the_readme_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = blocks("README.md", "python")
    (shown, *_) = blocks("README.md", "text")
    execute(code, tmp_path, monkeypatch)
    folder, found = re.compile(r"runs/\S+(?=\))"), capsys.readouterr().out
    assert folder.findall(found) == folder.findall(shown) != []
    same(folder.sub("", found), folder.sub("", shown))


def test_the_commands_of_the_readme_print_what_they_say(tmp_path: Path) -> None:
    for session in blocks("README.md", "console"):
        for part in session.split("$ ")[1:]:
            command, shown = part.split("\n", 1)
            words = command.split()
            assert words[0] == "robustkit"
            done = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, env=environment())
            assert done.returncode == 0, done.stderr
            times = re.compile(r"\d[\d.]* (ms|s|min)\b")
            head = re.compile(r"(.*?)\n\n", flags=re.DOTALL)  # sentences; the tables below are wide and vary in time
            ours, theirs = (head.match(each + "\n\n") for each in (done.stdout, shown))
            assert ours and theirs
            same(times.sub("", words_of(ours.group(1))), times.sub("", words_of(theirs.group(1))))


def words_of(printed: str) -> str:
    """Without the bar of blocks, whose length is the terminal's."""
    return "\n".join(line for line in printed.splitlines() if not re.fullmatch(r"[█▒▓░#?x.\s]+", line))


def test_the_example_of_the_architecture_finds_witnesses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("ARCHITECTURE.md", "python")
    result = execute(code, tmp_path, monkeypatch)["result"]
    assert isinstance(result, rk.Result)
    assert 0 < int(result.success.sum()) < 64
    assert float(result.size[result.success].max()) <= 0.25
    assert int(result.queries.max()) <= 20 + 2  # every step, and the judge


@pytest.mark.parametrize("kind", ["attack", "certifier"])
def test_the_table_of_methods_is_complete(kind: str) -> None:
    rows = [line.split("|")[1:-1] for line in text("README.md").splitlines() if line.startswith("| `")]
    told = {row[0].strip().strip("`"): [cell.strip() for cell in row] for row in rows}
    known = registry.every(kind)
    assert set(known) <= set(told)
    assert set(told) == set(registry.every("attack")) | set(registry.every("certifier"))
    for name, method in known.items():
        threats = "any" if "*" in method.threats else ", ".join(method.threats)
        assert told[name][1] == threats
        assert method.paper.split(",")[0] in told[name][3]
        assert told[name][4]


def test_links_lead_to_files() -> None:
    for document in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.relative_to(ROOT)} links to {target}"


def test_contributing_is_short() -> None:
    assert len(text("CONTRIBUTING.md").splitlines()) <= 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "documented"
    rk.evaluate("zoo:digits-standard", "digits:n=32", "linf:0.1", suite="quick", out=folder, progress=False)
    return folder


def test_every_file_of_a_run_is_documented(run: Path) -> None:
    told = text("docs/run-folder.md")
    for path in run.iterdir():
        assert f"`{path.name}`" in told or (path.is_dir() and f"`{path.name}/" in told), path.name


def test_every_key_of_the_summary_is_documented(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    told = text("docs/run-folder.md").partition("## summary.json")[2]
    names = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", told))))
    inner = {key for part in ("model", "data") for key in summary[part]} | {
        key for part in ("stages", "diagnostics") for key in summary[part][0]
    }
    assert sorted((set(summary) | inner) - names) == []


def test_every_column_of_a_run_is_documented(run: Path) -> None:
    told = text("docs/run-folder.md").partition("## samples.npz")[2].partition("## summary.json")[0]
    with np.load(run / "samples.npz") as columns:
        assert [name for name in columns.files if f"`{name}`" not in told] == []


def test_every_array_of_a_unit_is_documented(run: Path) -> None:
    from safetensors.numpy import load_file

    told = text("docs/run-folder.md").partition("## units")[2].partition("## samples.npz")[0]
    for path in sorted((run / "units").rglob("*.safetensors")):
        assert [name for name in load_file(path) if f"`{name}`" not in told] == [], path


def test_the_figure_can_be_drawn_again(tmp_path: Path, run: Path) -> None:
    svg = tmp_path / "figure.svg"
    subprocess.run([sys.executable, str(ROOT / "docs" / "figure.py"), str(run), str(svg)], check=True, cwd=tmp_path, env=environment())
    drawn = svg.read_text(encoding="utf-8")
    assert drawn.startswith("<svg")
    assert "var(--" not in drawn
    assert shutil.which("xmllint") is None or subprocess.run(["xmllint", "--noout", str(svg)]).returncode == 0
