"""What goes down with an engine request, what comes back, and whose decision it is."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextvars import copy_context
from typing import Any

import numpy as np
import pytest
from starlette.datastructures import State
from vllm import SamplingParams
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

from em_inf.logits_processors.figures import COLUMNS, Figures
from em_inf.logits_processors.settings import Settings
from em_inf.server.current import CURRENT
from em_inf.server.engine_client import EMInfEngineClient
from em_inf.server.operator_settings import (
    SERVER_SETTINGS_VARIABLE,
    ServerSettings,
    server_settings,
)
from em_inf.server.report import Report

RECORDED = 3


class Engine:
    """Stands where vLLM's engine client does, and keeps what it is asked.

    Args:
        num_tokens: of each answer; its worker has recorded `RECORDED` of them.
        statuses: what the workers say of themselves.
    """

    def __init__(
        self, num_tokens: int = RECORDED, statuses: tuple[Any, ...] = ({"device": "cpu"},)
    ) -> None:
        self.asked: list[SamplingParams] = []
        self.calls: list[str] = []
        self.popped: list[str] = []
        self.engine_core = self
        self.core_engines = [0]
        self._num_tokens = num_tokens
        self._statuses = list(statuses)

    def generate(self, _: Any, params: SamplingParams, *__: Any, **___: Any) -> Any:
        self.asked.append(params)
        return self._outputs(params.n)

    async def _outputs(self, n: int) -> AsyncGenerator[RequestOutput, None]:
        tokens = [7] * self._num_tokens
        choices = [CompletionOutput(i, "", tokens, None, None) for i in range(n)]
        yield RequestOutput("id", None, [1], None, choices, finished=False)
        yield RequestOutput("id", None, [1], None, choices, finished=True)

    async def _call_utility_async(self, *args: Any, engine: int) -> list[Any]:
        self.calls.append(args[1])
        if args[1] == "em_inf_status":
            await asyncio.sleep(0.01)
            return self._statuses
        (keys,) = args[3]
        self.popped += keys
        table = np.arange(len(COLUMNS) * RECORDED, dtype=np.float32)
        figures = dict.fromkeys(keys, table.tobytes())
        return [{"figures": figures, "errors": {}, "seconds": 0.0, "calls": 0}]


def asked_of_the_engine(engine: Engine, report: Any, **params: Any) -> None:
    """Have the proxy ask as vLLM does for a request whose decision is `report`."""
    proxy = EMInfEngineClient(engine, State())
    params.setdefault("output_kind", RequestOutputKind.FINAL_ONLY)

    async def ask() -> None:
        if report != "route without the field":
            CURRENT.set(report)
        async for each in proxy.generate([1], SamplingParams(**params), "id"):
            assert len(each.outputs) == params.get("n", 1)

    copy_context().run(asyncio.run, ask())


def on(**settings: Any) -> Report:
    return Report(Settings(**settings), "default")


@pytest.mark.parametrize("n", [1, 3])
def test_engine_gets_no_seed_that_the_client_did_not_send(n: int) -> None:
    engine = Engine()
    asked_of_the_engine(engine, on(), n=n)
    assert [(params.n, params.seed) for params in engine.asked] == [(1, None)] * n
    assert len({params.extra_args["em_inf"]["key"] for params in engine.asked}) == n


def test_choices_have_the_clients_seed_counted_up() -> None:
    engine = Engine()
    asked_of_the_engine(engine, on(), n=3, seed=40)
    assert [params.seed for params in engine.asked] == [40, 41, 42]


def test_request_s_own_extra_arguments_go_down_beside_ours_and_stay_as_they_were() -> (
    None
):
    engine, theirs = Engine(), {"other": 1}
    asked_of_the_engine(engine, on(n_grad_steps=7), extra_args=theirs)
    (params,) = engine.asked
    assert params.extra_args["other"] == 1
    assert params.extra_args["em_inf"]["n_grad_steps"] == 7
    assert theirs == {"other": 1}


@pytest.mark.parametrize(("num_tokens", "recorded"), [(2, 2), (3, 3), (5, 3)])
def test_figures_are_cut_to_the_tokens_that_the_client_got(
    num_tokens: int, recorded: int
) -> None:
    report = on()
    asked_of_the_engine(Engine(num_tokens), report, n=2)
    (generation,) = report.generations
    for figures in generation.figures:
        assert figures is not None
        assert (len(figures), figures.num_recorded) == (num_tokens, recorded)
        assert figures.entropy_before[:2].tolist() == [0, 1]


def test_nothing_is_fetched_for_a_request_without_a_report() -> None:
    engine, report = Engine(), on(report="none")
    asked_of_the_engine(engine, report, n=2)
    assert engine.calls == []
    assert [params.n for params in engine.asked] == [2]


def test_failing_engine_leaves_the_answer_without_figures() -> None:
    class Failing(Engine):
        async def _call_utility_async(self, *args: Any, engine: int) -> list[Any]:
            raise RuntimeError("no answer")

    report = on()
    asked_of_the_engine(Failing(), report)
    assert report.generations[0].figures == [None]


@pytest.fixture
def on_by_default(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    settings = ServerSettings.build("on", {}, 64)
    monkeypatch.setenv(SERVER_SETTINGS_VARIABLE, settings.model_dump_json())
    server_settings.cache_clear()
    yield
    server_settings.cache_clear()


@pytest.mark.parametrize(
    ("report", "with_em_inf"), [(None, False), ("route without the field", True)]
)
def test_engine_requests_of_a_request_that_declined_stay_without_em_inf(
    on_by_default: None, report: Any, with_em_inf: bool
) -> None:
    # Those of beams, too, which carry nothing of the request's own parameters.
    engine = Engine()
    asked_of_the_engine(engine, report)
    assert ("em_inf" in (engine.asked[0].extra_args or {})) is with_em_inf


def test_route_without_the_field_is_left_alone_where_the_default_is_off() -> None:
    engine = Engine()
    asked_of_the_engine(engine, "route without the field")
    assert engine.asked[0].extra_args is None


def test_status_is_that_of_a_worker_that_samples() -> None:
    def status(*statuses: Any) -> Any:
        async def started() -> Any:
            proxy = EMInfEngineClient(Engine(statuses=statuses), State())
            await proxy.start()
            return proxy.processor_status

        return asyncio.run(started())

    assert status({}, {}, {"backend": "gpu"}) == {"backend": "gpu"}
    with pytest.raises(RuntimeError, match="processor is not"):
        status({}, {})


def test_however_many_ask_for_life_the_workers_are_called_once() -> None:
    engine = Engine()

    async def scenario() -> None:
        proxy = EMInfEngineClient(engine, State())
        await asyncio.gather(*(proxy.check_alive() for _ in range(50)))
        for _ in range(50):
            await proxy.check_alive()

    asyncio.run(scenario())
    assert engine.calls == ["em_inf_status"]


def test_life_is_asked_for_again_after_a_failure() -> None:
    class Once(Engine):
        async def _call_utility_async(self, *args: Any, engine: int) -> list[Any]:
            await super()._call_utility_async(*args, engine=engine)
            if len(self.calls) == 1:
                raise RuntimeError("no answer")
            return []

    engine = Once()

    async def scenario() -> None:
        proxy = EMInfEngineClient(engine, State())
        with pytest.raises(RuntimeError, match="no answer"):
            await proxy.check_alive()
        await proxy.check_alive()

    asyncio.run(scenario())
    assert len(engine.calls) == 2


@pytest.mark.parametrize("n", [1, 2])
def test_client_that_went_away_leaves_no_figures_behind(n: int) -> None:
    engine, report = Engine(), on()

    async def scenario() -> None:
        CURRENT.set(report)
        params = SamplingParams(n=n, output_kind=RequestOutputKind.CUMULATIVE)
        outputs = EMInfEngineClient(engine, State()).generate([1], params, "id")
        assert not (await anext(outputs)).finished
        await outputs.aclose()
        while len(engine.popped) < n:
            await asyncio.sleep(0.01)

    copy_context().run(asyncio.run, asyncio.wait_for(scenario(), 60))
    assert engine.popped == report.generations[0].keys


def test_figures_of_several_answers_are_joined_in_order() -> None:
    one, two = (Figures(np.full((len(COLUMNS), n), n, np.float32)) for n in (1, 2))
    assert Figures.joined([one, two]).entropy_before.tolist() == [1, 2, 2]
    assert len(Figures.joined([])) == 0
