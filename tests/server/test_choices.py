"""One engine request a choice: seeds, keys, order of outputs, who ends whom."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from vllm.outputs import CompletionOutput, RequestOutput

from em_inf.server.choices import merge_choices


def output(text: str, finished: bool) -> RequestOutput:
    choice = CompletionOutput(0, text, [7], None, None, "stop" if finished else None)
    return RequestOutput("id", None, [1], None, [choice], finished)


async def stream(
    *texts: str, ended: list[str] | None = None
) -> AsyncGenerator[Any, None]:
    try:
        for text in texts:
            if text == "fails":
                raise RuntimeError(text)
            await asyncio.sleep(0)
            yield output(text, finished=text == texts[-1])
    finally:
        if ended is not None:
            ended.append(texts[0])


def merged(final_only: bool, *streams: AsyncGenerator[Any, None]) -> list[RequestOutput]:
    async def gather() -> list[RequestOutput]:
        return [each async for each in merge_choices(streams, final_only)]

    return asyncio.run(gather())


def test_final_output_has_every_choice_in_order_whichever_ended_first() -> None:
    streams = stream("a", "b", "slow"), stream("fast")
    (only,) = merged(True, *streams)
    assert only.finished
    assert [(c.index, c.text) for c in only.outputs] == [(0, "slow"), (1, "fast")]


def test_deltas_pass_as_they_come_and_only_the_last_of_all_is_finished() -> None:
    found = merged(False, stream("a", "b", "c"), stream("x"))
    assert sorted((o.outputs[0].index, o.outputs[0].text) for o in found) == [
        (0, "a"), (0, "b"), (0, "c"), (1, "x"),
    ]  # fmt: skip
    assert [o.finished for o in found] == [False, False, False, True]


def test_choice_that_fails_ends_the_others() -> None:
    ended: list[str] = []
    others = stream("a", *"bcdefgh", ended=ended)
    with pytest.raises(RuntimeError, match="fails"):
        merged(False, others, stream("x", "fails", ended=ended))
    assert sorted(ended) == ["a", "x"]
