"""What we add to vLLM's response bodies: the field `em_inf`, spliced in, never parsed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from pydantic_core import to_json

from em_inf.logits_processors.figures import Figures, mean_of_known
from em_inf.logits_processors.settings import Settings, settings_of_method
from em_inf.server.report import Report

NOT_FETCHED = "the statistics could not be fetched"
_PIECE_TOKENS = 8192
"""Tokens to render before other requests have their turn of the event loop."""


async def rendered(report: Report, one_choice: bool) -> bytes:
    """The field `em_inf` of a response, as JSON.

    Args:
        report: a finished request's report.
        one_choice: its generations are the turns of one choice (/v1/responses), not
            prompts with choices of their own.
    """
    if one_choice:
        turns = [generation.all_figures for generation in report.generations]
        known = [turn for turn in turns if turn is not None]
        whole = len(known) == len(turns)
        choices = [Figures.joined(known) if whole else None]
    else:
        choices = [x for generation in report.generations for x in generation.figures]
    settings = report.settings
    bodies = [
        await _choice(index, figures, settings) for index, figures in enumerate(choices)
    ]
    head = _dump(settings_of_method(settings))
    return b'{"settings":%b,"choices":[%b]}' % (head, b",".join(bodies))


async def _choice(index: int, figures: Figures | None, settings: Settings) -> bytes:
    if figures is None:
        return _dump({"index": index, "error": NOT_FETCHED})
    body = _dump({"index": index, **summary(figures, settings)})
    if settings.report != "trace":
        return body
    columns = {
        "entropy_before": figures.entropy_before,
        "entropy_after": figures.entropy_after,
    }
    if settings.method == "gradient":
        columns["grad_steps"] = figures.grad_steps
    else:
        columns["temperature"] = figures.temperature
    trace = [
        b'"%b":%b' % (name.encode(), await _array(values, whole=name == "grad_steps"))
        for name, values in columns.items()
    ]
    return _with_member(body, b"trace", b"{%b}" % b",".join(trace))


async def _array(values: NDArray[np.float32], whole: bool) -> bytes:
    """A column as a JSON array, null where nothing was recorded."""
    pieces = []
    for start in range(0, max(len(values), 1), _PIECE_TOKENS):
        if start:
            await asyncio.sleep(0)
        piece: list[Any] = _rounded(values[start : start + _PIECE_TOKENS])
        if whole:
            piece = [int(x) if x == x else None for x in piece]
        pieces.append(to_json(piece, inf_nan_mode="null")[1:-1])
    return b"[%b]" % b",".join(pieces)


def summary(figures: Figures, settings: Settings) -> dict[str, Any]:
    """Counts and means over the tokens; entropies in nats, None where none is known."""
    found: dict[str, Any] = {
        "tokens": len(figures),
        "tokens_minimized": figures.num_minimized,
    }
    gradient = settings.method == "gradient"
    if gradient:
        found["grad_steps"] = figures.num_grad_steps
    found["mean_entropy_before"] = _mean(figures.entropy_before)
    found["mean_entropy_after"] = _mean(figures.entropy_after)
    if not gradient:
        found["mean_temperature"] = _mean(figures.temperature)
    not_recorded = len(figures) - figures.num_recorded
    if not_recorded:
        found["tokens_not_recorded"] = not_recorded
    return found


def _mean(values: NDArray[np.float32]) -> float | None:
    mean = mean_of_known(values)
    return None if mean is None else round(mean, 7) + 0.0


def _rounded(values: NDArray[np.float32]) -> list[Any]:
    """Figures as JSON shows them: seven decimals, no negative zero."""
    rounded: list[float] = (np.round(values.astype(np.float64), 7) + 0.0).tolist()
    return rounded


async def add_to_json(response: JSONResponse, report: Report, one_choice: bool) -> None:
    """Put `em_inf` into a finished response's body, in place."""
    value = await rendered(report, one_choice)
    response.body = _with_member(bytes(response.body), b"em_inf", value)
    response.headers["content-length"] = str(len(response.body))


async def add_to_stream(
    chunks: AsyncIterator[str | bytes], report: Report
) -> AsyncIterator[str | bytes]:
    """Put `em_inf` into the last chunk of a stream that carries data.

    Only a chunk that may be the last one (a finish reason or the usage) waits for its
    successor; every other passes at once.
    """
    held: str | bytes | None = None
    async for chunk in chunks:
        if held is not None:
            if _is_event(chunk, "[DONE]"):
                held = await _patched(held, report)
            elif not _is_event(chunk, "{"):
                yield chunk  # A keep-alive comment.
                continue
            yield held
            held = None
        if _may_be_last(chunk):
            held = chunk
        else:
            yield chunk
    if held is not None:
        yield await _patched(held, report)


def _text(chunk: str | bytes) -> str:
    return chunk if isinstance(chunk, str) else chunk.decode()


def _is_event(chunk: str | bytes, start: str) -> bool:
    return _text(chunk).startswith(f"data: {start}")


def _may_be_last(chunk: str | bytes) -> bool:
    # Inside a JSON string the quotes would be escaped: the marks cannot be user's text.
    text = _text(chunk)
    return _is_event(chunk, "{") and (
        '"finish_reason":"' in text or '"choices":[]' in text
    )


async def _patched(chunk: str | bytes, report: Report) -> str:
    data = _text(chunk).removeprefix("data: ").encode()
    value = await rendered(report, one_choice=False)
    return f"data: {_with_member(data, b'em_inf', value).decode()}\n\n"


async def add_to_event_stream(
    events: AsyncIterator[str | bytes], report: Report
) -> AsyncIterator[str | bytes]:
    """Put `em_inf` into `response` of the event that ends a /v1/responses stream."""
    ends = ("event: response.completed\n", "event: response.incomplete\n")
    async for event in events:
        text = _text(event)
        if not text.startswith(ends):
            yield event
            continue
        head, mark, data = text.partition("\ndata: ")
        value = await rendered(report, one_choice=True)
        body = _in_response(data, value.decode())
        yield f"{head}{mark}{body}\n\n"


def _in_response(data: str, value: str) -> str:
    """An event's JSON with `em_inf` as the first member of its object `response`.

    Args:
        data: the event. A quote inside a JSON string is escaped, so the mark that is
            looked for cannot be text of the model's.
        value: of `em_inf`, as JSON.
    """
    mark = '"response":{'
    before, found, after = data.rstrip().partition(mark)
    assert found, "the event that ends a stream holds the response"
    return f'{before}{mark}"em_inf":{value},{after}'


def _with_member(body: bytes, name: bytes, value: bytes) -> bytes:
    """A JSON object with one more member at its end, neither parsed nor rendered again.

    Args:
        body: the object, not an empty one.
        name: of the member.
        value: of the member, as JSON.
    """
    before, brace, after = body.rpartition(b"}")
    assert brace, "a body of vLLM's is one JSON object"
    assert not after.strip(), "nothing follows it"
    return b'%b,"%b":%b}' % (before, name, value)


def _dump(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
