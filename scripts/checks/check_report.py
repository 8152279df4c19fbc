"""Does a report page work in a browser, alone and by keyboard?

Opens the page of a run in headless Chromium and drives it: the counts at several positions of the
slider are compared with the scores in the run folder, the search is used, the theme is switched,
and the page must not request any other file or server. Screenshots go to a folder, if one is named.
Chromium is looked up on the PATH. The last line of stdout is JSON.

    python scripts/checks/check_report.py RUN
    python scripts/checks/check_report.py RUN --screenshots shots
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet as pq
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SECONDS = 15
SCREENS = {
    "light": {"viewport": {"width": 1280, "height": 900}},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {
        "viewport": {"width": 390, "height": 844},
        "device_scale_factor": 2,
        "is_mobile": True,
        "has_touch": True,
    },
}


@dataclass
class Seen:
    """What a page did while it was open: requests, and messages that are no plain log."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def chromium_path() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browser() -> Iterator[Browser]:
    path = chromium_path()
    if path is None:
        sys.exit(f"No browser: none of {', '.join(NAMES)} is on the PATH. Install chromium.")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


@contextmanager
def opened(chromium: Browser, page: Path, screen: str = "light") -> Iterator[tuple[Page, Seen]]:
    """A tab with the page, ready to be used, and what it did so far."""
    context = chromium.new_context(**SCREENS[screen])
    tab, seen = context.new_page(), Seen()
    tab.set_default_timeout(SECONDS * 1000)
    tab.on("request", lambda request: seen.requests.append(request.url))
    tab.on("pageerror", lambda error: seen.complaints.append(str(error)))
    tab.on("console", lambda said: said.type != "log" and seen.complaints.append(said.text))
    tab.goto(page.absolute().as_uri())
    tab.wait_for_selector("html[data-ready]")
    yield tab, seen
    context.close()


def move(tab: Page, tenths: int) -> str:
    """Put the slider at so many tenths of a percent; return what the page says then."""
    tab.locator("#keep").fill(str(tenths))
    settle(tab)
    return str(tab.locator("#said").text_content())


def settle(tab: Page) -> None:
    """Wait until the next frame is drawn."""
    tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def draw_all(tab: Page) -> None:
    """Scroll past every chart, and wait until all are drawn."""
    for element in tab.locator("[data-chart]").all():
        element.scroll_into_view_if_needed()
        settle(tab)
    tab.wait_for_function(
        "charts.size === document.querySelectorAll('[data-chart]').length"
        " && [...charts.values()].every((chart) => chart.model)"
    )
    settle(tab)


def expected(run: Path, tenths: int) -> str:
    """What the page has to say, computed from the run's scores."""
    by = json.loads((run / "selection.json").read_text("utf-8"))["by"]
    scores = pq.read_table(run / "scores.parquet", columns=[by])[by].to_pylist()
    best = sorted((one for one in scores if one is not None), reverse=True)
    count = min(int(Decimal(tenths) / 1000 * len(scores)), len(best))
    words = f"{count:,} of {len(scores):,} kept"
    return f"{words}, score ≥ {best[count - 1]:.4f}" if count else words


def check(run: Path, page: Path, screenshots: Path | None = None) -> dict[str, object]:
    """Drive a page; return the findings, or raise an `AssertionError`."""
    facts: dict[str, object] = {}
    with browser() as chromium:
        for screen in SCREENS:
            with opened(chromium, page, screen) as (tab, seen):
                if screenshots:
                    photograph(tab, screenshots, screen)
                for tenths in (1, 50, 200, 345, 999, 1000):
                    assert move(tab, tenths) == expected(run, tenths), tenths
                tab.locator("#search").fill("the")
                assert tab.locator("mark").count() or not tab.locator(".rows li").count()
                before = background(tab)
                tab.locator("#theme").click()
                assert background(tab) != before, "the theme does not change"
                assert (
                    tab.evaluate("document.documentElement.scrollWidth")
                    <= tab.viewport_size["width"]
                )
                assert len(seen.requests) == 1, seen.requests
                assert not seen.complaints, seen.complaints
                ready = tab.evaluate("performance.getEntriesByName('ready')[0].startTime")
                facts[f"{screen}_interactive_seconds"] = round(ready / 1000, 2)
    return facts


def overflow(tab: Page) -> int:
    """By how many pixels the page is wider than the screen."""
    return int(tab.evaluate("document.documentElement.scrollWidth")) - tab.viewport_size["width"]


def background(tab: Page) -> str:
    return str(tab.evaluate("getComputedStyle(document.body).backgroundColor"))


def photograph(tab: Page, folder: Path, name: str) -> None:
    """The first screen, one with the slider moved and a search, and the whole page."""
    folder.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=folder / f"{name}.png")
    move(tab, 600)
    tab.locator("#search").fill("number")
    tab.evaluate("document.getElementById('rows').scrollIntoView({behavior: 'instant'})")
    settle(tab)
    tab.screenshot(path=folder / f"{name}-moved.png")
    tab.locator("#search").fill("")
    tab.locator("#reset").click()
    draw_all(tab)
    tab.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    settle(tab)
    tab.screenshot(path=folder / f"{name}-whole.png", full_page=True)


def main() -> None:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("run", type=Path, help="a finished run with a report")
    flags.add_argument("--page", type=Path, help="by default RUN/report/report.html")
    flags.add_argument("--screenshots", type=Path, help="a folder for PNG files")
    given = flags.parse_args()
    page = given.page or given.run / "report" / "report.html"
    print(json.dumps(check(given.run, page, given.screenshots) | {"bytes": page.stat().st_size}))


if __name__ == "__main__":
    main()
