"""Streams with their report: text as it comes, entropies when they are known.

The server knows a request's figures when its last token is sampled, and sends them in the
last chunk that carries data. So while an answer streams there are texts and logprobs;
entropies are there once it has ended, and for the whole answer at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, overload

from openai import AsyncStream, Stream
from openai.lib.streaming.chat import AsyncChatCompletionStream, ChatCompletionStream

from em_inf.clients.errors import NoReportError
from em_inf.clients.report import Report, report_of
from em_inf.clients.tokens import Token, TokenText, align, texts_in, texts_of

_LAST_EVENTS = ("response.completed", "response.incomplete")


@dataclass(frozen=True)
class Delta:
    """A piece of an answer.

    Attributes:
        index: of the choice that it continues.
        text: what it adds; may be empty where only tokens or the end come.
        tokens: the tokens in it, if logprobs were asked for.
        chunk: the SDK's own chunk or event.
    """

    index: int
    text: str
    tokens: tuple[TokenText, ...]
    chunk: Any


class _Followed:
    """What a stream has said so far."""

    def __init__(self) -> None:
        self._report: Report | None = None
        self._texts: dict[int, list[TokenText]] = defaultdict(list)
        self._ended = False

    @property
    def report(self) -> Report:
        """The report, once the stream has ended.

        Raises:
            NoReportError: it has not ended, or came without a report.
        """
        if self._report is None and not self._ended:
            raise NoReportError(
                "the stream has not ended, and the report comes with its last chunk; a "
                "stream that was stopped early has none"
            )
        # The same words as for any response without the field.
        return self._report or report_of({})

    def tokens(self, index: int = 0) -> list[Token]:
        """The tokens of one choice with their entropies, once the stream has ended.

        Raises:
            NoReportError: as `em_inf.tokens_of`, or the stream has not ended.
        """
        return align(self.report, self._texts[index], index)

    def _feed(self, chunk: Any) -> list[Delta]:
        kind = getattr(chunk, "type", None)
        if kind == "chunk":  # Of the SDK's `client.chat.completions.stream`.
            chunk = chunk.chunk
        if _has_report(chunk):
            self._report = report_of(chunk)
        if kind in _LAST_EVENTS:
            # The deltas hide the end token; the whole response may show it.
            self._texts[0] = texts_of(chunk.response, 0) or self._texts[0]
            self._add_end_token()
        deltas = list(_deltas(chunk))
        for delta in deltas:
            self._texts[delta.index].extend(delta.tokens)
        return deltas

    def _add_end_token(self) -> None:
        texts = self._texts[0]
        if texts and self._report and self._report.choices[0].tokens == len(texts) + 1:
            texts.append(TokenText("", None))


def _has_report(chunk: Any) -> bool:
    carrier = getattr(chunk, "response", None) or chunk
    return "em_inf" in (getattr(carrier, "model_extra", None) or {})


def _deltas(chunk: Any) -> Iterable[Delta]:
    if getattr(chunk, "type", None) == "response.output_text.delta":
        yield Delta(0, chunk.delta, tuple(texts_in(chunk.logprobs)), chunk)
    for choice in getattr(chunk, "choices", None) or ():
        delta = getattr(choice, "delta", None)
        text = choice.text if delta is None else delta.content
        tokens = tuple(texts_in(getattr(choice, "logprobs", None)))
        if text or tokens or choice.finish_reason:
            yield Delta(choice.index, text or "", tokens, chunk)


class EMInfStream(_Followed):
    """A stream of `OpenAI()`, followed. Close it, or leave its `with`, to cancel."""

    def __init__(self, stream: Stream[Any] | ChatCompletionStream[Any]) -> None:
        super().__init__()
        self._stream = stream

    def __iter__(self) -> Iterator[Delta]:
        for chunk in self._stream:
            yield from self._feed(chunk)
        self._ended = True

    def close(self) -> None:
        """Stop the answer: the server stops sampling it."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _where: TracebackType | None,
    ) -> None:
        self.close()


class AsyncEMInfStream(_Followed):
    """A stream of `AsyncOpenAI()`, followed. Close it, or leave its block, to cancel."""

    def __init__(self, stream: AsyncStream[Any] | AsyncChatCompletionStream[Any]) -> None:
        super().__init__()
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[Delta]:
        async for chunk in self._stream:
            for delta in self._feed(chunk):
                yield delta
        self._ended = True

    async def close(self) -> None:
        """Stop the answer: the server stops sampling it."""
        await self._stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _where: TracebackType | None,
    ) -> None:
        await self.close()


@overload
def follow(stream: Stream[Any] | ChatCompletionStream[Any]) -> EMInfStream: ...


@overload
def follow(
    stream: AsyncStream[Any] | AsyncChatCompletionStream[Any],
) -> AsyncEMInfStream: ...


def follow(stream: Any) -> EMInfStream | AsyncEMInfStream:
    """Read a stream of the SDK piece by piece, and have its report at the end.

        chunks = client.chat.completions.create(
            ..., stream=True, logprobs=True, extra_body=EMInf(report="trace")
        )
        with follow(chunks) as answer:
            for piece in answer:
                print(piece.text, end="", flush=True)
        for token in answer.tokens():
            print(token.text, token.entropy_before, token.entropy_after)

    Args:
        stream: what `create(stream=True)` of chat.completions, completions or responses
            returns (awaited, if asynchronous), or the SDK's own
            `client.chat.completions.stream(...)`, entered.

    Returns:
        An iterator of `Delta`, asynchronous if the stream is, with `report`, `tokens()`
        and `close()`. Leaving its `with` closes the stream.
    """
    if isinstance(stream, AsyncStream | AsyncChatCompletionStream):
        return AsyncEMInfStream(stream)
    return EMInfStream(stream)
