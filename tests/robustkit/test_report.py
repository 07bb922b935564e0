"""The HTML report, drawn from synthetic run folders whose summary is computed from their columns."""

from __future__ import annotations

import html as html_text
import itertools
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from safetensors.numpy import save_file

from robustkit.errors import BadInput, Missing
from robustkit.numerics import float_below
from robustkit.report import palette, write_pictures, write_report
from robustkit.report.figures import trace
from robustkit.report.runs import accuracy_at, load_run
from robustkit.report.wording import duration, model_title, short, verdict
from robustkit.spec import number

SPACE = "\u00a0"


def wilson(share: float, n: int) -> list[float]:
    """A 95 % interval for the synthetic summary."""
    z = 1.96
    centre, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return [max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))]


def synthetic_run(
    folder: Path,
    *,
    n: int = 1000,
    seed: int = 0,
    curve: bool = False,
    strength: float = 1.0,
    eps: tuple[str, ...] = ("0.1", "0.2", "0.3"),
    model: str = "zoo:mnist-pgd",
    status: str = "complete",
    class_names: list[str] | None = None,
    diagnostics: list[dict[str, Any]] | None = None,
    family: str = "linf",
    gallery: int = 6,
    classes: int = 10,
) -> Path:
    """A SYNTHETIC run folder: numbers drawn at random, consistent with each other, not measured on any model."""
    draw = np.random.default_rng(seed)
    margin = draw.normal(4.2 * strength, 2.0, n)
    confidence = 1 / (1 + np.exp(-margin))
    radius = np.maximum(0.0, margin) * 0.075 * np.exp(draw.normal(0, 0.15, n))
    label = draw.integers(0, classes, n)
    correct = margin > 0
    budgets = sorted(number(text) for text in eps)
    lower, upper = np.where(correct, 0.0, -np.inf), np.where(correct, np.inf, 0.0)
    stage_of = np.full(n, -1)
    for budget in map(float_below, budgets):
        lower = np.where(correct & (0.45 * radius >= budget), budget, lower)
        hit = correct & (radius <= budget) & np.isinf(upper)
        upper = np.where(hit, np.maximum(radius, 1e-6), upper)
        stage_of = np.where(hit, np.where(draw.random(n) < 0.8, 1, 2), stage_of)
    if curve:
        upper = np.where(correct, np.maximum(radius, 1e-6), 0.0)
        lower = np.where(correct, 0.45 * radius, -np.inf)
    columns: dict[str, Any] = {
        "index": np.arange(n),
        "label": label,
        "predicted": np.where(correct, label, (label + 1) % classes),
        "confidence": confidence.astype(np.float32),
        "clean_margin": margin.astype(np.float32),
        "lower": lower,
        "lower_statistical": np.where(correct, 0.0, -np.inf),
        "lower_conditional": np.where(correct, 0.0, -np.inf),
        "upper": upper,
        "lower_stage": np.where(lower > 0, 0, -1),
        "upper_stage": stage_of,
        "radius_covered": np.full(n, curve),
        "adversarial_class": np.where(np.isfinite(upper) & (upper > 0), (label + 3) % classes, -1),
    }
    folder.mkdir(parents=True)
    np.savez(folder / "samples.npz", **columns)

    def at(value: float) -> dict[str, float]:
        return {"robust_accuracy": float((upper > value).mean()), "certified_accuracy": float((lower >= value).mean())}

    main, clean = at(float_below(budgets[-1])), float(correct.mean())
    names = ("ibp", "apgd", "pgd")
    specs = ("ibp:", "apgd:loss=ce,restarts=1,steps=100", "pgd:steps=40,restarts=10,step_size=1/40,loss=margin")
    after = [
        (clean, main["certified_accuracy"]),
        (float(((upper > float_below(budgets[-1])) | (stage_of == 2)).mean()), main["certified_accuracy"]),
        tuple(main.values()),
    ]
    stages: list[dict[str, Any]] = []
    received = int(correct.sum())
    for place, (name, spec, (robust, certified)) in enumerate(zip(names, specs, after)):
        settled = round(n * certified) if place == 0 else round(n * ((after[place - 1][0]) - robust))
        stages.append(
            {
                "name": name,
                "spec": spec.rstrip(":"),
                "kind": "certifier" if place == 0 else "attack",
                "received": received,
                "settled": settled,
                "robust_accuracy": robust,
                "certified_accuracy": certified,
                "seconds": 0.31 * 6**place,
                "forwards": received * 100 * place + received * 2,
                "backwards": received * 100 * place,
                "queries": received * 101 * place,
            }
        )
        received -= settled
    data: dict[str, Any] = {"spec": f"mnist:n={n}", "sha256": "5f" * 32, "n": n}
    if class_names:
        data["class_names"] = class_names
    summary = {
        "schema_version": 1,
        "model": {"spec": model, "sha256": "ab" * 32, "parameters": 166406},
        "data": data,
        "threat": f"{family}:{eps[-1]}",
        "eps": list(eps),
        "goal": "untargeted",
        "labels": "given",
        "seed": seed,
        "clean_accuracy": clean,
        **main,
        "certified_statistical": 0.0,
        "certified_conditional": 0.0,
        "open": main["robust_accuracy"] - main["certified_accuracy"],
        "interval95": {"clean_accuracy": wilson(clean, n), **{key: wilson(value, n) for key, value in main.items()}},
        "population95": [wilson(main["certified_accuracy"], n)[0], wilson(main["robust_accuracy"], n)[1]],
        "curve": [{"eps": float(budget), **at(float_below(budget))} for budget in budgets],
        "eight_bit": 0.918,
        "stages": stages,
        "diagnostics": [{"check": "zero gradients", "status": "pass", "message": "all 64 probe gradients are non-zero", "cure": ""}]
        if diagnostics is None
        else diagnostics,
        "environment": {"python": "3.11.7", "torch": "2.13.0", "device": "cpu"},
        "run": f"runs/{folder.name}",
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    record = {
        "schema_version": 1,
        "digest": "0123456789abcdef",
        "status": status,
        "specification": {"model": model, "data": data["spec"], "threat": summary["threat"], "stages": list(specs), "seed": seed},
        "environment": {"robustkit": "0.1.0", "platform": "Linux x86_64", "threads": 2},
        "command": f"robustkit evaluate {model} --data {data['spec']} --threat {summary['threat']} --eps {','.join(eps)}",
    }
    (folder / "run.json").write_text(json.dumps(record))
    hits = np.flatnonzero(np.isfinite(upper) & (upper > 0))[:gallery]
    if len(hits):
        save_file(synthetic_gallery(draw, columns, hits, float(budgets[-1])), folder / "gallery.safetensors")
    return folder


def synthetic_gallery(draw: np.random.Generator, columns: dict[str, Any], hits: Any, eps: float) -> dict[str, Any]:
    """Blobs as images, signs within the budget as perturbations."""
    grid = np.linspace(-1, 1, 28)
    across, down = np.meshgrid(grid, grid)
    centre = draw.uniform(-0.4, 0.4, (len(hits), 2))
    clean = np.stack([np.exp(-20 * (np.hypot(across - a, down - b) - 0.4) ** 2) for a, b in centre])[:, None].astype(np.float32)
    adversarial = np.clip(clean + eps * draw.choice([-1, 0, 1], clean.shape), 0, 1).astype(np.float32)
    columns = {"stage": columns["upper_stage"], **columns}
    return {"clean": clean, "adversarial": adversarial} | {
        key: columns[key][hits].astype(np.int64) for key in ("label", "predicted", "adversarial_class", "index", "stage")
    }


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


def report(tmp_path: Path, *runs: Path) -> str:
    return write_report(runs, tmp_path / "report.html").read_text(encoding="utf-8")


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
    for entry, eps in zip(summary["curve"], summary["eps"]):
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
    summary["robust_accuracy"] += 0.1
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "The run folder contradicts itself: robust_accuracy" in report(tmp_path, folder)


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


def test_the_exact_curve_is_the_step_function_of_the_samples(tmp_path: Path) -> None:
    run = load_run(synthetic_run(tmp_path / "run", n=97, curve=True))
    found = trace(run, 0.4)
    assert found.exact
    assert (found.certified <= found.robust + 1e-12).all()
    upper, lower = run.columns["upper"], run.columns["lower"]
    for eps in np.linspace(0.0005, 0.399, 50):
        last = np.searchsorted(found.x, eps, side="right") - 1
        assert found.robust[last] == pytest.approx((upper > eps).mean())
        assert found.certified[last] == pytest.approx((lower >= eps).mean())


def test_without_a_radius_stage_only_reported_budgets_are_claimed(tmp_path: Path) -> None:
    folder = synthetic_run(tmp_path / "run")
    run = load_run(folder)
    found = trace(run, run.budget[1])
    assert not found.exact
    assert len(found.points[0]) == 4
    for budget, robust, certified in zip(*(row[1:] for row in found.points)):
        assert robust == (run.columns["upper"] > budget).mean()
        assert certified == (run.columns["lower"] >= budget).mean()
    assert (found.certified <= found.robust).all()
    assert "dashed because no attack was run between the points" in report(tmp_path, folder)


def test_budgets_that_floats_cannot_hold_are_compared_as_the_engine_does(tmp_path: Path) -> None:
    run = load_run(synthetic_run(tmp_path / "run", eps=("1/10", "8/255", "0.2")))
    assert [text for text, _ in run.budgets] == ["8/255", "1/10", "0.2"]
    assert run.disagreements() == []
    assert run.shares["certified"] == run.summary["certified_accuracy"]
    assert run.shares["open"] == pytest.approx(run.summary["open"])


def test_accuracy_counts_strictly_unless_closed() -> None:
    values, where = np.array([0.0, 0.1, 0.1, np.inf, -np.inf]), np.array([0.0, 0.1, 0.2])
    assert accuracy_at(values, where, closed=False).tolist() == pytest.approx([0.6, 0.2, 0.2])
    assert accuracy_at(values, where, closed=True).tolist() == pytest.approx([0.8, 0.6, 0.2])


def edit_summary(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        summary = json.loads((folder / "summary.json").read_text())
        change(summary)
        (folder / "summary.json").write_text(json.dumps(summary))

    return edit


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        (lambda folder: (folder / "summary.json").unlink(), Missing, "summary.json is missing"),
        (lambda folder: (folder / "samples.npz").unlink(), Missing, "samples.npz is missing"),
        (lambda folder: (folder / "summary.json").write_text("<html>"), BadInput, "cannot be read"),
        (lambda folder: (folder / "run.json").write_text("[]"), BadInput, "no JSON object"),
        (lambda folder: (folder / "samples.npz").write_bytes(b"PK\x03\x04 torn"), BadInput, "cannot be read"),
        (lambda folder: np.savez(folder / "samples.npz", label=np.zeros(3)), BadInput, "lacks the columns predicted"),
        (lambda folder: (folder / "gallery.safetensors").write_bytes(b"torn"), BadInput, "cannot be read"),
        (edit_summary(lambda summary: summary.update(schema_version=2)), BadInput, "schema_version 2"),
        (edit_summary(lambda summary: summary.pop("curve")), BadInput, "lacks curve"),
        (lambda folder: shutil.rmtree(folder), Missing, "no run folder"),
    ],
)
def test_a_damaged_run_folder_is_one_clear_line(tmp_path: Path, change: Callable[[Path], None], kind: type[Exception], told: str) -> None:
    folder = synthetic_run(tmp_path / "run", n=20)
    change(folder)
    with pytest.raises(kind, match=told) as caught:
        report(tmp_path, folder)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_no_run_and_an_unwritable_place_are_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="at least one run"):
        write_report([], tmp_path / "report.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        write_report([synthetic_run(tmp_path / "run", n=20)], tmp_path / "file" / "report.html")


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


def luminance(colour: str) -> float:
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


def linear(colour: str) -> np.ndarray[Any, Any]:
    values = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def oklab(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    cones = np.array(
        [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566], [0.0883024619, 0.2817188376, 0.6299787005]]
    )
    final = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.asarray(final @ np.cbrt(cones @ values))


VISION = {
    "usual": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}
"""Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB."""


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("colours", [palette.LIGHT, palette.DARK, palette.TERMINAL], ids=["light", "dark", "terminal"])
def test_states_stay_apart_for_every_eye(colours: dict[str, str], vision: str) -> None:
    seen = {state: oklab(np.clip(VISION[vision] @ linear(colours[state]), 0, 1)) for state in palette.STATES}
    for one, other in itertools.combinations(palette.STATES, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 0.11, (one, other)


def test_colours_contrast_with_their_background() -> None:
    for colours, runs in ((palette.LIGHT, palette.RUNS_LIGHT), (palette.DARK, palette.RUNS_DARK)):
        for background in ("paper", "panel"):
            assert all(contrast(colours[text], colours[background]) >= 4.5 for text in ("ink", "soft"))
        assert all(contrast(colour, colours["paper"]) >= 3 for colour in (*runs, *(colours[state] for state in palette.STATES)))
    for background in ("#000000", "#ffffff"):
        assert all(contrast(colour, background) >= 3 for colour in palette.TERMINAL.values())


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
        "robust_accuracy": 0.5,
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
