"""Streams: text as it comes, figures at the end, and cancellation in the middle."""

import asyncio
from typing import Any

import openai
import pytest

from em_inf import EMInf, NoReportError, Token, follow, report_of, tokens_of
from tests.clients.asking import (
    CHAT,
    COMPLETION,
    LONG,
    RESPONSE,
    assert_stopped_early,
    async_client,
    generated,
)
from tests.e2e.serving import Server

TRACE = EMInf(n_grad_steps=15, report="trace")
LOGPROBS = {"include": ["message.output_text.logprobs"]}


def assert_figures(tokens: list[Token], text: str) -> None:
    assert "".join(token.text for token in tokens).startswith(text)
    assert [token.position for token in tokens] == list(range(len(tokens)))
    assert any(token.minimized for token in tokens)
    for token in tokens:
        assert token.entropy_before is not None
        assert token.entropy_after is not None
        assert token.minimized == (token.entropy_before >= 0.3)
        assert (token.entropy_after < token.entropy_before) == token.minimized


def test_chat_stream_yields_text_and_then_the_same_figures_as_the_whole(
    client: openai.OpenAI,
) -> None:
    asked: Any = {**CHAT, "logprobs": True, "extra_body": TRACE}
    whole = client.chat.completions.create(**asked)
    stream = follow(client.chat.completions.create(**asked, stream=True))
    pieces = list(stream)
    text = "".join(piece.text for piece in pieces)
    assert text == whole.choices[0].message.content
    assert len(pieces) > 10
    first = next(token for piece in pieces for token in piece.tokens)
    assert first.text == stream.tokens()[0].text
    assert stream.report == report_of(whole)
    assert stream.tokens() == tokens_of(whole)
    assert_figures(stream.tokens(), text)


def test_completion_stream(client: openai.OpenAI) -> None:
    asked: Any = {**COMPLETION, "logprobs": 0, "extra_body": TRACE}
    whole = client.completions.create(**asked)
    stream = follow(client.completions.create(**asked, stream=True))
    text = "".join(piece.text for piece in stream)
    assert text == whole.choices[0].text
    assert stream.tokens() == tokens_of(whole)
    assert_figures(stream.tokens(), text)


def test_responses_stream(client: openai.OpenAI) -> None:
    asked: Any = {**RESPONSE, **LOGPROBS, "extra_body": {**TRACE, "seed": 1}}
    whole = client.responses.create(**asked)
    stream = follow(client.responses.create(**asked, stream=True))
    text = "".join(piece.text for piece in stream)
    assert text == whole.output_text
    assert stream.report == report_of(whole)
    assert_figures(stream.tokens(), text)
    assert_figures(tokens_of(whole), text)
    assert len(stream.tokens()) == len(tokens_of(whole))


def test_choices_of_a_stream_are_kept_apart(client: openai.OpenAI) -> None:
    asked: Any = {**CHAT, "temperature": 1.5, "logprobs": True, "n": 3}
    stream = follow(
        client.chat.completions.create(**asked, extra_body=TRACE, stream=True)
    )
    texts = ["", "", ""]
    for piece in stream:
        texts[piece.index] += piece.text
    for index, text in enumerate(texts):
        assert_figures(stream.tokens(index), text)
    with pytest.raises(NoReportError, match="no choice 3"):
        stream.tokens(3)


def test_sdks_own_stream_helper_can_be_followed(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**CHAT, logprobs=True, extra_body=TRACE) as made:
        stream = follow(made)
        text = "".join(piece.text for piece in stream)
    assert_figures(stream.tokens(), text)


def test_asynchronous_streams(server: Server) -> None:
    async def ask() -> None:
        async with async_client(server) as client:
            chat = follow(
                await client.chat.completions.create(
                    **CHAT, stream=True, logprobs=True, extra_body=TRACE
                )
            )
            text = "".join([piece.text async for piece in chat])
            assert_figures(chat.tokens(), text)
            async with client.chat.completions.stream(**CHAT, extra_body=TRACE) as made:
                helped = follow(made)
                assert "".join([piece.text async for piece in helped]) == text
                assert helped.report.choices == chat.report.choices
            response: Any = await client.responses.create(
                **RESPONSE, stream=True, extra_body={**TRACE, "seed": 1}
            )
            async with follow(response) as stream:
                assert [piece async for piece in stream]
            assert stream.report.choices[0].tokens_minimized > 0

    asyncio.run(ask())


def test_without_logprobs_there_are_no_token_texts_and_it_says_so(
    client: openai.OpenAI,
) -> None:
    stream = follow(client.chat.completions.create(**CHAT, stream=True, extra_body=TRACE))
    assert all(piece.tokens == () for piece in stream)
    with pytest.raises(NoReportError, match="ask for logprobs"):
        stream.tokens()


def test_without_trace_it_says_so(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**CHAT, logprobs=True, extra_body=EMInf())
    with pytest.raises(NoReportError, match="report='trace'"):
        tokens_of(answer)


def test_stream_that_was_off_has_no_report_and_says_so(client: openai.OpenAI) -> None:
    stream = follow(client.chat.completions.create(**CHAT, stream=True))
    assert "".join(piece.text for piece in stream)
    with pytest.raises(NoReportError, match="did not apply EM-INF"):
        _ = stream.report


def test_stream_left_in_the_middle_stops_the_server(
    client: openai.OpenAI, server: Server
) -> None:
    before = generated(server)
    asked: Any = {**CHAT, "extra_body": {**TRACE, **LONG}}
    with follow(client.chat.completions.create(**asked, stream=True)) as stream:
        for count, _ in enumerate(stream):
            if count == 5:
                break
    assert_stopped_early(server, before)
    with pytest.raises(NoReportError, match="has not ended"):
        _ = stream.report


def test_cancelled_task_stops_the_server(server: Server) -> None:
    before = generated(server)

    async def read(first_piece: asyncio.Event) -> None:
        async with async_client(server) as client:
            asked: Any = {**CHAT, "extra_body": {**TRACE, **LONG}}
            made = await client.chat.completions.create(**asked, stream=True)
            async with follow(made) as stream:
                async for _ in stream:
                    first_piece.set()

    async def cancel() -> None:
        first_piece = asyncio.Event()
        task = asyncio.create_task(read(first_piece))
        await first_piece.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert_stopped_early(server, before)
