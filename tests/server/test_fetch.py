"""The way back of the statistics: who fetches, merges and trims them."""

import asyncio
import inspect
import re
from typing import Any

import pytest
from prometheus_client import REGISTRY
from starlette.datastructures import State

from logits_processors import processor, recorder
from server import engine_client, fetch
from server.engine_client import _trim
from server.fetch import StatisticsFetcher, merge_ranks
from server.metrics import PROCESSOR_ERROR_KINDS
from server.plugin import _loaded_status
from server.report import Call


class Engines:
    """Stands where vLLM's engine client does; each engine answers for its ranks."""

    def __init__(self, *answers: list[dict[str, Any]]) -> None:
        self.engine_core = self
        self.core_engines = list(range(len(answers)))
        self.answers = list(answers)
        self.calls: list[tuple[Any, ...]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def _call_utility_async(self, *args: Any, engine: int) -> list[Any]:
        self.calls.append(args)
        await self.gate.wait()
        return self.answers[engine]


def rank(records: dict[str, Any], **errors: int) -> dict[str, Any]:
    return {"records": records, "errors": errors, "seconds": 0.5, "calls": 3}


def columns(n: int) -> list[list[float]]:
    return [[1.0] * n, [0.5] * n, [5.0] * n, [1.0] * n]


def errors_counted() -> float:
    labels = {"kind": "apply"}
    return REGISTRY.get_sample_value("em_inf_processor_errors_total", labels) or 0


def test_ranks_of_one_engine_count_once() -> None:
    same = rank({"key": {0: columns(3)}})
    assert merge_ranks([same, same]) == {"key": {0: columns(3)}}


def test_rank_with_more_tokens_wins() -> None:
    answers = [rank({"key": {0: columns(0)}}), rank({"key": {0: columns(2)}})]
    assert merge_ranks(answers)["key"][0] == columns(2)


def test_stages_that_do_not_sample_change_nothing() -> None:
    # Pipeline parallel: the first stages have no processor, the last one's ranks agree.
    last = rank({"key": {0: columns(3)}}, apply=1)
    before = errors_counted()
    ranks = [rank({}), rank({}), last, last]
    assert merge_ranks(ranks) == {"key": {0: columns(3)}}
    assert errors_counted() - before == 1


def test_ranks_that_share_a_batch_out_are_joined() -> None:
    # Batch-sharded sampling: each rank sampled requests of its own.
    ranks = [rank({"a": {0: columns(2)}}), rank({"b": {0: columns(1)}})]
    assert merge_ranks(ranks) == {"a": {0: columns(2)}, "b": {0: columns(1)}}


def test_status_is_that_of_a_worker_that_samples() -> None:
    def status(*ranks: dict[str, str]) -> Any:
        proxy = engine_client.EMInfEngineClient(Engines(list(ranks)), State())
        return asyncio.run(_loaded_status(proxy))

    assert status({}, {}, {"backend": "gpu"}) == {"backend": "gpu"}
    with pytest.raises(RuntimeError, match="processor is not"):
        status({}, {})


def test_errors_count_once_for_an_engine_and_add_up_over_engines() -> None:
    before = errors_counted()
    engine = [rank({}, apply=2), rank({}, apply=2)]
    for ranks in (engine, [rank({}, apply=1)]):
        merge_ranks(ranks)
    assert errors_counted() - before == 3


def test_figures_are_cut_to_the_tokens_that_the_client_got() -> None:
    call = Call("key", 2, {0: 2, 1: 2}, {0: columns(3)})
    _trim(call)
    assert call.columns is not None
    assert call.columns[0] == columns(2)
    assert all(x != x for column in call.columns[1] for x in column)
    assert [len(column) for column in call.columns[1]] == [2, 2, 2, 2]


def test_keys_that_come_up_during_a_call_go_together_with_the_next() -> None:
    async def scenario() -> tuple[list[Any], list[Any]]:
        engines = Engines([rank({k: {0: columns(1)} for k in "abcd"})])
        engines.gate.clear()
        fetcher = StatisticsFetcher(engines)
        first = asyncio.create_task(fetcher.fetch("a"))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(fetcher.fetch(key)) for key in "bc"]
        await asyncio.sleep(0.01)
        fetcher.forget("d")
        engines.gate.set()
        results = await asyncio.gather(first, *others)
        return results, [call[3] for call in engines.calls]

    results, asked = asyncio.run(scenario())
    assert results == [{0: columns(1)}] * 3
    assert asked == [(["a"],), (["b", "c", "d"],)]


def test_engine_that_fails_to_answer_leaves_the_answer_without_figures() -> None:
    class Broken(Engines):
        async def _call_utility_async(self, *args: Any, engine: int) -> list[Any]:
            raise RuntimeError("no answer")

    async def scenario() -> Any:
        fetcher = StatisticsFetcher(Broken([]))
        return await fetcher.fetch("a")

    before = REGISTRY.get_sample_value("em_inf_fetch_errors_total") or 0
    assert asyncio.run(scenario()) is None
    assert REGISTRY.get_sample_value("em_inf_fetch_errors_total") == before + 1


def test_unknown_key_has_no_figures() -> None:
    async def scenario() -> Any:
        return await StatisticsFetcher(Engines([rank({})])).fetch("a")

    assert asyncio.run(scenario()) == {}


class OneBusy(Engines):
    """Its second engine answers only once the gate is opened."""

    async def _call_utility_async(self, *args: Any, engine: int) -> list[Any]:
        if engine == 1:
            await self.gate.wait()
        return self.answers[engine]


def test_answer_waits_for_its_own_engine_only() -> None:
    async def scenario() -> list[Any]:
        ours = {"a": {0: columns(1)}, "b": {0: columns(2)}}
        engines = OneBusy([rank(ours)], [rank({"c": {0: columns(3)}})])
        engines.gate.clear()
        fetcher = StatisticsFetcher(engines)
        neighbour = asyncio.create_task(fetcher.fetch("c"))
        async with asyncio.timeout(60):
            found = [await fetcher.fetch("a"), await fetcher.fetch("b")]
        assert not neighbour.done()
        engines.gate.set()
        return [*found, await neighbour]

    expected = [{0: columns(1)}, {0: columns(2)}, {0: columns(3)}]
    assert asyncio.run(scenario()) == expected


def test_key_that_no_engine_has_waits_for_all_and_is_lost_where_one_failed() -> None:
    class OneBroken(Engines):
        async def _call_utility_async(self, *args: Any, engine: int) -> list[Any]:
            if engine == 1:
                raise RuntimeError("no answer")
            return self.answers[engine]

    async def scenario() -> list[Any]:
        fetcher = StatisticsFetcher(OneBroken([rank({"a": {0: columns(1)}})], []))
        return [await fetcher.fetch("a"), await fetcher.fetch("unknown")]

    assert asyncio.run(scenario()) == [{0: columns(1)}, None]


@pytest.mark.parametrize("asked", [False, True])
def test_workers_are_left_alone_until_somebody_asks_for_em_inf(
    asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "TICK_SECONDS", 0.0)

    async def scenario() -> bool:
        engines = Engines([rank({})])
        fetcher = StatisticsFetcher(engines)
        if asked:
            fetcher.expect_errors()
        fetcher.start_ticking()
        for _ in range(20):
            await asyncio.sleep(0)
        return bool(engines.calls)

    assert asyncio.run(scenario()) == asked


@pytest.mark.parametrize("engines", [1, 3])
def test_every_engine_is_asked_and_every_worker_answers(engines: int) -> None:
    async def scenario() -> list[Any]:
        client = Engines(*([{"rank": i}] for i in range(engines)))
        return await StatisticsFetcher(client).call_workers("em_inf_status")

    assert asyncio.run(scenario()) == [{"rank": i} for i in range(engines)]


def test_times_count_once_for_an_engine_and_add_up_over_engines() -> None:
    def counted() -> list[float]:
        names = ("em_inf_processor_seconds_total", "em_inf_processor_calls_total")
        return [REGISTRY.get_sample_value(name) or 0.0 for name in names]

    before = counted()
    slow = {**rank({}), "seconds": 0.75}
    for ranks in ([rank({}), slow], [rank({})]):
        merge_ranks(ranks)
    assert counted() == [before[0] + 1.25, before[1] + 6]


def test_every_kind_of_error_has_its_series_from_the_start() -> None:
    sources = (inspect.getsource(module) for module in (processor, recorder))
    found = re.findall(r'@_guarded\(\s*"(\w+)"|errors\["(\w+)"\]', "".join(sources))
    assert {one or other for one, other in found} == set(PROCESSOR_ERROR_KINDS)
    for kind in PROCESSOR_ERROR_KINDS:
        name = "em_inf_processor_errors_total"
        assert REGISTRY.get_sample_value(name, {"kind": kind}) is not None
