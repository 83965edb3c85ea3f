"""Who can use the page: axe-core's findings, the keyboard, and a phone's width."""

from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from tests.e2e.serving import Server
from tests.playground.browser import DESKTOP, PHONE, open_page, run


def findings(page: Page) -> list[Any]:
    """What axe-core finds of serious or critical impact, shortly."""
    found = Axe().run(page).response
    assert found["passes"], "axe did not run"
    return [
        (one["id"], one["impact"], [node["html"][:200] for node in one["nodes"]])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize(
    ("scheme", "size"),
    [("light", DESKTOP), ("dark", DESKTOP), ("light", PHONE)],
    ids=["light", "dark", "phone"],
)
def test_axe_finds_nothing_serious(
    browser: Browser, server: Server, scheme: str, size: dict[str, int]
) -> None:
    with open_page(browser, viewport=size, color_scheme=scheme) as page:
        page.goto(f"{server.url}/playground")
        page.locator("#run:enabled").wait_for()
        assert findings(page) == []
        page.locator(".settings").evaluate_all(
            "all => all.forEach((one) => { one.open = true; })"
        )
        page.locator("#b-n_grad_steps").fill("99")
        page.locator("#a-temperature").fill("2")
        run(page)
        page.locator("#a .token").first.hover()
        page.locator("#a .table summary").click()
        assert findings(page) == []


def test_axe_would_find_what_is_wrong(playground: Page) -> None:
    playground.locator("label[for=prompt]").evaluate("element => element.remove()")
    assert [name for name, *_ in findings(playground)] == ["label"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_shade_is_readable(browser: Browser, server: Server, scheme: str) -> None:
    with open_page(browser, color_scheme=scheme) as page:
        page.goto(f"{server.url}/playground")
        page.locator("#run:enabled").wait_for()
        colors = page.locator("#scale span").evaluate_all(
            "spans => spans.map((span) => [getComputedStyle(span).color,"
            " getComputedStyle(span).backgroundColor])"
        )
    assert len(colors) == 6
    shades = [luminance(behind) for _, behind in colors[1:]]
    assert shades == sorted(shades, reverse=scheme == "light")
    for ink, behind in colors[1:]:
        lighter, darker = sorted([luminance(ink), luminance(behind)], reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def luminance(color: str) -> float:
    """Relative luminance, as WCAG defines it, of "rgb(r, g, b)"."""
    parts = [int(part) / 255 for part in color[4:-1].split(",")]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.fixture(params=[390, 320])
def narrow(
    browser: Browser, server: Server, request: pytest.FixtureRequest
) -> Iterator[Page]:
    size = {**PHONE, "width": request.param}
    with open_page(browser, viewport=size, has_touch=True) as page:
        page.goto(f"{server.url}/playground")
        page.locator("#run:enabled").wait_for()
        yield page


def test_phone_never_scrolls_sideways(narrow: Page) -> None:
    sideways = "document.documentElement.scrollWidth - innerWidth"
    assert narrow.evaluate(sideways) == 0
    for side in ("a", "b"):
        narrow.locator(f"#{side} .settings summary").click()
    narrow.locator("#a-choice").select_option("preset:adaptive")
    run(narrow)
    narrow.locator("#b .table summary").click()
    narrow.locator("#b .token").nth(3).tap()
    assert "token 4 of" in narrow.locator("#b .inspector").inner_text()
    assert narrow.evaluate(sideways) == 0
    wide = narrow.locator("main *").evaluate_all(
        "all => all.filter((e) => !e.closest('.scroll, .unseen, .methods input')"
        " && e.getBoundingClientRect().right > innerWidth).map((e) => e.outerHTML)"
    )
    assert wide == []


def test_keyboard_alone_runs_and_reads(playground: Page) -> None:
    playground.get_by_label("Prompt").focus()
    playground.keyboard.press("Control+Enter")
    playground.locator("#chart svg").wait_for()
    playground.get_by_label("API key").focus()
    stops = []
    for _ in range(60):
        playground.keyboard.press("Tab")
        stops.append(playground.evaluate(FOCUSED))
        if stops[-1]["id"] == "end":
            break
    seen = {stop["id"] for stop in stops}
    expected = {"prompt", "run", "b-choice", "b-n_grad_steps", "token", "copy-python"}
    assert expected <= seen
    assert [stop for stop in stops if not stop["visible"]] == []
    assert [stop["id"] for stop in stops].count("token") == 2


FOCUSED = """() => {
    const at = document.activeElement;
    if (at === document.body) return {id: "end", visible: true};
    const shown = at.matches("[type=radio]") ? at.nextElementSibling : at;
    const style = getComputedStyle(shown);
    const name = ["token", "copy-python"].find((name) => at.classList.contains(name));
    return {id: name ?? (at.id || at.tagName),
        visible: style.outlineStyle === "solid" && parseFloat(style.outlineWidth) >= 2};
}"""


def test_motion_stops_where_it_is_not_wanted(browser: Browser, server: Server) -> None:
    with open_page(browser, reduced_motion="reduce") as page:
        page.goto(f"{server.url}/playground")
        page.locator("#run:enabled").wait_for()
        name = page.locator("#a .tokens").evaluate(
            "list => { list.classList.add('running');"
            " return getComputedStyle(list, '::after').animationName; }"
        )
        assert name == "none"
