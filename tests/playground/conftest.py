"""One Chromium for all tests of the page, and a page that may not complain."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.e2e.serving import Server
from tests.playground.browser import HOW_TO_RUN, chromium, open_page, start_browser


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if chromium() is None:
        pytest.skip(HOW_TO_RUN)
    with start_browser() as running:
        yield running


@pytest.fixture
def complaints() -> list[str]:
    """What pages said on the console, or asked of other hosts. A test that provokes one
    empties it."""
    return []


@pytest.fixture
def page(browser: Browser, complaints: list[str]) -> Iterator[Page]:
    """An empty page; it must not throw, complain, or fetch from another host."""
    hosts = set()
    with open_page(browser) as opened:
        opened.on("console", lambda m: m.type == "error" and complaints.append(m.text))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("request", lambda r: hosts.add(r.url.split("/")[2]))
        yield opened
    assert complaints == []
    assert {host.split(":")[0] for host in hosts} <= {"127.0.0.1"}
    assert len(hosts) <= 1


@pytest.fixture
def playground(page: Page, server: Server) -> Page:
    """The server's page, ready to run."""
    page.goto(f"{server.url}/playground")
    page.locator("#run:enabled").wait_for()
    return page
