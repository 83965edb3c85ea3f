"""The page's pure functions, imported in the browser itself."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.e2e.serving import Server
from tests.playground.browser import open_page


@pytest.fixture(scope="module")
def opened(browser: Browser, server: Server) -> Iterator[Page]:
    with open_page(browser) as page:
        page.goto(f"{server.url}/playground")
        yield page


def call(page: Page, module: str, code: str, *args: Any) -> Any:
    """Evaluate `code` with the module as `m` and the arguments as `a`."""
    return page.evaluate(
        f"async (a) => {{ const m = await import('/playground/{module}');"
        f" return {code}; }}",
        list(args),
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        (" 0.5 ", 0.5),
        ("-1e-3", -0.001),
        (".5", 0.5),
        ("", ""),
        ("abc", "abc"),
        ("0x10", "0x10"),
        ("Infinity", "Infinity"),
        ("1e999", "1e999"),
        ("NaN", "NaN"),
        ("1,5", "1,5"),
        ("12345678901234567890", "12345678901234567890"),
    ],
)
def test_number_is_sent_as_number_and_anything_else_as_typed(
    opened: Page, text: str, value: Any
) -> None:
    assert call(opened, "wire.js", "m.typed(a[0])", text) == value


def test_slider_stops_cover_the_range_and_nothing_beyond(opened: Page) -> None:
    def stops(**schema: Any) -> list[float]:
        found: list[float] = call(opened, "wire.js", "m.stops(a[0])", schema)
        assert found == sorted(set(found))
        assert schema["default"] in found
        return found

    assert stops(type="integer", minimum=0, maximum=20, default=5) == list(range(21))
    rate = stops(type="number", minimum=1e-6, maximum=1, default=0.1)
    assert rate[:3] == [1e-6, 0.01, 0.02]
    assert rate[-1] == 1
    top_p = stops(type="number", exclusiveMinimum=0, maximum=1, default=1)
    assert (top_p[0], top_p[-1]) == (0.01, 1)
    weight = stops(type="number", minimum=0, maximum=100, default=0.001)
    assert (weight[0], weight[-1]) == (0, 100)
    threshold = stops(type="number", minimum=0, default=0.3)
    assert (threshold[0], threshold[-1]) == (0, 3)
    ratio = stops(type="number", minimum=1e-6, maximum=1, default=0.5)
    assert (ratio[0], ratio[-1]) == (1e-6, 1)


STREAM = 'data: {"a": "é😀"}\n\n: keep-alive\n\ndata: {"b": 2}\r\n\r\ndata: [DONE]\n\n'


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_survive_any_cut_of_the_bytes(opened: Page, size: int) -> None:
    code = """(() => {
        const reader = new m.EventReader(), decoder = new TextDecoder(), found = [];
        for (let i = 0; i < a[0].length; i += a[1]) {
            const bytes = new Uint8Array(a[0].slice(i, i + a[1]));
            found.push(...reader.push(decoder.decode(bytes, {stream: true})));
        }
        return found;
    })()"""
    found = call(opened, "api.js", code, list(STREAM.encode()), size)
    assert found == ['{"a": "é😀"}', '{"b": 2}', "[DONE]"]


@pytest.mark.parametrize(
    ("text", "tokens", "pieces"),
    [
        ("é", ["é"], ["é"]),
        ("", [""], [""]),
        ("", ["<|im_end|>"], [""]),
        ("a b", ["a", " b"], ["a", " b"]),
        ("é!", ["", "é", "!"], ["", "é", "!"]),
        ("end", ["end", "<|im_end|>"], ["end", ""]),
        ("\ufffdNina", ["", "Nina"], ["\ufffdNina", ""]),
        ("held back", ["x", "y", "z"], ["held back", "", ""]),
        ("plain", [], ["plain"]),
    ],
)
def test_no_character_of_a_chunk_is_lost_between_its_tokens(
    opened: Page, text: str, tokens: list[str], pieces: list[str]
) -> None:
    entries = [{"token": token} for token in tokens]
    found = call(opened, "wire.js", "m.splitText(a[0], a[1])", text, entries)
    assert found == pieces
    assert "".join(found) == text


def test_snippets_quote_what_shells_and_python_would_read(opened: Page) -> None:
    body = {"x": 'It\'s "$HOME" `ls` \\ é', "flag": True, "none": None, "em_inf": {}}
    curl = call(opened, "wire.js", "m.asCurl('http://h/v1', a[0], true)", body)
    assert "It'\\''s" in curl
    assert '"Authorization: Bearer $EM_INF_API_KEY"' in curl
    python = call(opened, "wire.js", "m.asPython('http://h/v1', a[0], false)", body)
    compile(python, "snippet", "exec")
    assert "flag=True" in python
    assert "none=None" in python


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (400, '{"error": {"message": "em_inf.threshold: no"}}', "em_inf.threshold: no"),
        (503, '{"detail": "the engine does not answer"}', "the engine does not answer"),
        (502, "<html>Bad gateway</html>", "The server answered with status 502"),
        (401, '{"error": "Unauthorized"}', "The server wants an API key"),
        (500, "null", "The server answered with status 500"),
    ],
)
def test_every_error_becomes_a_sentence(
    opened: Page, status: int, body: str, said: str
) -> None:
    found = call(opened, "api.js", "m.sentence(a[0], a[1])", status, body)
    assert found.startswith(said)
