"""A headless Chromium under Playwright, and the playground in it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOW_TO_RUN = (
    "no Chromium: `apt-get install chromium`, or set CHROMIUM to a browser's path, "
    "and run `make test` again"
)
WAIT_MS = 120_000
"""For what takes no time on an idle machine: others may run beside the tests."""
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}


def chromium() -> str | None:
    """Path of the browser, None where there is none."""
    found = (shutil.which(name) for name in NAMES)
    return os.environ.get("CHROMIUM") or next(filter(None, found), None)


@contextlib.contextmanager
def start_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium())
        yield browser
        browser.close()


@contextlib.contextmanager
def open_page(browser: Browser, **options: Any) -> Iterator[Page]:
    """A page in a context of its own: no storage, clipboard allowed."""
    settings = {"viewport": DESKTOP, "color_scheme": "light", **options}
    context = browser.new_context(
        permissions=["clipboard-read", "clipboard-write"], **settings
    )
    context.set_default_timeout(WAIT_MS)
    expect.set_options(timeout=WAIT_MS)
    yield context.new_page()
    context.close()


def run(page: Page) -> None:
    """Press Run and wait until both answers have ended, however that is."""
    button = page.get_by_role("button", name="Run", exact=True)
    button.click()
    expect(button).to_be_enabled(timeout=180_000)
