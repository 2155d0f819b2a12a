"""The report in a headless browser, as people use it. Skipped where there is no Chromium (apt-get install chromium)."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pytest

from mnerqg.config_jobs import ReportConfig
from mnerqg.report.report import Asked, write_report
from tests.noisy_tags import Night, write_night, write_training

# A machine with the project installed has playwright, but it brings no browser of its own.
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; apt-get install chromium")

POSTS = 60


@dataclass
class Opened:
    """A page, and what it should not have done."""

    page: "playwright.Page"
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as driver:
        # Tests may run as root, in a container: there Chromium's own sandbox cannot start.
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    return write_night(str(tmp_path_factory.mktemp("night")), POSTS)


@pytest.fixture(scope="module")
def report(night: Night, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of everything at once, with every post in the gallery."""
    output = tmp_path_factory.mktemp("report")
    training = write_training(output / "run")
    asked = Asked((night.tags, night.tags), data=night.data, training=str(training))
    write_report(asked, str(output), ReportConfig())
    return output / "report.html"


@contextmanager
def opened(
    browser: "playwright.Browser", file: Path, *, fragment: str = "", width: int = 1400, dark: bool = False
) -> Iterator[Opened]:
    """The file in a window of its own; at the end nothing may have been complained about or asked for."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
    )
    found = Opened(context.new_page())
    found.page.on("console", lambda message: found.complaints.append(f"{message.type}: {message.text}"))
    found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
    found.page.on("request", lambda request: found.requests.append(request.url))
    found.page.goto(f"{file.as_uri()}{fragment}")
    found.page.wait_for_selector(".post, [data-chart] > svg")
    yield found
    assert found.complaints == []
    assert [url for url in found.requests if not url.startswith("data:")] == [file.as_uri()]
    context.close()


def found_posts(page: "playwright.Page") -> list[str]:
    """The ids of all posts that fit the filter as it stands, on whatever page."""
    ids: list[str] = page.evaluate("gallery.posts.map((post) => post.id)")
    return ids


def wait_for_posts(page: "playwright.Page", count: int) -> None:
    # Not by wait_for_function, which evaluates a string in the page: its policy forbids that.
    playwright.expect(page.locator("#found")).to_have_text(f"{count} of {count} posts")


@pytest.mark.parametrize(("width", "dark"), [(1400, False), (390, True)])
def test_no_complaint_no_request_and_accessible(
    browser: "playwright.Browser", report: Path, width: int, dark: bool
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    with opened(browser, report, width=width, dark=dark) as found:
        violations = Axe().run(found.page).response["violations"]
        assert [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in violations] == []
        assert found.page.evaluate("document.documentElement.scrollWidth") == width
        assert found.page.locator("[data-chart] > svg").count() == 5
        assert found.page.locator("[data-histogram] > svg").count() >= 4
        # Nothing that a text says has run.
        assert "pwned" not in found.page.title()


def test_hostile_texts_show_as_text(browser: "playwright.Browser", report: Path) -> None:
    with opened(browser, report) as found:
        page = found.page
        for words in ("'pwned'</script> said", '"><img src=x onerror=', "</script><script>", "${7*7}"):
            page.fill("#search", words)
            (text,) = page.locator(".post .text").all_inner_texts()
            assert words in text
        page.fill("#search", "NUL")
        assert page.locator(".post .control").all_inner_texts() == ["NUL", "U+0007"]
        page.fill("#search", "by an override")
        assert page.locator(".post .control").all_inner_texts() == ["RLO", "PDF"]
        page.fill("#search", "مرحبا")
        assert page.locator(".post .text").evaluate("(text) => getComputedStyle(text).direction") == "rtl"
        page.fill("#search", "and so on")
        assert "more characters are not in this page" in page.locator(".post").inner_text()
        page.fill("#search", "𝒜𝓃𝓃𝒶")  # offsets are code points, and these are two units of JavaScript each
        marked = page.locator(".post mark[data-entity]").evaluate_all(
            "(marks) => marks.map((mark) => mark.firstChild.textContent)"
        )
        assert marked == page.evaluate("gallery.posts[0].entities.map((entity) => entity.text)")
        assert marked
        assert page.evaluate("document.querySelectorAll('img:not([src^=\"data:image/jpeg\"])').length") == 0


def test_an_entity_and_its_box_light_each_other(browser: "playwright.Browser", report: Path) -> None:
    with opened(browser, report) as found:
        page = found.page
        place = page.evaluate(
            "gallery.posts.findIndex((post) => post.regions.length === 1 && post.pictures.length === 1"
            " && post.entities.filter((one) => one.region === 0).length === 1)"
        )
        page.evaluate(f"focusPost({place})")
        card = page.locator(".post:focus")
        card = page.locator(f"#{card.get_attribute('id')}")
        box = card.locator("[data-region]")
        index = page.evaluate(f"gallery.posts[{place}].entities.findIndex((one) => one.region === 0)")
        entity = card.locator(f"mark[data-entity='{index}']")
        lit = "(one) => one.classList.contains('lit')"
        entity.hover()
        assert box.evaluate(lit)
        page.mouse.move(0, 0)
        assert not box.evaluate(lit)
        box.focus()
        assert entity.evaluate(lit)
        assert not page.evaluate("document.activeElement.closest('mark')")
        entity.focus()
        assert box.evaluate(lit)
        page.keyboard.press("Enter")
        assert entity.get_attribute("aria-pressed") == "true"
        page.locator("#search").focus()
        assert box.evaluate(lit)  # kept
        # The box lies where the tags say, whatever the size of the picture on the screen.
        shown, picture = box.bounding_box(), card.locator("img").bounding_box()
        assert shown is not None
        assert picture is not None
        region, size = page.evaluate(
            f"[gallery.posts[{place}].regions[0].box, [gallery.posts[{place}].pictures[0].width]]"
        )
        assert (shown["x"] - picture["x"]) / picture["width"] == pytest.approx(region[0] / size[0], abs=0.01)
        assert shown["width"] / picture["width"] == pytest.approx((region[2] - region[0]) / size[0], abs=0.01)


def test_keys_and_links(browser: "playwright.Browser", report: Path) -> None:
    with opened(browser, report) as found:
        page = found.page
        focused = "document.activeElement.closest('.post')?.id"
        ids = [f"post-{name}" for name in page.evaluate("gallery.posts.map((post) => post.hash)")]
        page.locator(".post").first.focus()
        page.keyboard.press("n")
        page.keyboard.press("j")
        page.keyboard.press("ArrowRight")
        assert page.evaluate(focused) == ids[3]
        page.keyboard.press("p")
        assert page.evaluate(focused) == ids[2]
        for _ in range(20):
            page.keyboard.press("n")
        assert page.evaluate(focused) == ids[22]  # on the second page
        assert page.inner_text("#page") == "Page 2 of 3"
        page.keyboard.press("k")
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "search"
        page.keyboard.type("np/")  # keys of the gallery are letters here
        assert page.input_value("#search") == "np/"
        page.get_by_role("link", name="show").first.click()
        linked = page.evaluate("location.hash").removeprefix("#post=")
        playwright.expect(page.locator(f"#post-{linked}")).to_be_focused()
        assert page.input_value("#search") == ""
    last = ids[-1].removeprefix("post-")
    with opened(browser, report, fragment=f"#post={last}") as found:
        playwright.expect(found.page.locator(f"#{ids[-1]}")).to_be_focused()


def test_each_filter_is_the_duckdb_query(browser: "playwright.Browser", report: Path) -> None:
    """With every post in the sample the page and the query, run over the tags, find the same posts."""
    seen: set[frozenset[str]] = set()
    with opened(browser, report) as found:
        page = found.page
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])

        def check(action: str, selector: str, value: str = "", *, reset: bool = True) -> None:
            {
                "check": lambda: page.locator(selector).check(force=True),
                "select": lambda: page.select_option(selector, value),
                "fill": lambda: page.fill(selector, value),
            }[action]()
            page.get_by_role("button", name="Copy as DuckDB query").click()
            page.get_by_text("Copied: it asks all posts").wait_for()
            query = page.evaluate("navigator.clipboard.readText()")
            rows = duckdb.sql(query).project("post_id").fetchall()
            assert sorted(row[0] for row in rows) == sorted(found_posts(page)), query
            seen.add(frozenset(found_posts(page)))
            if reset:
                page.get_by_role("button", name="Reset").click()
                wait_for_posts(page, POSTS)

        check("check", "#filter-types input[value='PER']")
        check("check", "#filter-types input[value='PER']", reset=False)
        check("check", "#filter-types input[value='ORG']", reset=False)
        check("fill", "#score-from", "85", reset=False)
        check("fill", "#score-to", "96")
        check("fill", "#score-to", "60")
        for status in ("ok", "none", "missing", "unreadable"):
            check("select", "#filter-picture", status)
        check("select", "#filter-text", "truncated")
        for error in ("no", "any", "reason:404 Not Found", "reason:more than N bytes (N)"):
            check("select", "#filter-error", error)
        for words in ("the", "TONIGHT", "it's", "مرحبا", "'; DROP TABLE t; --"):
            check("fill", "#search", words)
    assert len(seen) > 10


def test_against_gold_and_order(browser: "playwright.Browser", report: Path) -> None:
    with opened(browser, report) as found:
        page = found.page
        for label, of_post in (
            ("right", "post.gold.verdicts.includes('right')"),
            ("false", "post.gold.verdicts.some((one) => one !== 'right')"),
            ("missed", "post.gold.missed.length > 0"),
            ("box wrong", "post.gold.ious.some((iou) => iou !== null && iou < 0.5)"),
            ("box missed", "post.gold.boxes.some((box) => box.missed)"),
        ):
            page.locator(f"#filter-gold input[value='{label}']").check(force=True)
            expected = page.evaluate(f"DATA.posts.filter((post) => {of_post}).map((post) => post.id)")
            assert sorted(found_posts(page)) == sorted(expected)
            assert 0 < len(expected) < POSTS
            page.get_by_role("button", name="Reset").click()
            wait_for_posts(page, POSTS)
        page.select_option("#order", "worst")
        faults = page.evaluate("gallery.posts.map((post) => post.gold.faults)")
        assert faults == sorted(faults, reverse=True)
        assert faults[0] > 1
        assert page.locator(".post").first.locator(".box.gold, .verdict.bad").count() > 0
        page.select_option("#order", "unsure")
        scores = page.evaluate(
            "gallery.posts.filter((post) => post.entities.length)"
            ".map((post) => Math.min(...post.entities.map((one) => one.score)))"
        )
        assert scores == sorted(scores)


def test_pictures_and_placeholders(browser: "playwright.Browser", report: Path) -> None:
    with opened(browser, report) as found:
        page = found.page
        broken = "[...document.images].filter((one) => one.complete && !one.naturalWidth).length"
        assert page.evaluate(broken) == 0
        for status, words in (
            ("missing", "was not there"),
            ("none", "has no picture"),
            ("unreadable", "is no picture"),
        ):
            page.select_option("#filter-picture", status)
            assert words in page.locator(".placeholder").first.inner_text()
        page.select_option("#filter-picture", "ok")
        # The order is that of the rows' hashes, which the folder's name is part of: it may be on any page.
        page.evaluate("focusPost(gallery.posts.findIndex((post) => post.pictures.length > 1))")
        assert page.locator(".post:focus .pictures.several img").count() == 2


def test_a_training_alone(browser: "playwright.Browser", tmp_path: Path) -> None:
    write_report(Asked((), training=str(write_training(tmp_path / "run"))), str(tmp_path), ReportConfig())
    with opened(browser, tmp_path / "report.html") as found:
        assert found.page.locator("[data-chart] > svg").count() == 5
        label = found.page.locator("[data-chart='losses'] svg").first.get_attribute("aria-label")
        assert label is not None
        assert label.startswith("Losses over 12 epochs; at the end joint loss 0.758")


@pytest.mark.slow
def test_five_thousand_posts(browser: "playwright.Browser", tmp_path: Path) -> None:
    """All of them in the gallery: written soon, of a size that a browser opens, and quick to filter."""
    import time

    night = write_night(str(tmp_path), 5_000)
    started = time.monotonic()
    written = write_report(Asked((night.tags,)), str(tmp_path), ReportConfig(sample=5_000))
    assert time.monotonic() - started < 120  # half a minute of two cores, which other work may share
    assert (written.shown, written.posts) == (5_000, 5_000)
    assert written.size < 60_000_000
    with opened(browser, tmp_path / "report.html") as found:
        assert found.page.inner_text("#page") == "Page 1 of 250"
        found.page.fill("#search", "tonight")
        assert 0 < len(found_posts(found.page)) < 5_000


@pytest.mark.slow
def test_two_hundred_posts_are_no_more_than_fifteen_megabytes(tmp_path: Path) -> None:
    night = write_night(str(tmp_path), 200)
    assert write_report(Asked((night.tags,)), str(tmp_path), ReportConfig()).size < 15_000_000
