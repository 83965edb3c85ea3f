"""The way back of the figures: who fetches and merges them, and who waits how long."""

import asyncio
import inspect
import re
import time
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from em_inf.logits_processors import processor, recorder, step
from em_inf.logits_processors.figures import COLUMNS, Figures
from em_inf.server import fetch
from em_inf.server.fetch import FiguresFetcher, merge_ranks
from em_inf.server.metrics import PROCESSOR_ERROR_KINDS


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


def rank(figures: dict[str, Figures], **errors: int) -> dict[str, Any]:
    """What a worker answers."""
    data = {key: each.to_bytes() for key, each in figures.items()}
    return {"figures": data, "errors": errors, "seconds": 0.5, "calls": 3}


def of(n: int) -> Figures:
    """Figures of n tokens."""
    return Figures(np.full((len(COLUMNS), n), n, np.float32))


def lengths(found: Any) -> Any:
    """How many tokens each of some figures has; None for figures that are missing."""
    if isinstance(found, dict):
        return {key: len(figures) for key, figures in found.items()}
    return [None if figures is None else len(figures) for figures in found]


async def fetched(fetcher: FiguresFetcher, key: str) -> Figures | None:
    return await fetcher.fetch(key, seconds=60)


def errors_counted() -> float:
    labels = {"kind": "apply"}
    return REGISTRY.get_sample_value("em_inf_processor_errors_total", labels) or 0


def test_ranks_of_one_engine_count_once() -> None:
    same = rank({"key": of(3)})
    assert lengths(merge_ranks([same, same])) == {"key": 3}


def test_rank_with_more_tokens_wins() -> None:
    answers = [rank({"key": of(0)}), rank({"key": of(2)})]
    assert lengths(merge_ranks(answers)) == {"key": 2}


def test_stages_that_do_not_sample_change_nothing() -> None:
    # Pipeline parallel: the first stages have no processor, the last one's ranks agree.
    last = rank({"key": of(3)}, apply=1)
    before = errors_counted()
    ranks = [rank({}), rank({}), last, last]
    assert lengths(merge_ranks(ranks)) == {"key": 3}
    assert errors_counted() - before == 1


def test_ranks_that_share_a_batch_out_are_joined() -> None:
    # Batch-sharded sampling: each rank sampled requests of its own.
    ranks = [rank({"a": of(2)}), rank({"b": of(1)})]
    assert lengths(merge_ranks(ranks)) == {"a": 2, "b": 1}


def test_errors_count_once_for_an_engine_and_add_up_over_engines() -> None:
    before = errors_counted()
    engine = [rank({}, apply=2), rank({}, apply=2)]
    for ranks in (engine, [rank({}, apply=1)]):
        merge_ranks(ranks)
    assert errors_counted() - before == 3


def test_keys_that_come_up_during_a_call_go_together_with_the_next() -> None:
    async def scenario() -> tuple[list[Any], list[Any]]:
        engines = Engines([rank({k: of(1) for k in "abcd"})])
        engines.gate.clear()
        fetcher = FiguresFetcher(engines)
        first = asyncio.create_task(fetched(fetcher, "a"))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(fetched(fetcher, key)) for key in "bc"]
        await asyncio.sleep(0.01)
        fetcher.forget("d")
        engines.gate.set()
        results = await asyncio.gather(first, *others)
        return lengths(results), [call[3] for call in engines.calls]

    results, asked = asyncio.run(scenario())
    assert results == [1, 1, 1]
    assert asked == [(["a"],), (["b", "c", "d"],)]


def test_engine_that_fails_to_answer_leaves_the_answer_without_figures() -> None:
    class Broken(Engines):
        async def _call_utility_async(self, *args: Any, engine: int) -> list[Any]:
            raise RuntimeError("no answer")

    async def scenario() -> Any:
        fetcher = FiguresFetcher(Broken([]))
        return await fetched(fetcher, "a")

    before = REGISTRY.get_sample_value("em_inf_fetch_errors_total") or 0
    assert asyncio.run(scenario()) is None
    assert REGISTRY.get_sample_value("em_inf_fetch_errors_total") == before + 1


def test_unknown_key_has_no_figures() -> None:
    async def scenario() -> Figures | None:
        return await FiguresFetcher(Engines([rank({})])).fetch("a", 60)

    found = asyncio.run(scenario())
    assert found is not None
    assert len(found) == 0


class OneBusy(Engines):
    """Its second engine answers only once the gate is opened."""

    async def _call_utility_async(self, *args: Any, engine: int) -> list[Any]:
        if engine == 1:
            await self.gate.wait()
        return self.answers[engine]


def test_answer_waits_for_its_own_engine_only() -> None:
    async def scenario() -> list[Any]:
        ours = {"a": of(1), "b": of(2)}
        engines = OneBusy([rank(ours)], [rank({"c": of(3)})])
        engines.gate.clear()
        fetcher = FiguresFetcher(engines)
        neighbour = asyncio.create_task(fetched(fetcher, "c"))
        async with asyncio.timeout(60):
            found = [await fetched(fetcher, "a"), await fetched(fetcher, "b")]
        assert not neighbour.done()
        engines.gate.set()
        return lengths([*found, await neighbour])

    assert asyncio.run(scenario()) == [1, 2, 3]


def test_answer_waits_no_longer_than_it_is_told_and_neighbours_do_not_notice() -> None:
    async def scenario() -> tuple[list[Any], float]:
        engines = OneBusy([rank({"a": of(1)})], [rank({"b": of(2), "c": of(3)})])
        engines.gate.clear()
        fetcher = FiguresFetcher(engines)
        began = time.monotonic()
        late = await fetcher.fetch("b", seconds=0.2)
        waited = time.monotonic() - began
        near = await fetcher.fetch("a", seconds=60)
        engines.gate.set()
        # The busy engine's next answers are as good as ever.
        return lengths([late, near, await fetcher.fetch("c", seconds=60)]), waited

    before = REGISTRY.get_sample_value("em_inf_fetch_errors_total") or 0
    found, waited = asyncio.run(scenario())
    assert found == [None, 1, 3]
    assert waited < 30
    assert REGISTRY.get_sample_value("em_inf_fetch_errors_total") == before + 1


def test_key_that_no_engine_has_waits_for_all_and_is_lost_where_one_failed() -> None:
    class OneBroken(Engines):
        async def _call_utility_async(self, *args: Any, engine: int) -> list[Any]:
            if engine == 1:
                raise RuntimeError("no answer")
            return self.answers[engine]

    async def scenario() -> list[Any]:
        fetcher = FiguresFetcher(OneBroken([rank({"a": of(1)})], []))
        return lengths([await fetched(fetcher, "a"), await fetched(fetcher, "unknown")])

    assert asyncio.run(scenario()) == [1, None]


@pytest.mark.parametrize("asked", [False, True])
def test_workers_are_left_alone_until_somebody_asks_for_em_inf(
    asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "TICK_SECONDS", 0.0)

    async def scenario() -> bool:
        engines = Engines([rank({})])
        fetcher = FiguresFetcher(engines)
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
        return await FiguresFetcher(client).call_workers("em_inf_status")

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
    sources = (inspect.getsource(module) for module in (processor, recorder, step))
    found = re.findall(r'@guarded\(\s*"(\w+)"|errors\["(\w+)"\]', "".join(sources))
    assert {one or other for one, other in found} == set(PROCESSOR_ERROR_KINDS)
    for kind in PROCESSOR_ERROR_KINDS:
        name = "em_inf_processor_errors_total"
        assert REGISTRY.get_sample_value(name, {"kind": kind}) is not None
