"""What leaves the page: links, snippets, the API key; and where the page may live."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.e2e.serving import Server
from tests.playground.browser import open_page, run
from tests.playground.test_page import error_of, figures, text_of


def clipboard(page: Page, button: str, side: str | None = None) -> str:
    within = page.locator(f"#{side}") if side else page
    within.get_by_role("button", name=button).click()
    expect(page.locator("#status")).to_contain_text("Copied")
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text


def test_link_restores_the_whole_state(playground: Page, browser: Browser) -> None:
    playground.get_by_label("Prompt").fill(
        "Wie viele Äpfel & Birnen? 50% #1 +1\n2. Zeile"
    )
    playground.locator("#seed").fill("77")
    playground.locator("#max_tokens").fill("33")
    playground.locator("#a-choice").select_option("preset:adaptive")
    playground.locator("#a-temperature").fill("0.7")
    playground.locator("#b-kl_weight").fill("out of range")
    link = clipboard(playground, "Copy link")
    boxes = "input:not([type=radio], #key), textarea, select"
    read = "elements => elements.map((e) => [e.id, e.value])"
    state = playground.locator(boxes).evaluate_all(read)
    with open_page(browser) as other:
        other.goto(link)
        other.locator("#run:enabled").wait_for()
        assert other.locator(boxes).evaluate_all(read) == state
        assert other.locator("#a-choice").input_value() == "preset:adaptive"
        assert other.locator("#b-choice").input_value() == "custom"
        assert other.locator("#b-kl_weight").input_value() == "out of range"


@pytest.mark.parametrize(
    ("fragment", "said"),
    [
        ("a=nonsense", "a is not JSON"),
        ('a={"choice":"preset:gone","method":"gradient"}', 'no preset "gone"'),
        ("model=other", 'no model "other"'),
        ("colour=red", "colour is unknown"),
        (
            'b={"choice":"custom","method":"gradient","values":{"x":"1"}}',
            "x, which is unknown",
        ),
    ],
)
def test_link_that_cannot_be_restored_says_why(
    page: Page, server: Server, fragment: str, said: str
) -> None:
    page.goto(f"{server.url}/playground#{fragment}")
    expect(page.locator("#problem")).to_contain_text(said)
    run(page)
    assert figures(page, "b")["tokens"] == "50"


@pytest.mark.parametrize("side", ["a", "b"])
def test_copied_commands_give_the_answer_that_the_page_shows(
    playground: Page, side: str, tmp_path: Path
) -> None:
    question = "Anna has 27 books. She finds 45 books. It's how many now?"
    playground.get_by_label("Prompt").fill(question)
    run(playground)
    answer = text_of(playground, side)
    curl = clipboard(playground, "Copy as curl", side)
    python = clipboard(playground, "Copy as Python", side)
    shell = subprocess.run(["bash", "-c", curl], capture_output=True, check=True)
    assert f'"content":"{answer}"'.encode() in shell.stdout
    assert b'"em_inf":' in shell.stdout
    (tmp_path / "ask.py").write_text(python)
    script = subprocess.run(
        [sys.executable, "ask.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert script.returncode == 0, script.stderr
    assert script.stdout.startswith(f"{answer}\n")
    assert "entropy_before" in script.stdout


def test_key_is_asked_for_and_never_leaves_the_tab(
    page: Page, operated: Server, complaints: list[str], browser: Browser
) -> None:
    sent: dict[str, str | None] = {}
    page.on("request", lambda r: sent.update({r.url: r.header_value("authorization")}))
    page.goto(f"{operated.url}/playground")
    expect(page.locator("#problem")).to_contain_text("wants an API key")
    expect(page.get_by_label("API key")).to_be_focused()
    page.get_by_label("API key").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_contain_text("does not accept this API key")
    page.get_by_label("API key").fill("secret")
    page.keyboard.press("Enter")
    page.locator("#run:enabled").wait_for()
    expect(page.locator("#problem")).to_be_hidden()
    complaints.clear()
    run(page)
    assert page.locator("#b .token").count() > 10
    assert sent[f"{operated.url}/v1/chat/completions"] == "Bearer secret"
    assert page.evaluate("Object.values(sessionStorage)") == ["secret"]
    assert page.evaluate("localStorage.length") == 0
    assert page.evaluate("document.cookie") == ""
    copies = [
        clipboard(page, "Copy link"),
        clipboard(page, "Copy as curl", "b"),
        clipboard(page, "Copy as Python", "b"),
    ]
    assert not [text for text in copies if "secret" in text]
    assert not [url for url in sent if "secret" in url]
    environ = {**os.environ, "EM_INF_API_KEY": "secret"}
    answer = subprocess.run(["bash", "-c", copies[1]], capture_output=True, env=environ)
    assert b'"em_inf":' in answer.stdout
    page.reload()
    page.locator("#run:enabled").wait_for()
    with open_page(browser) as other:
        other.goto(f"{operated.url}/playground")
        expect(other.locator("#problem")).to_contain_text("wants an API key")


def test_ranges_and_presets_are_the_operators(page: Page, operated: Server) -> None:
    page.add_init_script("sessionStorage.setItem('em-inf-api-key', 'secret')")
    page.goto(f"{operated.url}/playground")
    page.locator("#run:enabled").wait_for()
    page.locator("#b-choice").select_option("preset:mild")
    assert page.locator("#b-n_grad_steps").input_value() == "1"
    assert page.locator("#b-threshold").input_value() == "0.5"
    page.get_by_label("n_grad_steps, slider").nth(1).press("End")
    assert page.locator("#b-n_grad_steps").input_value() == "20"
    page.locator("#a-choice").select_option("default")
    assert page.locator("#a-n_grad_steps").input_value() == "1"


def test_page_works_below_a_root_path(page: Page, server: Server) -> None:
    def strip(route: Route) -> None:
        route.continue_(url=route.request.url.replace("/deep/down/", "/", 1))

    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    page.route("**/deep/down/**", strip)
    page.goto(f"{server.url}/deep/down/playground")
    run(page)
    assert figures(page, "b")["tokens"] == "50"
    assert "/deep/down/v1/chat" in clipboard(page, "Copy as curl", "a")
    assert all(a.startswith(f"{server.url}/deep/down/") for a in addresses)


def test_clipboard_that_is_forbidden_becomes_a_text_to_copy(playground: Page) -> None:
    playground.context.clear_permissions()
    playground.evaluate(
        "Object.defineProperty(navigator, 'clipboard', {get: () => undefined})"
    )
    playground.locator("#a .copy-curl").click()
    text = playground.locator("#copied-text")
    expect(text).to_be_focused()
    assert text.input_value().startswith("curl -s ")
    playground.keyboard.press("Escape")
    expect(text).to_be_hidden()
    assert error_of(playground, "a") == ""
