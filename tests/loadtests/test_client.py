import json
from typing import Any

import pytest

from em_inf.loadtests.client import RequestFailedError, read_stream

USAGE = {"choices": [], "usage": {"completion_tokens": 3}, "em_inf": {"choices": []}}


def chunk(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta}]}


def lines(*events: Any) -> list[tuple[float, bytes]]:
    """One event a second, from 11 s on, each followed by its empty line."""
    found = []
    for i, event in enumerate(events):
        data = event if isinstance(event, str) else json.dumps(event)
        found += [(11.0 + i, f"data: {data}\n".encode()), (11.0 + i, b"\n")]
    return found


GOOD = (
    chunk(role="assistant", content=""),
    chunk(content="Tom"),
    chunk(content=" has"),
    chunk(content=" 3"),
    USAGE,
    "[DONE]",
)


def test_times_run_from_the_first_token_not_from_the_role() -> None:
    answer = read_stream(10.0, lines(*GOOD))
    assert answer.text == "Tom has 3"
    assert answer.ttft_seconds == 2.0
    assert answer.itl_seconds == [1.0, 1.0]
    assert answer.e2e_seconds == 6.0


def test_tokens_are_those_of_usage_not_the_chunks() -> None:
    events = [*GOOD[:3], USAGE, "[DONE]"]
    answer = read_stream(10.0, lines(*events))
    assert answer.output_tokens == 3
    assert answer.tpot_seconds == 0.5


def test_report_is_kept_and_absent_where_there_is_none() -> None:
    assert read_stream(10.0, lines(*GOOD)).em_inf == {"choices": []}
    without = {"choices": [], "usage": {"completion_tokens": 3}}
    events = [*GOOD[:4], without, "[DONE]"]
    assert read_stream(10.0, lines(*events)).em_inf is None


@pytest.mark.parametrize(
    "events",
    [
        GOOD[:-1],
        (*GOOD[:4], "[DONE]"),
        (GOOD[0], USAGE, "[DONE]"),
        (*GOOD[:2], {"error": {"message": "gone"}}, "[DONE]"),
    ],
    ids=["no end", "no usage", "no token", "error"],
)
def test_stream_that_is_not_whole_is_an_error(events: tuple[Any, ...]) -> None:
    with pytest.raises(RequestFailedError):
        read_stream(10.0, lines(*events))
