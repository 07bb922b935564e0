"""The HTML report, drawn from synthetic run folders whose summary is computed from their columns."""

from __future__ import annotations

import html as html_text
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from safetensors.numpy import save_file
from synthetic_run import edit_summary, report, synthetic_run

from robustkit.report import write_pictures, write_report
from robustkit.report.runs import load_run
from robustkit.report.wording import duration, model_title, short, verdict

SPACE = "\u00a0"


class Page(HTMLParser):
    """Every tag with its attributes, and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if "id" in found:
            self.ids.append(str(found["id"]))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    text = report(tmp_path, synthetic_run(tmp_path / "run"))
    page = Page(text)
    assert not {"script", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for key in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attributes.get(key) or "#").startswith(("#", "data:")), (tag, key)
        assert not any(key.startswith("on") for key in attributes), tag
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert "default-src 'none'" in text


def test_ids_are_unique_and_references_resolve(tmp_path: Path) -> None:
    page = Page(report(tmp_path, synthetic_run(tmp_path / "a"), synthetic_run(tmp_path / "b", curve=True)))
    assert len(page.ids) == len(set(page.ids))
    wanted = [
        str(attributes[key]).lstrip("#")
        for _, attributes in page.tags
        for key in ("href", "xlink:href", "aria-labelledby")
        if attributes.get(key, "data:") != "data:"
    ]
    wanted += re.findall(r"url\(#([^)]*)\)", " ".join(str(value) for _, attributes in page.tags for value in attributes.values()))
    assert wanted
    assert {name for name in wanted if not name.startswith("data:")} <= set(page.ids)


def test_every_picture_is_described(tmp_path: Path) -> None:
    page = Page(report(tmp_path, synthetic_run(tmp_path / "run", class_names=[f"kind {k}" for k in range(10)])))
    images = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 6 * 3
    assert "predicted kind" in str(images[1])
    drawn = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("aria-hidden") != "true"]
    assert len(drawn) == 6
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in drawn)


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "$x^2$ <b>bold</b>"])
def test_hostile_names_are_only_text(tmp_path: Path, hostile: str) -> None:
    diagnostics = [{"check": hostile, "status": "warn", "message": hostile, "cure": hostile}]
    run = synthetic_run(tmp_path / "run", model=hostile, class_names=[hostile] * 10, diagnostics=diagnostics)
    text = report(tmp_path, run, synthetic_run(tmp_path / "other"))
    page = Page(text)
    assert not any(tag == "script" or any(key.startswith("on") for key in attributes) for tag, attributes in page.tags)
    assert str(html_text.escape(hostile)).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in text
    assert page.text.count(re.sub(r"\s+", " ", hostile)) >= 10


@pytest.mark.parametrize("n", [300, 2000])
@pytest.mark.parametrize("curve", [False, True])
def test_the_page_shows_the_numbers_of_the_summary(tmp_path: Path, n: int, curve: bool) -> None:
    folder = synthetic_run(tmp_path / "run", n=n, curve=curve)
    summary = json.loads((folder / "summary.json").read_text())
    text = report(tmp_path, folder).replace(SPACE, " ")
    digits = 1 if n <= 1000 else 2
    clean, robust, certified = (f"{100 * summary[f'{key}_accuracy']:.{digits}f} %" for key in ("clean", "robust", "certified"))
    assert re.search(rf'class="big c-certified">{re.escape(certified)}<', text)
    assert re.search(rf'class="big c-broken right">{re.escape(robust)}<', text)
    assert f"clean {clean}" in Page(text).text
    rows = [
        [re.sub(r"<small>.*?</small>|<[^>]+>", "", cell) for cell in re.findall(r"<t[hd][^>]*>.*?</t[hd]>", row)]
        for row in re.findall(r"<tr>(<th scope=\"row\">.*?)</tr>", text)
    ]
    for entry, eps in zip(summary["curve"][1:], summary["eps"]):
        left = entry["robust_accuracy"] - entry["certified_accuracy"]
        assert [eps, clean, *(f"{100 * v:.{digits}f} %" for v in (entry["robust_accuracy"], entry["certified_accuracy"], left))] in rows
    for stage in summary["stages"]:
        assert f"{stage['forwards']:,}" in text


def test_classes_add_up_to_the_headline(tmp_path: Path) -> None:
    folder = synthetic_run(tmp_path / "run", n=700)
    run = load_run(folder)
    text = report(tmp_path, folder).replace(SPACE, " ")
    table = text[text.index('<table class="classes">') :]
    rows = re.findall(
        r'<tr><th scope="row">(.*?)</th><td class="num">(\d+)</td>' + r'<td class="num">([\d.]+) %</td>' * 4,
        table[: table.index("</table>")],
    )
    assert [row[0] for row in rows] == [str(label) for label in range(10)]
    sizes = np.array([int(row[1]) for row in rows])
    assert sizes.sum() == 700
    for place, key in ((2, "clean"), (3, "robust"), (4, "certified")):
        mean = (sizes * np.array([float(row[place]) for row in rows])).sum() / 700
        assert mean == pytest.approx(100 * run.summary[f"{key}_accuracy"], abs=0.051)


def test_stages_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folder = synthetic_run(tmp_path / "run")

    def as_the_engine_writes(summary: dict[str, Any]) -> None:
        certifier, *attacks = summary["stages"]
        for attack, loss in zip(attacks, ("ce", "dlr-targeted")):
            attack |= {"name": "apgd", "spec": f"apgd:loss={loss},steps=100"}
        summary["stages"] = [{**stage, "eps": eps, "note": "a <note>"} for stage in (certifier, *attacks) for eps in summary["eps"]]

    edit_summary(as_the_engine_writes)(folder)
    text = report(tmp_path, folder)
    rows = re.findall(r'<tr role="row"><th scope="row" role="rowheader">([^<]+)<.*?data-label="budget">([^<]+)</td>', text)
    assert rows == [(name, eps) for name in ("ibp", "apgd ce", "apgd dlr-targeted") for eps in ("0.1", "0.2", "0.3")]
    assert text.count("apgd:loss=ce,steps=100</code>") == 1  # not repeated for each budget
    assert text.count("a &lt;note&gt;") == 9
    assert {load_run(folder).stage_name(place) for place in (-1, 0, 3, 8)} == {"", "ibp", "apgd ce", "apgd dlr-targeted"}


def test_a_path_is_shown_by_its_file_name(tmp_path: Path) -> None:
    page = Page(report(tmp_path, synthetic_run(tmp_path / "run", model="/home/someone/weights/net.safetensors")))
    assert "net.safetensors · robustness report" in page.text
    assert model_title("mine:make,path=/a/b") == "mine:make,path=/a/b"


def test_many_classes_show_the_weakest_first(tmp_path: Path) -> None:
    text = report(tmp_path, synthetic_run(tmp_path / "run", n=3000, classes=60)).replace(SPACE, " ")
    assert "The other 40 classes" in text
    robust = [
        float(found)
        for found in re.findall(
            r'<tr><th scope="row">\d+</th><td class="num">\d+</td><td class="num">[\d.]+ %</td><td class="num">([\d.]+) %', text
        )
    ]
    assert len(robust) == 60
    assert robust == sorted(robust)


def test_problems_stand_first(tmp_path: Path) -> None:
    diagnostics = [
        {"check": "restarts", "status": "warn", "message": "more restarts lower it", "cure": "use more restarts"},
        {"check": "zero gradients", "status": "pass", "message": "none", "cure": "PASS-CURE"},
        {"check": "train mode", "status": "error", "message": "dropout is active", "cure": "call eval()"},
    ]
    text = report(tmp_path, synthetic_run(tmp_path / "run", n=150, status="interrupted", diagnostics=diagnostics))
    banners = re.findall(r'<div class="banner (error|warn)" role="note"><strong>(.*?)</strong>(.*?)</div>', text)
    assert [kind for kind, _, _ in banners] == ["error", "error", "warn", "warn"]
    assert "not complete (status: interrupted)" in banners[0][1]
    assert "train mode: dropout is active" in banners[1][1]
    assert "call eval()" in banners[1][2]
    assert "Only 150 images" in banners[3][1]
    assert "±8.0" in banners[3][2]
    assert text.index('class="banner') < text.index('class="bracket"')
    table = text[text.index("Can the number be trusted?") :]
    assert table.index("dropout is active") < table.index("more restarts lower it") < table.index("zero gradients")
    assert "PASS-CURE" not in text


def test_a_sound_run_has_no_banner(tmp_path: Path) -> None:
    assert 'class="banner' not in report(tmp_path, synthetic_run(tmp_path / "run"))


def test_a_summary_that_the_samples_do_not_bear_out_is_flagged(tmp_path: Path) -> None:
    folder = synthetic_run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    summary["robust_accuracy_at_most"] += 0.1
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "The run folder contradicts itself: robust_accuracy_at_most" in report(tmp_path, folder)


def test_several_runs_are_compared(tmp_path: Path) -> None:
    runs = [
        synthetic_run(tmp_path / "settled"),
        synthetic_run(tmp_path / "curved", curve=True, strength=0.7, n=400),
        synthetic_run(tmp_path / "other", family="l2", model="zoo:third"),
    ]
    text = report(tmp_path, *runs)
    page = Page(text)
    for place, folder in enumerate(runs, 1):
        assert re.search(rf'<a href="#run{place}">{folder.name}</a>', text)
        summary = json.loads((folder / "summary.json").read_text())
        assert f"{100 * summary['robust_accuracy']:.1f}{SPACE}%" in text
    assert "differ in threat" in page.text
    overlays = [
        str(attributes["aria-label"]) for tag, attributes in page.tags if tag == "svg" and "for 2 runs" in str(attributes.get("aria-label"))
    ]
    assert len(overlays) == 2  # wide and narrow, of the linf runs only: l2 budgets are not comparable
    assert [tag for tag, _ in page.tags].count("h1") == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


@pytest.mark.parametrize(
    "edge", ["no gallery", "no stage", "all wrong", "all robust", "nan margins", "colour images", "one image", "zero budget"]
)
def test_runs_at_the_edge_are_drawn(tmp_path: Path, edge: str) -> None:
    n = 1 if edge == "one image" else 40
    folder = synthetic_run(
        tmp_path / "run",
        n=n,
        eps=("0",) if edge == "zero budget" else ("0.3",),
        strength=-9 if edge == "all wrong" else 90 if edge == "all robust" else 1,
    )
    with np.load(folder / "samples.npz") as stored:
        columns = dict(stored)
    if edge == "no gallery":
        (folder / "gallery.safetensors").unlink()
    if edge == "no stage":
        edit_summary(lambda summary: summary.update(stages=[], curve=[]))(folder)
    if edge == "nan margins":
        columns["clean_margin"][:3] = [np.nan, np.inf, -np.inf]
        np.savez(folder / "samples.npz", **columns)
    if edge == "colour images":
        image = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
        save_file(
            {"clean": image, "adversarial": image[::-1].copy()}
            | {key: np.zeros(2, np.int64) for key in ("label", "predicted", "adversarial_class", "index", "stage")},
            folder / "gallery.safetensors",
        )
    assert len(write_pictures(folder)) == 2
    text = report(tmp_path, folder)
    assert text.rstrip().endswith("</html>")
    shown = (folder / "gallery.safetensors").exists()
    assert ("Adversarial examples" in text) == shown
    assert shown == (
        edge in ("no stage", "nan margins", "colour images") or (edge == "one image" and load_run(folder).shares["broken"] == 1)
    )
    assert ("3 images without a finite margin" in text) == (edge == "nan margins")
    assert ("No stage has run yet" in text) == (edge == "no stage")


def test_the_same_runs_give_the_same_bytes_and_leave_matplotlib_alone(tmp_path: Path) -> None:
    folder = synthetic_run(tmp_path / "run", n=100)
    before = dict(matplotlib.rcParams)
    first = report(tmp_path, folder)
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"axes.grid": True, "font.size": 30, "axes.facecolor": "red"}):
        assert report(tmp_path, folder) == first
    assert not list(tmp_path.glob(".*partial"))


def test_figure_colours_all_become_variables(tmp_path: Path) -> None:
    text = report(tmp_path, synthetic_run(tmp_path / "a", n=100), synthetic_run(tmp_path / "b", n=100, curve=True))
    figures = re.findall(r"<svg xmlns:xlink.*?</svg>", text, flags=re.DOTALL)
    assert len(figures) == 2 + 2 * 6
    assert {colour for figure in figures for colour in re.findall(r"#[0-9a-f]{6}\b(?!-)", figure)} == set()


def test_words_and_numbers() -> None:
    assert [duration(t) for t in (0.5, 61, 200, 7500)] == [
        f"0.50{SPACE}s",
        f"61{SPACE}s",
        f"3{SPACE}min{SPACE}20{SPACE}s",
        f"2{SPACE}h{SPACE}05{SPACE}min",
    ]
    assert [short(v) for v in (812, 12345, 4_560_000)] == ["812", "12.3k", "4.56M"]
    summary = {
        "data": {"n": 200},
        "clean_accuracy": 0.9,
        "robust_accuracy_at_most": 0.5,
        "not_established": "",
        "certified_accuracy": 0.5,
        "labels": "given",
        "threat": "l2:0.5",
    }
    told = verdict(summary, "0.5").replace(SPACE, " ")
    assert "180 are classified correctly" in told
    assert "Euclidean norm of at most 0.5" in told
    assert "none is left open: the robust accuracy is 50.0 %" in told


CHROMIUM = next((found for found in map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")) if found), None)


def browse(page: Path, profile: Path) -> tuple[str, str]:
    """The document after loading, and what the browser logged."""
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    command = [str(CHROMIUM), *flags.split(), "--enable-logging=stderr", "--dump-dom", f"--user-data-dir={profile}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome on this machine")
def test_a_real_browser_loads_it_without_complaint(tmp_path: Path) -> None:
    runs = [synthetic_run(tmp_path / "a", status="incomplete"), synthetic_run(tmp_path / "b", curve=True, model="<i>x</i>")]
    page = write_report(runs, tmp_path / "report.html")
    loaded, log = browse(page, tmp_path / "profile")
    assert "CONSOLE" not in log
    assert Page(loaded).text.count("Reproduce and interpret") == 2
    assert Page(loaded).ids == Page(page.read_text(encoding="utf-8")).ids
    inner = html_text.escape(re.sub(r"<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8")))
    probe = "onload='const page = this.contentDocument.documentElement; document.title += `${page.scrollWidth - page.clientWidth};`'"
    frames = "".join(f'<iframe style="width:{width}px;border:0" srcdoc="{inner}" {probe}></iframe>' for width in (340, 375, 768, 1200))
    (tmp_path / "frames.html").write_text(f"<!DOCTYPE html><title></title>{frames}", encoding="utf-8")
    found, _ = browse(tmp_path / "frames.html", tmp_path / "profile")
    assert re.findall(r"<title>(.*?)</title>", found)[0] == "0;" * 4  # nothing is wider than its window
