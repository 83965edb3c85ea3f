"""One engine request a choice: seeds, keys, order of outputs, who ends whom."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
from starlette.datastructures import State
from vllm import SamplingParams
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from logits_processors.settings import (
    SERVER_SETTINGS_VARIABLE,
    ServerSettings,
    Settings,
    server_settings,
    to_extra_args,
)
from server.choices import merge_choices
from server.current import DECLINED
from server.engine_client import EMInfEngineClient

FIGURES = [[1.0], [0.5], [5.0], [1.0]]


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


class Engine:
    """Stands where vLLM's engine client does, and keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[SamplingParams] = []
        self.engine_core = self
        self.core_engines = [0]

    def generate(self, _prompt: Any, params: SamplingParams, _id: str) -> Any:
        self.asked.append(params)
        return stream(f"choice {len(self.asked)}")

    async def _call_utility_async(self, *args: Any, engine: int) -> list[Any]:
        (keys,) = args[3]
        records = {key: {0: FIGURES} for key in keys}
        return [{"records": records, "errors": {}, "seconds": 0.0, "calls": 0}]


def asked_of_the_engine(**params: Any) -> list[SamplingParams]:
    engine = Engine()
    proxy = EMInfEngineClient(engine, State())
    params.setdefault("output_kind", RequestOutputKind.FINAL_ONLY)

    async def ask() -> None:
        async for each in proxy.generate([1], SamplingParams(**params), "id"):
            assert len(each.outputs) == params.get("n", 1)

    asyncio.run(ask())
    return engine.asked


ON = {"em_inf": to_extra_args(Settings(), "key")}


@pytest.mark.parametrize("n", [1, 3])
def test_engine_gets_no_seed_that_the_client_did_not_send(n: int) -> None:
    asked = asked_of_the_engine(n=n, extra_args=ON)
    assert [(params.n, params.seed) for params in asked] == [(1, None)] * n
    assert len({params.extra_args["em_inf"]["key"] for params in asked}) == n


def test_choices_have_the_clients_seed_counted_up() -> None:
    asked = asked_of_the_engine(n=3, seed=40, extra_args=ON)
    assert [params.seed for params in asked] == [40, 41, 42]


@pytest.fixture
def on_by_default(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    settings = ServerSettings.build("on", {}, 64)
    monkeypatch.setenv(SERVER_SETTINGS_VARIABLE, settings.model_dump_json())
    server_settings.cache_clear()
    yield
    server_settings.cache_clear()


@pytest.mark.parametrize("declined", [True, False])
def test_engine_requests_of_a_request_that_declined_stay_without_em_inf(
    on_by_default: None, declined: bool
) -> None:
    # Those of beams, too, which carry nothing of the request's own parameters.
    token = DECLINED.set(declined)
    (params,) = asked_of_the_engine()
    DECLINED.reset(token)
    assert ("em_inf" in (params.extra_args or {})) is not declined
