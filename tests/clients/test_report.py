"""Typed reports from whatever OpenAI's SDK returns."""

import asyncio
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion

from em_inf import EMInf, NoReportError, Report, report_of
from tests.clients.asking import CHAT, COMPLETION, RESPONSE, async_client
from tests.e2e.serving import Server

ASKED = EMInf(n_grad_steps=15)


def assert_report(report: Report) -> None:
    (choice,) = report.choices
    assert report.settings.n_grad_steps == 15
    assert report.settings.target_ratio is None
    assert 0 < choice.tokens_minimized < choice.tokens
    assert choice.grad_steps is not None
    assert choice.grad_steps >= choice.tokens_minimized
    assert choice.mean_entropy_before is not None
    assert choice.mean_entropy_after is not None
    assert choice.mean_entropy_after < choice.mean_entropy_before
    assert choice.trace is None


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**CHAT, extra_body=ASKED)
    assert type(answer) is ChatCompletion
    assert answer.usage is not None
    assert report_of(answer).choices[0].tokens == answer.usage.completion_tokens
    assert_report(report_of(answer))


def test_completion(client: openai.OpenAI) -> None:
    assert_report(report_of(client.completions.create(**COMPLETION, extra_body=ASKED)))


def test_response(client: openai.OpenAI) -> None:
    body = {**ASKED, "seed": 1}
    assert_report(report_of(client.responses.create(**RESPONSE, extra_body=body)))


def test_raw_response_and_mapping(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**CHAT, extra_body=ASKED)
    assert_report(report_of(raw))
    assert_report(report_of(raw.http_response.json()))
    with client.chat.completions.with_streaming_response.create(
        **CHAT, extra_body=ASKED
    ) as streaming:
        assert_report(report_of(streaming))


def test_asynchronous_client(server: Server) -> None:
    async def ask() -> None:
        async with async_client(server) as client:
            chat = await client.chat.completions.create(**CHAT, extra_body=ASKED)
            assert_report(report_of(chat))
            raw = await client.completions.with_raw_response.create(
                **COMPLETION, extra_body=ASKED
            )
            assert_report(report_of(raw))

    asyncio.run(ask())


def test_each_choice_has_its_report(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**CHAT, n=3, extra_body=EMInf(preset="paper"))
    assert [choice.index for choice in report_of(answer).choices] == [0, 1, 2]


def test_adaptive_temperature_reports_temperatures(client: openai.OpenAI) -> None:
    asked = EMInf(preset="adaptive", target_ratio=0.4, report="trace")
    report = report_of(client.chat.completions.create(**CHAT, extra_body=asked))
    (choice,) = report.choices
    assert report.settings.target_ratio == 0.4
    assert choice.grad_steps is None
    assert choice.mean_temperature is not None
    assert choice.mean_temperature < 1
    assert choice.trace is not None
    assert choice.trace.temperature is not None
    assert len(choice.trace.temperature) == choice.tokens


@pytest.mark.parametrize("asked", [{}, EMInf(enabled=False), EMInf(report="none")])
def test_response_without_report_is_an_error_that_says_so(
    client: openai.OpenAI, asked: Any
) -> None:
    answer = client.chat.completions.create(**CHAT, extra_body=asked)
    with pytest.raises(NoReportError, match="did not apply EM-INF"):
        report_of(answer)


def test_stock_vllm_is_found_out(stock: Server) -> None:
    with openai.OpenAI(base_url=f"{stock.url}/v1", api_key="none") as client:
        answer = client.chat.completions.create(**CHAT, extra_body=ASKED)
    assert answer.choices[0].message.content
    with pytest.raises(NoReportError, match="stock vLLM ignores the field"):
        report_of(answer)


def test_lost_statistics_are_an_error() -> None:
    lost = {
        "settings": {"method": "gradient", "threshold": 0.3},
        "choices": [{"index": 0, "error": "the statistics could not be fetched"}],
    }
    with pytest.raises(NoReportError, match="choice 0: the statistics could not"):
        report_of({"em_inf": lost})


def test_report_of_another_form_is_an_error() -> None:
    with pytest.raises(NoReportError, match="cannot be read"):
        report_of({"em_inf": {"choices": []}})


def test_what_is_no_response_is_a_type_error(client: openai.OpenAI) -> None:
    with pytest.raises(TypeError, match="no response"):
        report_of("text")
    stream = client.chat.completions.create(**CHAT, stream=True)
    with stream, pytest.raises(TypeError, match="no response"):
        report_of(stream)
