"""What the field looks like in responses, for streams and figures of every kind."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from fastapi.responses import JSONResponse

from em_inf.logits_processors.figures import Figures
from em_inf.logits_processors.settings import Settings
from em_inf.server.report import Report
from em_inf.server.responses import (
    add_to_event_stream,
    add_to_json,
    add_to_stream,
    rendered,
)


def report_of(*choices: list[list[float]] | None, report: str = "trace") -> Report:
    """A report of one prompt for each choice given as columns."""
    made = Report(Settings(report=report), "default")  # type: ignore[arg-type]
    for columns in choices:
        generation = made.new_generation(1)
        if columns is not None:
            generation.figures = [Figures(np.array(columns, np.float32))]
    return made


def body_of(report: Report, one_choice: bool = False) -> Any:
    return json.loads(asyncio.run(rendered(report, one_choice)))


COLUMNS = [[1.0, 0.1], [0.5, 0.1], [5.0, 0.0], [1.0, 1.0]]


def run(
    add: Callable[[AsyncIterator[Any], Report], AsyncIterator[Any]], *chunks: str
) -> list[str]:
    async def source() -> AsyncIterator[str]:
        for chunk in chunks:
            yield chunk

    async def collect() -> list[str]:
        return [chunk async for chunk in add(source(), report_of(COLUMNS))]

    return asyncio.run(collect())


def event(**body: Any) -> str:
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n"


WORD = event(choices=[{"delta": {"content": "a"}, "finish_reason": None}])
FINISH = event(choices=[{"delta": {}, "finish_reason": "stop"}])
USAGE = event(choices=[], usage={})
DONE = "data: [DONE]\n\n"


def test_figures_are_summed_up() -> None:
    (choice,) = body_of(report_of(COLUMNS))["choices"]
    assert choice == {
        "index": 0,
        "tokens": 2,
        "tokens_minimized": 1,
        "grad_steps": 5,
        "mean_entropy_before": 0.55,
        "mean_entropy_after": 0.3,
        "trace": {
            "entropy_before": [1.0, 0.1],
            "entropy_after": [0.5, 0.1],
            "grad_steps": [5, 0],
        },
    }


def test_summary_has_no_trace() -> None:
    body = body_of(report_of(COLUMNS, report="summary"))
    assert "trace" not in body["choices"][0]


def test_token_that_was_not_recorded_is_null_and_counted() -> None:
    nan = float("nan")
    columns = [[1.0, nan], [0.5, nan], [5.0, nan], [1.0, nan]]
    (choice,) = body_of(report_of(columns))["choices"]
    assert choice["tokens"] == 2
    assert choice["tokens_not_recorded"] == 1
    assert choice["mean_entropy_before"] == 1.0
    assert choice["trace"]["entropy_before"] == [1.0, None]
    assert choice["trace"]["grad_steps"] == [5, None]


def test_long_trace_is_whole_and_leaves_others_their_turn() -> None:
    n = 40_000
    columns = [[0.1 * (i % 7) for i in range(n)]] * 2 + [[i % 16 for i in range(n)]] * 2
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def scenario() -> Any:
        task = asyncio.create_task(others())
        body = await rendered(report_of(columns), one_choice=False)
        task.cancel()
        return json.loads(body)["choices"][0]["trace"]

    trace = asyncio.run(scenario())
    assert trace["entropy_before"] == pytest.approx(columns[0], abs=1e-7)
    assert trace["entropy_after"] == pytest.approx(columns[1], abs=1e-7)
    assert trace["grad_steps"] == columns[2]
    assert turns > 10


def test_answer_without_tokens_has_no_means() -> None:
    (choice,) = body_of(report_of([[], [], [], []]))["choices"]
    assert choice["tokens"] == 0
    assert choice["mean_entropy_before"] is None


def test_statistics_that_could_not_be_fetched_are_said_to_be_missing() -> None:
    body = body_of(report_of(COLUMNS, None))
    assert "error" not in body["choices"][0]
    assert body["choices"][1] == {
        "index": 1,
        "error": "the statistics could not be fetched",
    }


def test_turns_of_a_tool_loop_are_one_choice() -> None:
    body = body_of(report_of(COLUMNS, COLUMNS), one_choice=True)
    (choice,) = body["choices"]
    assert choice["tokens"] == 4
    assert choice["grad_steps"] == 10


@pytest.mark.parametrize(
    ("chunks", "last"),
    [
        ([WORD, FINISH, DONE], FINISH),
        ([WORD, FINISH, USAGE, DONE], USAGE),
        ([WORD, FINISH, WORD, FINISH, DONE], FINISH),
        ([WORD, FINISH, ": keep-alive\n\n", DONE], FINISH),
    ],
    ids=["finish", "usage", "two choices", "keep-alive"],
)
def test_only_the_last_chunk_of_a_stream_is_changed(chunks: list[str], last: str) -> None:
    out = run(add_to_stream, *chunks)
    changed = [chunk for chunk in out if '"em_inf"' in chunk]
    assert len(changed) == 1
    body = json.loads(changed[0].removeprefix("data: "))
    assert body.pop("em_inf")["choices"][0]["tokens"] == 2
    assert event(**body) == last
    kept = sorted(chunk for chunk in out if chunk not in changed)
    rest = list(chunks)
    del rest[len(rest) - 1 - rest[::-1].index(last)]
    assert kept == sorted(rest)


def test_stream_that_ends_in_an_error_passes_unchanged() -> None:
    chunks = [WORD, event(error={"message": "engine died"}), DONE]
    assert run(add_to_stream, *chunks) == chunks


def test_users_text_is_not_taken_for_the_end_of_a_stream() -> None:
    text = '"finish_reason":"stop" "choices":[]'
    word = event(choices=[{"delta": {"content": text}, "finish_reason": None}])
    assert run(add_to_stream, word, word, FINISH, DONE)[:2] == [word, word]


TRAP = 'a model may write "response":{ itself'


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete"])
def test_event_that_ends_a_responses_stream_is_changed(kind: str) -> None:
    delta = f"event: response.output_text.delta\n{event(type='delta')}"
    response = {"id": "x", "text": TRAP}
    end = f"event: {kind}\n{event(type=kind, response=response)}"
    out = run(add_to_event_stream, delta, end)
    assert out[0] == delta
    head, _, data = out[1].partition("\n")
    assert head == f"event: {kind}"
    body = json.loads(data.removeprefix("data: "))
    assert body["response"].pop("em_inf")["choices"][0]["tokens"] == 2
    assert body == {"type": kind, "response": {"id": "x", "text": TRAP}}


def test_finished_body_keeps_every_byte_and_gains_the_field() -> None:
    text = 'ends in braces }} and "quotes"\n'
    response = JSONResponse({"choices": [{"text": text}], "usage": {"total": 1}})
    before = bytes(response.body)
    asyncio.run(add_to_json(response, report_of(COLUMNS), one_choice=False))
    assert bytes(response.body).startswith(before[:-1] + b',"em_inf":')
    body = json.loads(bytes(response.body))
    assert body.pop("em_inf")["choices"][0]["tokens"] == 2
    assert body == json.loads(before)
    assert response.headers["content-length"] == str(len(response.body))
