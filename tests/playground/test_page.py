"""The page against the real server: run, read the figures, be refused, stop."""

import re
import time
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from em_inf.server.cli import DEMO_MODEL_NAME
from tests.e2e.serving import ENDLESS, QUESTION, Server
from tests.playground.browser import run

OFF = {"preset": "measure", "report": "trace"}
STRONG = {"preset": "strong", "report": "trace"}
CHAT = "**/v1/chat/completions"
SHADES = (0, 0.05, 0.3, 0.7, 1.2, 2)


def asked(server: Server, em_inf: Any, seed: int = 4, **fields: Any) -> tuple[str, Any]:
    """Text and report of what the page asks for at first, asked for without it."""
    sampling = {"temperature": 1, "top_p": 1, "max_tokens": 256, **fields}
    answer = server.chat(em_inf, seed=seed, **sampling).json
    return answer["choices"][0]["message"]["content"], answer["em_inf"]["choices"][0]


def text_of(page: Page, side: str) -> str:
    """An answer as shown, without the mark of its end."""
    return "".join(page.locator(f"#{side} .token:not(.ghost)").all_text_contents())


def figures(page: Page, side: str) -> dict[str, str]:
    names = page.locator(f"#{side} .figures dt").all_text_contents()
    values = page.locator(f"#{side} .figures dd").all_text_contents()
    return dict(zip(names, values, strict=True))


def inspected(page: Page, side: str) -> dict[str, str]:
    names = page.locator(f"#{side} .inspector dt").all_text_contents()
    values = page.locator(f"#{side} .inspector dd").all_text_contents()
    return dict(zip(names, values, strict=True))


def error_of(page: Page, side: str) -> str:
    return page.locator(f"#{side} > .error").inner_text()


def test_first_visit_is_ready_to_run(playground: Page) -> None:
    assert playground.get_by_label("Prompt").input_value() == QUESTION
    assert playground.locator("#a-choice").input_value() == "off"
    assert playground.locator("#b-choice").input_value() == "preset:strong"
    assert "vLLM" in playground.locator("#server").inner_text()


UNENDING = """() => {
    const sent = window.fetch;
    window.fetch = (address, options) => sent(address, options.body ? {...options,
        body: JSON.stringify({...JSON.parse(options.body), ignore_eos: true})} : options);
}"""
"""Has the page's requests not end by themselves, so that there is time to look."""


def test_both_answers_stream_side_by_side_and_unshaded(playground: Page) -> None:
    playground.evaluate(UNENDING)
    playground.locator("#max_tokens").fill("300")
    playground.evaluate(
        """() => {
            window.seen = [];
            const tokens = (side) => document.querySelectorAll(`#${side} .token`).length;
            new MutationObserver(() => window.seen.push([tokens("a"), tokens("b"),
                document.querySelectorAll("[role=option][class*=shade-]").length])
            ).observe(document.body, {childList: true, subtree: true});
        }"""
    )
    run(playground)
    seen = playground.evaluate("window.seen")
    streaming = [(a, b) for a, b, shaded in seen if shaded == 0 and a < 300 and b < 300]
    assert len({a for a, _ in streaming}) > 10
    assert len({b for _, b in streaming}) > 10
    assert [pair for pair in streaming if min(pair) > 0]
    assert seen[-1] == [300, 300, 600]


def test_answers_are_what_the_server_gives_without_the_page(
    playground: Page, server: Server
) -> None:
    run(playground)
    for side, em_inf in (("a", OFF), ("b", STRONG)):
        text, report = asked(server, em_inf)
        assert text_of(playground, side) == text
        shown = figures(playground, side)
        assert shown["tokens"] == str(report["tokens"])
        assert shown["touched"].split()[0] == str(report["tokens_minimized"])
        before, _, after = shown["mean entropy, nats"].partition(" → ")
        assert float(before) == pytest.approx(report["mean_entropy_before"], rel=5e-3)
        assert float(after) == pytest.approx(report["mean_entropy_after"], rel=5e-3)
        seconds = float(shown["time"].split()[0])
        rate = report["tokens"] / seconds
        assert float(shown["tokens per second"]) == pytest.approx(rate, rel=0.05)


def test_off_samples_what_the_server_samples_without_em_inf(
    playground: Page, server: Server
) -> None:
    run(playground)
    sampling = {"temperature": 1, "top_p": 1, "max_tokens": 256}
    plain = server.chat(False, seed=4, **sampling).json
    assert text_of(playground, "a") == plain["choices"][0]["message"]["content"]


def test_every_token_is_shaded_by_its_entropy_before(
    playground: Page, server: Server
) -> None:
    run(playground)
    _, report = asked(server, STRONG)
    classes = playground.locator("#b .token").evaluate_all(
        "tokens => tokens.map((token) => token.className)"
    )
    trace = report["trace"]
    assert len(classes) == len(trace["entropy_before"])
    for name, before, steps in zip(
        classes, trace["entropy_before"], trace["grad_steps"], strict=True
    ):
        shade = sum(before >= low for low in SHADES) - 1
        assert f"shade-{shade}" in name.split()
        assert ("touched" in name.split()) == (steps > 0)
    assert {"shade-0", "shade-2", "shade-3"} <= {
        part for c in classes for part in c.split()
    }


def test_hover_shows_the_tokens_figures_and_alternatives(
    playground: Page, server: Server
) -> None:
    run(playground)
    _, report = asked(server, STRONG)
    trace = report["trace"]
    for index in (0, 1, 18):
        playground.locator("#b .token").nth(index).hover()
        shown = inspected(playground, "b")
        assert float(shown["before"]) == pytest.approx(
            trace["entropy_before"][index], rel=1e-2
        )
        assert float(shown["after"]) == pytest.approx(
            trace["entropy_after"][index], rel=1e-2
        )
        assert shown["steps"] == str(trace["grad_steps"][index])
    alternatives = playground.locator("#b .alternatives")
    assert "before EM-INF" in alternatives.inner_text()
    assert alternatives.locator("li").count() == 5
    assert alternatives.locator("li.chosen").count() == 1


def test_keyboard_reaches_every_token(playground: Page) -> None:
    run(playground)
    count = playground.locator("#b .token").count()
    playground.locator("#b .token[tabindex='0']").focus()
    playground.keyboard.press("Home")
    assert f"token 1 of {count}" in playground.locator("#b .inspector").inner_text()
    playground.keyboard.press("ArrowRight")
    assert f"token 2 of {count}" in playground.locator("#b .inspector").inner_text()
    assert inspected(playground, "b")["steps"] == "0"
    playground.keyboard.press("End")
    playground.keyboard.press("ArrowRight")
    assert f"token {count} of {count}" in playground.locator("#b .inspector").inner_text()
    assert playground.locator("#b .token[tabindex='0']").count() == 1


def test_chart_shows_before_and_after_of_both_answers(playground: Page) -> None:
    assert playground.locator("#chart svg").count() == 0
    run(playground)
    for side, tokens in (("a", 51), ("b", 50)):
        for what in ("before", "after"):
            drawn = playground.locator(f"#chart g[data-side={side}] path.{what}")
            assert len(re.findall("M", drawn.get_attribute("d") or "")) == tokens
    assert playground.locator("#chart line.threshold").count() == 1
    name = playground.locator("#chart svg[role=img] title").text_content()
    assert name == "Entropy of each token before and after EM-INF"
    area = playground.locator("#chart g[data-side=b] .area")
    area.hover(position={"x": 5, "y": 40})
    assert "token 1 of 50" in playground.locator("#b .inspector").inner_text()


def test_table_says_the_same_as_the_picture(playground: Page, server: Server) -> None:
    run(playground)
    playground.locator("#b .table summary").click()
    rows = playground.locator("#b table tbody tr")
    _, report = asked(server, STRONG)
    expect(rows).to_have_count(report["tokens"])
    cells = rows.nth(0).locator("td").all_text_contents()
    assert cells[1] == '"Tom"'
    assert float(cells[2]) == pytest.approx(
        report["trace"]["entropy_before"][0], rel=1e-2
    )
    assert cells[4] == str(report["trace"]["grad_steps"][0])


def test_method_shows_its_own_fields_and_reports_temperatures(
    playground: Page, server: Server
) -> None:
    playground.locator("#b").get_by_text("adaptive temperature", exact=True).click()
    assert playground.locator("#b-choice").input_value() == "custom"
    assert playground.locator("#b-target_ratio").is_visible()
    assert playground.locator("#b-threshold").is_visible()
    assert not playground.locator("#b-n_grad_steps").is_visible()
    run(playground)
    _, report = asked(server, {"preset": "adaptive", "report": "trace"})
    playground.locator("#b .token").first.hover()
    shown = inspected(playground, "b")
    assert float(shown["temperature"]) == pytest.approx(
        report["trace"]["temperature"][0], rel=1e-2
    )


def test_slider_and_box_move_together_over_the_servers_range(playground: Page) -> None:
    box = playground.locator("#b-n_grad_steps")
    slider = playground.get_by_label("n_grad_steps, slider").nth(1)
    slider.press("End")
    assert box.input_value() == "64"
    slider.press("Home")
    assert box.input_value() == "0"
    box.fill("7")
    slider.press("ArrowRight")
    assert box.input_value() == "8"
    assert playground.locator("#b-choice").input_value() == "custom"


@pytest.mark.parametrize(
    ("field", "value", "sent"),
    [("n_grad_steps", "65", 65), ("threshold", "-1", -1), ("kl_weight", "much", "much")],
)
def test_refused_setting_is_sent_as_typed_and_shown_in_the_servers_words(
    playground: Page,
    server: Server,
    complaints: list[str],
    field: str,
    value: str,
    sent: Any,
) -> None:
    box = playground.locator(f"#b-{field}")
    box.fill(value)
    assert box.get_attribute("aria-invalid") == "true"
    run(playground)
    refused = server.chat({field: sent}).json["error"]["message"]
    assert error_of(playground, "b") == refused
    assert box.input_value() == value
    assert figures(playground, "a")["tokens"] == "51"
    assert all("status of 400" in complaint for complaint in complaints)
    complaints.clear()


def test_vllms_own_refusals_are_sentences_too(
    playground: Page, complaints: list[str]
) -> None:
    playground.locator("#max_tokens").fill("many")
    playground.locator("#a-temperature").fill("-1")
    run(playground)
    assert error_of(playground, "a").startswith("max_tokens: 'many' is not allowed.")
    assert "{" not in error_of(playground, "b")
    playground.locator("#max_tokens").fill("20")
    run(playground)
    assert "temperature must be non-negative" in error_of(playground, "a")
    complaints.clear()


def test_stop_ends_both_requests_in_the_engine(playground: Page, server: Server) -> None:
    labels = f'{{engine="0",model_name="{DEMO_MODEL_NAME}"}}'
    finished = [
        f"vllm:request_success_total{labels}".replace(",", f',finished_reason="{why}",')
        for why in ("stop", "length")
    ]
    before = server.metrics()
    playground.evaluate(UNENDING)
    playground.locator("#max_tokens").fill(str(ENDLESS))
    playground.locator("#run").click()
    for side in ("a", "b"):
        expect(playground.locator(f"#{side} .token").nth(5)).to_be_attached()
    playground.locator("#stop").click()
    expect(playground.locator("#run")).to_be_enabled()
    for side in ("a", "b"):
        assert error_of(playground, side).startswith("Stopped after ")
        assert playground.locator(f"#{side} .token").count() < ENDLESS
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        after = server.metrics()
        if after[f"vllm:num_requests_running{labels}"] == 0:
            break
        time.sleep(0.1)
    assert after[f"vllm:num_requests_running{labels}"] == 0
    assert after[f"vllm:num_requests_waiting{labels}"] == 0
    assert [after[name] for name in finished] == [before[name] for name in finished]
    tokens = f"vllm:generation_tokens_total{labels}"
    assert after[tokens] - before[tokens] < 2 * ENDLESS
    playground.locator("#max_tokens").fill("5")
    run(playground)
    assert figures(playground, "b")["tokens"] == "5"


def test_server_that_is_gone_is_a_sentence(
    playground: Page, complaints: list[str]
) -> None:
    playground.route(CHAT, lambda route: route.abort("connectionrefused"))
    run(playground)
    assert "does not answer. Is it still running?" in error_of(playground, "a")
    complaints.clear()


def test_stream_that_breaks_off_keeps_its_text_and_says_so(playground: Page) -> None:
    def cut(route: Route) -> None:
        whole = route.fetch()
        route.fulfill(response=whole, body=whole.text()[:6000])

    playground.route(CHAT, cut)
    run(playground)
    assert "broke off" in error_of(playground, "b")
    assert playground.locator("#b .token").count() > 3
    assert playground.locator(".token[class*=shade-]").count() == 0


def test_fetches_nothing_but_its_own_files_and_the_api(
    page: Page, server: Server
) -> None:
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    page.goto(f"{server.url}/playground")
    run(page)
    paths = {address.removeprefix(server.url) for address in addresses}
    assert {"/playground", "/v1/em_inf", "/v1/chat/completions"} <= paths
    assert all(path.startswith(("/playground", "/v1/")) for path in paths)
