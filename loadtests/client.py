"""A light client for chat completions, which keeps the times of a stream.

It shares the machine with the server that it measures, hence aiohttp (which vLLM brings)
and no more parsing than the times need.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import aiohttp

LONGEST_LINE = 2**24
"""Bytes. A trace comes in one line."""


class RequestFailedError(Exception):
    """A request was answered with an error, or not to its end."""


@dataclass(frozen=True)
class Answer:
    """One streamed answer.

    Attributes:
        text: what was said.
        output_tokens: as `usage` counts them.
        em_inf: the report, None where there was none.
        ttft_seconds: request sent to first output token.
        itl_seconds: gaps between the chunks that brought tokens.
        tpot_seconds: (last - first) / (output tokens - 1); None for a single token.
        e2e_seconds: request sent to the end of the stream.
    """

    text: str
    output_tokens: int
    em_inf: dict[str, Any] | None
    ttft_seconds: float
    itl_seconds: list[float]
    tpot_seconds: float | None
    e2e_seconds: float


@asynccontextmanager
async def connection(
    concurrency: int, headers: dict[str, str] | None = None
) -> AsyncIterator[aiohttp.ClientSession]:
    """A session that holds so many requests at once, each with these headers."""
    async with aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=concurrency),
        timeout=aiohttp.ClientTimeout(total=600),
        read_bufsize=LONGEST_LINE,
    ) as session:
        yield session


async def ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> Answer:
    """Post a chat completion and read its stream to the end.

    Args:
        session: from `connection`.
        url: the server's, without a path.
        body: of the request; streaming is added.

    Raises:
        RequestFailedError: the server refused, or the stream held an error or no usage.
    """
    sent = {**body, "stream": True, "stream_options": {"include_usage": True}}
    began = time.perf_counter()
    async with session.post(f"{url}/v1/chat/completions", json=sent) as response:
        if response.status != 200:
            raise RequestFailedError(f"{response.status}: {await response.text()}")
        arrived = [(time.perf_counter(), line) async for line in response.content]
    return read_stream(began, arrived)


async def ask_plainly(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any]
) -> dict[str, Any]:
    """Post a chat completion and read its answer in one piece.

    Args:
        session: from `connection`.
        url: the server's, without a path.
        body: of the request.

    Raises:
        RequestFailedError: the server refused.
    """
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise RequestFailedError(f"{response.status}: {await response.text()}")
        answer: dict[str, Any] = await response.json()
        return answer


def read_stream(began: float, arrived: Iterable[tuple[float, bytes]]) -> Answer:
    """Times and text of a stream's lines.

    Args:
        began: when the request was sent, in seconds.
        arrived: each line and when it came, on the same clock.

    Raises:
        RequestFailedError: an error in the stream, no token, no usage or no end.
    """
    parts: list[str] = []
    at: list[float] = []
    usage = report = None
    ended = None
    for when, line in arrived:
        data = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:"):
            continue
        if data == b"[DONE]":
            ended = when
            break
        event = json.loads(data)
        if "error" in event:
            raise RequestFailedError(f"in the stream: {event['error']}")
        usage = event.get("usage") or usage
        report = event.get("em_inf") or report
        for choice in event["choices"]:
            # The first chunk names the role, and brings no token.
            content = choice["delta"].get("content")
            if content is not None and "role" not in choice["delta"]:
                parts.append(content)
                at.append(when)
    if ended is None or usage is None or not at:
        raise RequestFailedError(f"the stream broke off after {len(at)} chunks")
    tokens = usage["completion_tokens"]
    return Answer(
        text="".join(parts),
        output_tokens=tokens,
        em_inf=report,
        ttft_seconds=at[0] - began,
        itl_seconds=[after - before for before, after in pairwise(at)],
        tpot_seconds=(at[-1] - at[0]) / (tokens - 1) if tokens > 1 else None,
        e2e_seconds=ended - began,
    )


async def ask_all(
    url: str, bodies: list[dict[str, Any]], concurrency: int
) -> tuple[list[Answer], float]:
    """Closed loop: `concurrency` requests at a time, the next when one returns.

    Returns:
        The answers in the order of their bodies, and seconds from first to last.
    """
    gate = asyncio.Semaphore(concurrency)

    async def one(body: dict[str, Any]) -> Answer:
        async with gate:
            return await ask(session, url, body)

    async with connection(concurrency) as session:
        began = time.perf_counter()
        answers = await asyncio.gather(*(one(body) for body in bodies))
        return answers, time.perf_counter() - began
