"""Reports in a real browser: what is drawn, clicked and linked to, on a desk and on a phone."""

import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from offline.ope.settings import Estimate, Evaluation, OpeSettings
from tests.workflows.report_kit import SEEDS, storage_of
from workflows.reports.ope_page import ope_report
from workflows.reports.page import write_page

pytestmark = pytest.mark.browser

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return storage_of(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "these tests need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def visit(browser, millrace, storage, tmp_path):
    """A report opened in a new tab that must say nothing on its console and fetch nothing."""
    said: list[str] = []
    tabs = []

    def go(*names: str, hash_: str = "", path: Path | None = None, **options: Any) -> Any:
        out = path or tmp_path / f"{names[0]}.html"
        if not out.exists():
            done = millrace("report", *names, "--storage", storage, "--out", out)
            assert done.exit_code == 0, done.output
        tab = browser.new_page(**({"viewport": {"width": 1300, "height": 900}} | options))
        tabs.append(tab)
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on(
            "request",
            lambda request: said.append(request.url) if not allowed(request.url) else None,
        )
        tab.goto(f"file://{out}{hash_}")
        tab.wait_for_selector("body[data-ready]")
        return tab

    def allowed(url: str) -> bool:
        return url.startswith(("file:///", "data:", "blob:"))

    yield go
    for tab in tabs:
        tab.close()
    # These tests read pictures back, which Chromium finds slow.
    assert [text for text in said if not text.startswith("Canvas2D: Multiple readback")] == []


def draw_all(tab):
    """Bring every block into view, as a reader who scrolls does."""
    for block in tab.query_selector_all(".block"):
        block.scroll_into_view_if_needed()
    tab.wait_for_timeout(200)


def until(tab, expression, *, timeout_s=10.0):
    """Wait for it; Playwright's own way evaluates a string in the page, which the page forbids."""
    deadline = time.monotonic() + timeout_s
    while not tab.evaluate(expression):
        assert time.monotonic() < deadline, expression
        tab.wait_for_timeout(50)


def inked(tab, selector):
    """Of a canvas, how many pixels are painted."""
    return tab.eval_on_selector(
        selector,
        "c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        " let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; }",
    )


@pytest.mark.parametrize("names", [("fast",), SEEDS, ("lr",), ("nightly",), ("hostile",)])
@pytest.mark.parametrize("viewport", [{"width": 1300, "height": 900}, PHONE])
def test_every_block_is_drawn_within_the_width(visit, names, viewport):
    tab = visit(*names, viewport=viewport)
    draw_all(tab)
    empty = tab.eval_on_selector_all(
        ".block",
        "bs => bs.filter(b => !b.querySelector('canvas, dl, table, svg, p, details')).length",
    )
    assert empty == 0
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for canvas in tab.query_selector_all(".plot canvas"):
        assert canvas.bounding_box()["width"] <= viewport["width"]


def test_curves_are_painted_and_dark_is_dark(visit):
    tab = visit("fast", color_scheme="dark")
    draw_all(tab)
    assert inked(tab, "#learning canvas") > 500
    colour = "getComputedStyle(document.body).backgroundColor"
    assert tab.evaluate(colour) == "rgb(20, 23, 27)"
    tab.click("#theme")
    assert tab.evaluate(colour) == "rgb(255, 255, 255)"


def test_hostile_text_does_nothing_and_is_read(visit):
    tab = visit("hostile")
    draw_all(tab)
    assert tab.evaluate("window.hacked") is None
    assert tab.query_selector("main img") is None
    assert "<script>window.hacked=1" in tab.inner_text("#overview")


def test_a_line_leaves_and_comes_back_by_its_legend(visit):
    tab = visit("fast", "slow")
    draw_all(tab)
    button = (
        tab.locator("#learning .block", has_text="Episodes").first.locator(".legend button").first
    )
    if not button.count():
        button = tab.locator(".legend button").first
    before = button.get_attribute("aria-pressed")
    button.click()
    assert (before, button.get_attribute("aria-pressed")) == ("true", "false")


def test_tables_filter_and_sort(visit):
    tab = visit("lr")
    section = tab.locator("#overview .block[data-kind=table]")
    names = section.locator("tbody tr td:first-child")
    assert names.all_inner_texts()[0] == "lr-4"
    section.locator("th button", has_text="optim.lr").click()
    assert names.all_inner_texts()[0] == "lr-5"
    section.locator("th button", has_text="optim.lr").click()
    assert names.all_inner_texts()[0] == "seed-1"
    assert section.locator("th[aria-sort=ascending]").count() == 1


def test_trials_are_chosen_along_an_axis(visit):
    tab = visit("lr")
    draw_all(tab)
    block = tab.locator("[data-kind=parallel]")
    block.scroll_into_view_if_needed()
    assert block.locator("polyline.trial").count() == 5
    axis = block.locator("rect[data-axis=episode_return_mean]").bounding_box()
    x = axis["x"] + axis["width"] / 2
    tab.mouse.move(x, axis["y"] + 2)
    tab.mouse.down()
    tab.mouse.move(x, axis["y"] + axis["height"] * 0.4, steps=4)
    tab.mouse.up()
    assert block.locator("polyline.trial.off").count() == 3
    assert "2 of 5 trials" in block.inner_text()


def test_a_workflows_cell_tells_what_happened(visit):
    tab = visit("nightly")
    draw_all(tab)
    tab.click(".grid tbody tr:nth-child(3) td:nth-of-type(3) button")
    assert '"gain": 2.0' in tab.inner_text("[data-kind=grid] pre")
    assert tab.locator(".grid .s-failed").count() == 2


def test_an_episode_opens_steps_and_can_be_linked_to(visit):
    tab = visit("run")
    draw_all(tab)
    rows = tab.locator("#traces .browser > div:first-child tbody tr.link")
    rows.nth(1).click()
    name = rows.nth(1).locator("td").first.inner_text()
    tab.wait_for_function(
        "name => document.querySelector('#trace h3').innerText.includes(name)", arg=name
    )
    assert inked(tab, "#trace canvas") > 200
    tab.click("#trace button[aria-label='next step']")
    tab.click("#trace button[aria-label='next step']")
    assert tab.evaluate("location.hash").endswith("&t=2")
    assert "t 2 " in tab.inner_text(".player")
    assert tab.locator("#trace tbody tr[aria-selected=true] td").first.inner_text() == "2"
    again = visit("run", hash_=tab.evaluate("location.hash"))
    assert name in again.inner_text("#trace h3")
    assert "t 2 " in again.inner_text(".player")
    # The steps that are shown are those that were logged.
    data = json.loads(
        tab.inner_text("#data") or tab.evaluate("document.getElementById('data').textContent")
    )
    traces = next(s for s in data["sections"] if s["id"] == "traces")["blocks"][0]["data"]["traces"]
    shown = tab.locator("#trace tbody tr").nth(2).locator("td").all_inner_texts()
    assert shown[1] == traces[name]["table"][1]["values"][2]


def test_episodes_are_filtered_by_return(visit):
    tab = visit("run")
    draw_all(tab)
    rows = tab.locator("#traces .browser > div:first-child tbody tr.link")
    before = rows.count()
    returns = [float(text) for text in rows.locator("td.n:nth-child(3)").all_inner_texts()]
    bound = sorted(returns)[len(returns) // 2]
    tab.fill("#traces input[aria-label='from return']", str(bound))
    assert rows.count() == sum(value >= bound for value in returns)
    assert 0 < rows.count() < before


def test_an_episode_that_is_not_there_says_how_to_get_it(visit):
    tab = visit("run", hash_="#episode=%3Cb%3Enone")
    text = tab.inner_text("#trace")
    assert "<b>none" in text
    assert "millrace report run --episode <b>none" in text


def test_frames_play(visit):
    tab = visit("r")
    draw_all(tab)
    pixel = (
        "document.querySelector('canvas.frame').getContext('2d').getImageData(3, 3, 1, 1).data[0]"
    )
    tab.wait_for_selector("canvas.frame[width]")
    for _ in range(3):
        tab.click("#trace button[aria-label='next step']")
    until(tab, f"{pixel} === 120")
    tab.click("#trace button:has-text('Play')")
    until(tab, f"{pixel} === 200")


def test_a_link_leads_to_its_section_though_nothing_was_drawn_before(visit):
    tab = visit("fast")
    tab.click("nav a[href='#lineage']")
    tab.wait_for_timeout(300)
    top = tab.evaluate("document.getElementById('lineage').getBoundingClientRect().top")
    assert 0 <= top < 150


@pytest.mark.parametrize("viewport", [{"width": 1300, "height": 900}, PHONE])
def test_an_episode_by_itself_has_no_list_and_plays(visit, millrace, storage, tmp_path, viewport):
    path = tmp_path / "episode.html"
    done = millrace("traces", "show", "r/frames", "--plot", path, "--storage", storage)
    assert done.exit_code == 0, done.output
    tab = visit(path=path, viewport=viewport)
    until(tab, "document.querySelector('canvas.frame').width === 6")
    assert tab.query_selector("input[aria-label='only episodes whose steps are here']") is None
    tab.click("button[aria-label='next step']")
    assert tab.inner_text(".player .num").startswith("t 1 ")
    assert inked(tab, "#traces .plot canvas") > 100
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("viewport", [{"width": 1300, "height": 900}, PHONE])
def test_intervals_are_where_their_numbers_are(visit, tmp_path, viewport):
    each = [
        Estimate("is", 10.0, 0.0, 40.0, "bca", ess=3.2),
        Estimate("wis", 20.0, 15.0, 25.0, "bca", ess=3.2),
        Estimate("fqe", math.nan, math.nan, math.nan, "bca"),
    ]
    logged = Estimate("behavior", 30.0, 29.0, 31.0, "bca")
    found = Evaluation(tuple(each), logged, 5, 50, ("<b>few</b> episodes",), {}, {})
    path = tmp_path / "ope.html"
    write_page(ope_report([("run/<i>1</i>", found)], OpeSettings(gamma=0.9)), path)
    tab = visit(path=path, viewport=viewport)
    draw_all(tab)
    rows = [
        (
            row.text_content(),
            *(float(mark.get_attribute("cx")) for mark in row.query_selector_all("circle")),
            *(
                float(bar.get_attribute(end))
                for bar in row.query_selector_all("line")
                for end in ("x1", "x2")
            ),
        )
        for row in tab.query_selector_all("g.interval")
    ]
    (told, x, low, high), (_, x2, low2, high2), (nothing, *places) = rows
    assert told == "is 10 (0 to 40), ESS 3.2isESS 3.2"
    assert (nothing, places) == ("fqe –fqe", [])
    unit = (high - low) / 40
    assert unit > 1
    expected = [low + unit * value for value in (10, 20, 15, 25)]
    assert [x, x2, low2, high2] == pytest.approx(expected, abs=0.5)
    (reference,) = tab.eval_on_selector_all(
        "line.reference", "ls => ls.map(l => +l.getAttribute('x1'))"
    )
    assert reference == pytest.approx(low + unit * 30, abs=0.5)
    assert tab.inner_text(".warn") == "<b>few</b> episodes"
    assert "run/<i>1</i>" in tab.inner_text("h2")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
