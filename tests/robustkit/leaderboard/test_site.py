"""The static site in a real browser: sorting, filtering, opening an entry, comparing two, by mouse and by keyboard."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from robustkit.cli import main
from robustkit.leaderboard import Leaderboard
from robustkit.leaderboard.manifest import Entry
from robustkit.leaderboard.site import pack, sample_states

CHROMIUM = next((found for found in map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")) if found), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync "
    "--hide-scrollbars --remote-debugging-pipe"
)
HOSTILE = '<img src=x onerror="document.title=1"></script><script>document.title=2</script>"\'&amp; {{ 7*7 }} מודל'
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome on this machine")


class Gone(Exception):
    """The browser could not answer, for example between two pages."""


class Browser:
    """One page of a headless chromium, driven over its debugging pipe: no library, no network."""

    def __init__(self, profile: Path) -> None:
        theirs, self.write = os.pipe()
        self.read, out = os.pipe()
        script = f'exec "$0" "$@" 3<&{theirs} 4>&{out}'
        command = ["bash", "-c", script, str(CHROMIUM), *FLAGS.split(), f"--user-data-dir={profile}", "about:blank"]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, pass_fds=(theirs, out), stdout=quiet, stderr=quiet)
        os.close(theirs)
        os.close(out)
        self.held, self.number, self.session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        os.write(self.write, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while True:
            while b"\0" not in self.held:
                part = os.read(self.read, 1 << 16)
                assert part, "the browser has ended"
                self.held += part
            first, _, self.held = self.held.partition(b"\0")
            answer = json.loads(first)
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise Gone(answer["error"])
                return dict(answer["result"])
            self.events.append(answer)

    def open(self, page: Path, fragment: str = "") -> None:
        self.call("Page.navigate", url="about:blank")
        self.wait("location.href === 'about:blank'")
        self.call("Page.navigate", url=page.as_uri() + fragment)
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def evaluate(self, script: str) -> Any:
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait(self, script: str) -> None:
        until = time.monotonic() + 60
        while True:
            with suppress(Gone):  # the page has just been left
                if self.evaluate(script):
                    return
            assert time.monotonic() < until, script
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """A click that may lead away from the page."""
        self.evaluate(f"setTimeout(() => document.querySelector({selector!r}).click(), 0), 0")

    def width(self, pixels: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=pixels, height=900, deviceScaleFactor=1, mobile=pixels < 600)

    def press(self, name: str, code: int, text: str = "") -> None:
        told: dict[str, Any] = {"key": name, "code": name, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **told, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **told)

    def write_text(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def complaints(self) -> list[str]:
        """What the console, the log or a script said, and every address outside file: and data: that was asked for."""
        found = []
        for event in self.events:
            if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                found.append(json.dumps(event["params"])[:300])
            if event.get("method") == "Network.requestWillBeSent":
                address = event["params"]["request"]["url"]
                found += [] if address.startswith(("file:", "data:", "about:")) else [address]
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.write)
        os.close(self.read)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture
def site(board: Leaderboard, plant: Callable[..., Entry], runs: Path, tmp_path: Path) -> Path:
    """Two ranked entries, one of them challenged by a hostile name, one with a hostile name, one damaged."""
    first, second = board.entries()
    for entry in (first, second):
        board.rerun(entry.id, sample=48, progress=False)
    plant(board, first, name=HOSTILE, paper=HOSTILE, training_data=HOSTILE)
    damaged = plant(board, second, name="Damaged", paper="x")
    (damaged.folder / "samples.npz").write_bytes(b"")
    assert main(["leaderboard", "site", "--board", str(board.path), "--out", str(tmp_path / "site")]) == 0
    return tmp_path / "site"


NAMES = (
    "Array.from(document.querySelectorAll('#board tbody tr')).filter(r => !r.hidden).map(r => r.cells[1].querySelector('a').textContent)"
)
COLUMNS = ["rank", "name", "robust at least", "submitted", "best known", "clean", "certified", "claimed", "state", "checks", "surface"]
PLAIN = ["The certified one", "The standard one"]


@needs_browser
def test_sorting_filtering_and_opening(site: Path, browser: Browser) -> None:
    browser.width(1200)
    browser.open(site / "index.html")
    assert browser.evaluate(NAMES) == [*PLAIN, HOSTILE, "Damaged"] or browser.evaluate(NAMES) == [*PLAIN, "Damaged", HOSTILE]
    assert browser.evaluate("document.title") == "small@1 · robustness leaderboard"
    head = "document.querySelectorAll('#board thead button')[{}].click()"
    values = "Array.from(document.querySelectorAll('#board tbody tr')).map(r => r.cells[{0}].dataset.v).filter(v => v).map(Number)"
    for column, held in ((2, 2), (4, 3), (5, 3), (6, 2)):
        browser.evaluate(head.format(column))
        down = browser.evaluate(values.format(column))
        assert down == sorted(down, reverse=True) and len(down) == held
        assert browser.evaluate(f"document.querySelectorAll('#board th')[{column}].getAttribute('aria-sort')") == "descending"
        browser.evaluate(head.format(column))
        assert browser.evaluate(values.format(column)) == sorted(down)
        assert browser.evaluate(NAMES)[-1] == "Damaged"  # what has no value stays last
    browser.evaluate("document.getElementById('filter').focus()")
    browser.write_text("digits CERTIFIED")
    assert browser.evaluate(NAMES) == ["The certified one"]
    assert browser.evaluate("document.getElementById('count').textContent") == "1 of 4 entries"
    browser.evaluate("const f = document.getElementById('filter'); f.value = ''; f.dispatchEvent(new Event('input'))")
    browser.evaluate("const s = document.getElementById('state'); s.value = 'damaged'; s.dispatchEvent(new Event('change'))")
    assert browser.evaluate(NAMES) == ["Damaged"]
    browser.click("#board tbody tr:not([hidden]) a")
    browser.wait("location.pathname.includes('/entry/') && document.readyState === 'complete'")
    assert "cannot be shown" in browser.evaluate("document.body.textContent")
    browser.click("header a")
    browser.wait("location.pathname.endsWith('index.html') && document.readyState === 'complete'")
    assert browser.complaints() == []


@needs_browser
def test_with_the_keyboard_alone(site: Path, browser: Browser) -> None:
    browser.width(1200)
    browser.open(site / "index.html")
    seen = []
    for _ in range(24):
        browser.press("Tab", 9)
        seen.append(browser.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert seen[0] == "Skip to the content"
    assert seen[1:4] == ["filter", "state", "order"]
    assert seen[4:15] == COLUMNS
    assert seen[15:17] == PLAIN
    browser.open(site / "index.html")
    for _ in range(7):
        browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.textContent") == "robust at least"
    assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("Enter", 13, "\r")
    assert browser.evaluate("document.querySelectorAll('#board th')[2].getAttribute('aria-sort')") == "descending"
    for _ in range(9):
        browser.press("Tab", 9)
    wanted = browser.evaluate("document.activeElement.textContent")
    browser.press("Enter", 13, "\r")
    browser.wait("location.pathname.includes('/entry/') && document.readyState === 'complete'")
    assert browser.evaluate("document.querySelector('h1').textContent") == wanted


@needs_browser
@pytest.mark.parametrize("width", [320, 390, 768, 1200])
def test_nothing_is_wider_than_the_screen(site: Path, browser: Browser, width: int) -> None:
    browser.width(width)
    for page in (
        site / "index.html",
        site / "compare.html",
        *(p for p in sorted((site / "entry").glob("*.html")) if "report" not in p.name),
    ):
        browser.open(page)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width, page
        assert browser.evaluate("document.querySelectorAll('img[onerror], script:not([type])').length") == (page.parent == site)
    assert browser.complaints() == []


@needs_browser
def test_the_comparison_of_two(site: Path, board: Leaderboard, browser: Browser) -> None:
    first, second = board.entries()[:2]
    browser.width(1200)
    browser.open(site / "compare.html", f"#a={first.id}&b={second.id}")
    a, b = (sample_states(entry.columns["upper"], entry.columns["lower"], 0.06) for entry in (first, second))
    cells = "Array.from(document.querySelectorAll('#agreement td')).map(c => Number(c.textContent))"
    assert browser.evaluate(cells) == [int(((a == i) & (b == j)).sum()) for i in range(4) for j in range(4)]
    only = (int(((a < 2) & (b >= 2)).sum()), int(((a >= 2) & (b < 2)).sum()))
    p = float(browser.evaluate("document.getElementById('verdict').dataset.p"))
    assert p == pytest.approx(binomtest(only[0], sum(only)).pvalue, rel=1e-6)
    assert browser.evaluate("document.getElementById('head-first').textContent") == first.name
    browser.evaluate(
        "const s = document.getElementById('second'); s.selectedIndex = s.options.length - 1; s.dispatchEvent(new Event('change'))"
    )
    assert browser.evaluate("document.getElementById('head-second').textContent") == HOSTILE
    assert browser.complaints() == []


def test_hostile_names_are_only_names(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "<img src=x" not in text and "<script>document" not in text and "</script><script>" not in text
        assert re.search(r"""(?:src|href)=["']?(?:https?:)?//""", text) is None
        assert "Content-Security-Policy" in text
        if "report" not in page.name:
            assert "{{ 7*7 }}" in text or "49" not in text or page.parent != site
    assert HOSTILE in (row["name"] for row in json.loads((site / "board.json").read_text())["entries"])


def test_the_site_is_the_board(site: Path, board: Leaderboard) -> None:
    rows = board.standings()
    index = (site / "index.html").read_text(encoding="utf-8")
    for row in rows:
        assert (site / "entry" / f"{row.id}.html").is_file()
        assert f'href="entry/{row.id}.html"' in index
        assert row.best_known is None or f'data-v="{row.best_known!r}"' in index
    pages = {path.name for path in (site / "entry").iterdir() if "report" not in path.name}
    assert pages == {f"{row.id}.html" for row in rows}
    whole = [row for row in rows if row.state != "damaged"]
    assert {path.name for path in (site / "entry").glob("*-report.html")} == {f"{row.id}-report.html" for row in whole}
    page = (site / "entry" / f"{whole[0].id}.html").read_text(encoding="utf-8")
    for part in (
        "Accuracy against the budget",
        "Witnesses",
        "images of this board are public",
        "data:image/png;base64,",
        "Honesty checks",
        "History",
        "--level rerun",
        "Full report",
    ):
        assert part in page
    assert (site / "board.csv").read_text().count("\n") == len(rows) + 1


@pytest.mark.parametrize("n", [1, 2, 3, 47, 48])
def test_three_samples_to_a_character(n: int) -> None:
    states = np.random.default_rng(n).integers(0, 4, n)
    signs = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    text = pack(states)
    assert [(signs.index(text[i // 3]) >> (2 * (i % 3))) & 3 for i in range(n)] == states.tolist()
    assert len(base64.b64decode("A" * (-len(text) % 4) + text, altchars=b"-_")) >= len(text) // 2


def test_an_empty_board_has_a_site(empty: Leaderboard, tmp_path: Path) -> None:
    index = empty.site(tmp_path / "site")
    assert "0 of 0" not in index.read_text() and "small@1" in index.read_text()


def test_the_certified_curve_is_drawn_in_steps() -> None:
    """At budgets between the reported ones a certificate of the next larger one holds, and no more is known."""
    from robustkit.leaderboard.drawing import curve

    shares = [(0.0, 1.0, 1.0), (0.1, 0.8, 0.5), (0.2, 0.6, 0.0)]
    points = [{"eps": eps, "robust_accuracy": robust, "certified_accuracy": certified} for eps, robust, certified in shares]
    drawn = curve({"curve": points, "threat": "linf:0.2"})
    found = re.search(r'class="certified" points="([^"]*)"', drawn)
    assert found
    places = [tuple(map(float, pair.split(","))) for pair in found.group(1).split()]
    assert len(places) == 5
    for (x0, y0), (x1, y1) in zip(places, places[1:]):
        assert x0 == x1 or y0 == y1
    assert [y for _, y in places] == sorted(y for _, y in places)
