"""What a run shows of its certificates: the picture by budget, the table of certifiers, the statements about a whole set."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from synthetic_run import edit_summary, synthetic_run

from robustkit.report import write_pictures, write_report
from robustkit.report.figures import beside, deterministic, reach, trace
from robustkit.report.runs import load_run
from robustkit.report.wording import extra_guarantees, guarantee, milliseconds, proofs, radii
from robustkit.tables import bracket_table, terminal
from tests.robustkit.test_tables import SUMMARY

SPACE = "\u00a0"
STATISTICAL: dict[str, Any] = {
    "certified_statistical": 0.5,
    "simultaneous": {"certified": 0.4, "alpha": 0.001, "images": 380, "wrong": 2, "confidence": 0.999, "level": 1.95e-6},
}


def certifier(name: str, given: int, proven: int, guarantee: str, seconds: float = 0.5) -> dict[str, Any]:
    told = {"name": name, "spec": name, "kind": "certifier", "eps": "8/255", "received": given, "settled": proven, "seconds": seconds}
    return SUMMARY["stages"][0] | told | {"guarantee": guarantee, "proven": proven}


def words(path: Path) -> str:
    """All text of an SVG, glyph by glyph where it is drawn as text."""
    return " ".join(node.text or "" for node in ET.parse(path).iter() if node.tag.endswith("text"))


def test_both_pictures_lie_in_the_run_folder_and_say_what_they_show(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run", curve=True)
    png, svg = write_pictures(run)
    assert (png, svg) == (run / "curve.png", run / "curve.svg")
    picture = matplotlib.image.imread(png)
    assert picture.shape[:2] == (1080, 1800)
    assert (picture[..., 3] == 1).all()  # nothing shines through on a dark page
    told = words(svg)
    for text in ("zoo:mnist-pgd on mnist", "1000 images, threat linf:0.3", "empirical: no attack succeeded", "certified: proven"):
        assert text in told
    assert "statistically" not in told
    first = png.read_bytes(), svg.read_bytes()
    write_pictures(run)
    assert (png.read_bytes(), svg.read_bytes()) == first
    assert sorted(path.name for path in run.iterdir() if "partial" in path.name) == []


@pytest.mark.parametrize("hostile", ["$x_{", "a\\b$c$", "<b>&amp;", "x" * 300])
def test_hostile_names_are_only_text(tmp_path: Path, hostile: str) -> None:
    for path in write_pictures(synthetic_run(tmp_path / "run", model=hostile)):
        assert path.stat().st_size > 5000


def with_statistical(folder: Path, **more: Any) -> Path:
    run = synthetic_run(folder, n=200)
    with np.load(run / "samples.npz") as held:
        columns = {name: held[name] for name in held.files}
    radius = np.where(columns["upper"] > 0, np.linspace(0, 0.8, 200), -np.inf)
    columns |= {"lower_statistical": radius, "lower_simultaneous": np.where(radius > 0, 0.9 * radius, -np.inf)} | more
    np.savez(run / "samples.npz", **columns)
    edit_summary(lambda summary: summary.update(STATISTICAL))(run)
    return run


def test_statistical_radii_are_lines_of_their_own_and_widen_the_picture(tmp_path: Path) -> None:
    folder = with_statistical(tmp_path / "run")
    run = load_run(folder)
    assert beside(run) == ["lower_statistical", "lower_simultaneous"]
    assert reach(run) == 0.8
    found = trace(run, 0.8)
    assert np.isin(run.columns["lower_statistical"][run.columns["lower_statistical"] > 0], found.x).all()
    assert found.certified[-1] <= 0.0 < found.certified[0]  # the proven line knows nothing of them
    told = words(write_pictures(folder)[1])
    assert "certified statistically, each image" in told
    assert "certified statistically, all at once" in told
    page = write_report([folder], tmp_path / "report.html").read_text()
    assert "certified statistically, all at once" in page
    assert "alpha 0.001 for each image" in page


def test_without_any_deterministic_proof_there_is_no_line_at_zero(tmp_path: Path) -> None:
    plain = np.where(load_run(synthetic_run(tmp_path / "other", n=200)).columns["upper"] > 0, 0.0, -np.inf)
    folder = with_statistical(tmp_path / "run", lower=plain)
    assert not deterministic(load_run(folder))
    assert "certified: proven" not in words(write_pictures(folder)[1])


# ---- words and tables


def test_classes_of_guarantees_never_share_a_column() -> None:
    stages = [
        certifier("ibp", 380, 100, "real-arithmetic", 0.38),
        certifier("sound", 280, 20, "floating-point"),
        certifier("smoothing", 380, 190, "statistical(0.001)", 38.0),
        certifier("abs", 380, 7, "conditional(descent)"),
        certifier("crown", 0, 0, "real-arithmetic"),
        SUMMARY["stages"][1],
    ]
    summary = SUMMARY | {"stages": stages}
    rows = proofs(summary)
    assert [row.label for row in rows] == ["ibp", "sound", "smoothing", "abs"]  # neither attacks nor what was given nothing
    assert [list(row.proven.values()) for row in rows] == [[100, None, None], [20, None, None], [None, 190, None], [None, None, 7]]
    assert rows[0].each == pytest.approx(1.0)
    stream = io.StringIO()
    bracket_table(summary, terminal(stream), certifiers=True)
    (line,) = [line for line in stream.getvalue().splitlines() if line.startswith("smoothing") and "statistical(0.001)" in line]
    assert line.split()[:5] == ["smoothing", "380", "-", "190", "-"]
    assert "100 ms" in line.replace(SPACE, " ")
    stream = io.StringIO()
    bracket_table(summary, terminal(stream))
    assert "statistical(0.001)" not in stream.getvalue()


def test_a_whole_set_has_its_own_statement() -> None:
    each, once = extra_guarantees(SUMMARY | STATISTICAL, 400)
    assert each.startswith(f"50.0{SPACE}% certified statistically, alpha 0.001 for each image")
    assert "at most 2 of them wrong" in each
    assert once.startswith(f"40.0{SPACE}% certified statistically all at once, with confidence 99.9{SPACE}%")
    none = STATISTICAL["simultaneous"] | {"wrong": 0}
    assert "none of them wrong" in extra_guarantees(SUMMARY | STATISTICAL | {"simultaneous": none}, 400)[0]
    assert len(extra_guarantees(SUMMARY | {"certified_statistical": 0.5}, 400)) == 1  # a run of an older version
    assert extra_guarantees(SUMMARY, 400) == []


def test_what_did_not_run_is_not_called_tried() -> None:
    only = SUMMARY | {"certified_accuracy": 0.0, "stages": [certifier("smoothing", 380, 190, "statistical(0.001)")]}
    assert "No deterministic certifier was run" in guarantee(only)
    both = only | {"stages": [*only["stages"], certifier("ibp", 380, 0, "real-arithmetic")]}
    assert guarantee(both) == "No deterministic certificate holds at this budget (tried: ibp)."


def test_radii_and_times_in_words() -> None:
    assert radii(SUMMARY) == []
    assert radii({"certified_radius": {"statistical": {"mean": 0.41524, "median": 0.5}}}) == [
        "statistical certified radius: mean 0.4152, median 0.5"
    ]
    assert [milliseconds(value) for value in (0.314, 9.99, 12.4, 3200.0)] == [
        f"{text}{SPACE}ms" for text in ("0.31", "9.99", "12", "3,200")
    ]
