"""The report in a real browser, wide and narrow, light and dark."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from nas_plugin.evaluation.report import write_report
from nas_plugin.evaluation.report.palette import ROLES
from tests.evaluation.fake_runs import write_comparison

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = [
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")

# What reaches over the page's edge, other than what scrolls inside its own box.
OUTSIDE = """() => [...document.body.querySelectorAll('*')]
  .filter(e => !e.closest('.samples') && !(e.closest('.scroll') && !e.matches('.scroll')))
  .map(e => [e, e.getBoundingClientRect()])
  .filter(([e, box]) => box.width && (box.left < -0.5 || box.right > document.documentElement.clientWidth + 0.5))
  .map(([e, box]) => `${e.tagName}.${e.className.baseVal ?? e.className} ${box.left} ${box.right}`)"""
# Per chart: its size, its smallest letters, texts that stick out of it, and pairs of texts that overlap.
CHARTS = """() => [...document.querySelectorAll('svg.chart')].map(chart => {
  const frame = chart.getBoundingClientRect();
  const texts = [...chart.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  const inside = box => box.left >= frame.left - 1 && box.right <= frame.right + 1
    && box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1;
  // Boxes of letters are taller than the letters.
  const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom - 3 <= b.top || b.bottom - 3 <= a.top;
  const scale = frame.width / chart.viewBox.baseVal.width;
  return {
    width: frame.width, height: frame.height, texts: texts.length,
    smallest: scale * Math.min(...[...chart.querySelectorAll('text')].map(t => parseFloat(getComputedStyle(t).fontSize))),
    cut: texts.filter(([, box]) => !inside(box)).map(([text]) => text),
    overlapping: texts.flatMap(([one, a], i) => texts.slice(i + 1).filter(([, b]) => !apart(a, b)).map(([two]) => [one, two])),
  };
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return write_report(write_comparison(folder), folder / "report.html")


@pytest.fixture(scope="module", params=list(product(WIDTHS, SCHEMES)), ids=str)
def page(browser: Any, report: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The report at each width and in each scheme; complaints of the browser fail the last test of each."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda asked: complaints.append(asked.url) if asked.url != report.as_uri() else None)
    opened.goto(report.as_uri())
    yield opened
    context.close()
    assert complaints == []


@pytest.mark.parametrize("details", [False, True], ids=["closed", "open"])
def test_nothing_reaches_over_the_edge(page: Any, details: bool) -> None:
    page.evaluate("open => document.querySelectorAll('details').forEach(e => { e.open = open; })", details)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate(OUTSIDE) == []


def test_charts_are_whole_and_legible(page: Any) -> None:
    charts = page.evaluate(CHARTS)
    assert len(charts) == 36
    for chart in charts:
        assert chart["width"] >= 300 and chart["height"] >= 180 and chart["texts"] >= 5
        assert chart["smallest"] >= 10
        assert chart["cut"] == [] and chart["overlapping"] == []


def test_the_headline_table_fits_or_scrolls_by_itself(page: Any) -> None:
    box = page.locator("#summary .scroll")
    width, content = box.evaluate("e => [e.clientWidth, e.scrollWidth]")
    assert (content > width) == (page.viewport_size["width"] == 390)
    box.evaluate("e => { e.scrollLeft = 10000; }")
    # The runs' names stay in sight while their numbers pass.
    assert box.locator("tbody th").first.bounding_box()["x"] == pytest.approx(box.bounding_box()["x"])


def test_the_page_takes_the_colours_of_its_scheme(page: Any) -> None:
    from PIL import Image

    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    expected = {
        role: tuple(int(ROLES[role][dark][i : i + 2], 16) for i in (1, 3, 5))
        for role in ("surface", "ink", "muted", "hue-0")
    }
    fills = page.evaluate("[...document.querySelectorAll('.chart text')].map(text => getComputedStyle(text).fill)")
    assert set(fills) == {f"rgb{expected['ink']}", f"rgb{expected['muted']}"}
    picture = Image.open(io.BytesIO(page.locator("figure").first.screenshot())).convert("RGB")
    colours = {colour: count for count, colour in picture.getcolors(1 << 24)}
    assert picture.getpixel((0, picture.height - 1)) == expected["surface"]
    # A chart that was not drawn, or in the colours of the other scheme, has none of its method's.
    assert colours.get(expected["hue-0"], 0) > 100
