"""Fetches figures of finished answers: one loop an engine, many keys to a call.

An answer waits for the engine that holds its figures, for no other, and not for long:
with data parallel an engine in a long prefill delays its own answers only.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from em_inf.logits_processors.figures import Figures
from em_inf.server import metrics

logger = logging.getLogger("vllm.em_inf")

ENGINE_TIMEOUT_SECONDS = 30.0
"""After so long without an answer an engine is asked anew; nobody waits any more then."""
TICK_SECONDS = 15.0
TICK_AFTER_REQUEST_SECONDS = 900.0
"""How long after the last request with EM-INF on its errors may still come up."""


class _Asked:
    """A key that somebody waits for, and how many engines have not answered yet."""

    def __init__(self, engines: int) -> None:
        loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Figures | None] = loop.create_future()
        self._engines = engines
        self._failed = False

    def answer(self, figures: Figures | None, failed: bool) -> None:
        """Take an engine's answer: the figures, or None where it has none or failed."""
        self._engines -= 1
        self._failed |= failed
        if self.future.done():
            return
        if figures is not None:
            self.future.set_result(figures)
        elif self._engines == 0:
            self.future.set_result(None if self._failed else Figures.none())


class _EngineLoop:
    """Calls one engine's workers, one call at a time; keys that come up wait together.

    Args:
        call: calls a method of the worker extension on every worker of the engine.
    """

    def __init__(self, call: Callable[..., Awaitable[Sequence[Any]]]) -> None:
        self._call = call
        self._asked: dict[str, _Asked | None] = {}
        self._task: asyncio.Task[None] | None = None

    def ask(self, key: str, asked: _Asked | None) -> None:
        """Pop a key with the next call, and answer `asked`, if anybody waits."""
        self._asked[key] = asked
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, {}
            found: dict[str, Figures] | None = None
            try:
                found = merge_ranks(await self._call("em_inf_pop", list(asked)))
            except Exception:
                # The engine's own health is vLLM's to watch; the answer itself is good.
                metrics.FETCH_ERRORS.inc()
                logger.exception("EM-INF figures could not be fetched")
            for key, one in asked.items():
                if one is not None:
                    figures = None if found is None else found.get(key)
                    one.answer(figures, failed=found is None)


class FiguresFetcher:
    """Fetches figures of finished answers from the workers of every engine."""

    def __init__(self, engine_client: Any) -> None:
        self._engine_client = engine_client
        self._loops: dict[Any, _EngineLoop] = {}
        self._ticker: asyncio.Task[None] | None = None
        self._last_request = -math.inf

    async def fetch(self, key: str, seconds: float) -> Figures | None:
        """The figures under a key; None where they did not come, or not in time.

        Waits for the first engine that has the key; for all only where none has it.

        Args:
            key: of one answer.
            seconds: at most so long.
        """
        loops = self._engine_loops()
        asked = _Asked(len(loops))
        for loop in loops:
            loop.ask(key, asked)
        try:
            async with asyncio.timeout(seconds):
                return await asked.future
        except TimeoutError:
            metrics.FETCH_ERRORS.inc()
            logger.warning("EM-INF figures did not come within %g s", seconds)
            return None

    def forget(self, key: str) -> None:
        """Have the worker drop a key whose client went away."""
        for loop in self._engine_loops():
            loop.ask(key, None)

    def expect_errors(self) -> None:
        """Note that a request has EM-INF on, whose errors the next ticks will fetch."""
        self._last_request = time.monotonic()

    def start_ticking(self) -> None:
        """Call the workers every now and then, for the errors that they counted.

        Only while there may be some: vLLM's workers spin for a second after each call.
        """
        self._ticker = asyncio.get_running_loop().create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if time.monotonic() - self._last_request < TICK_AFTER_REQUEST_SECONDS:
                self.forget("")

    async def call_workers(self, method: str, *args: Any) -> list[Any]:
        """Call a method of the worker extension everywhere.

        vLLM's own `collective_rpc` answers for the first data-parallel engine only.

        Returns:
            One result for each worker of each engine.
        """
        core = self._engine_client.engine_core
        calls = (self._call_engine(engine, method, *args) for engine in core.core_engines)
        by_engine = await asyncio.gather(*calls)
        return [result for results in by_engine for result in results]

    def _engine_loops(self) -> list[_EngineLoop]:
        """One loop for each engine that there is now; elastic scaling changes them."""
        engines = self._engine_client.engine_core.core_engines
        for engine in engines:
            if engine not in self._loops:

                def call(method: str, *args: Any, engine: Any = engine) -> Any:
                    return self._call_engine(engine, method, *args)

                self._loops[engine] = _EngineLoop(call)
        return [self._loops[engine] for engine in engines]

    async def _call_engine(self, engine: Any, method: str, *args: Any) -> list[Any]:
        core = self._engine_client.engine_core
        call = core._call_utility_async(
            "collective_rpc", method, None, args, None, engine=engine
        )
        return await asyncio.wait_for(call, ENGINE_TIMEOUT_SECONDS)


def merge_ranks(ranks: Iterable[dict[str, Any]]) -> dict[str, Figures]:
    """One view of what the workers of one engine answered.

    They sample the same rows, so the fullest figures of an answer stand for all; under
    batch-sharded sampling each has its own requests. Errors and times are counted as the
    worst rank saw them.
    """
    ranks = list(ranks)
    merged: dict[str, bytes] = {}
    errors: dict[str, int] = {}
    for answer in ranks:
        for kind, count in answer["errors"].items():
            errors[kind] = max(count, errors.get(kind, 0))
        for key, data in answer["figures"].items():
            if len(data) >= len(merged.get(key, b"")):
                merged[key] = data
    for kind, count in errors.items():
        metrics.PROCESSOR_ERRORS.labels(kind).inc(count)
    metrics.PROCESSOR_SECONDS.inc(max((a["seconds"] for a in ranks), default=0.0))
    metrics.PROCESSOR_CALLS.inc(max((a["calls"] for a in ranks), default=0))
    return {key: Figures.from_bytes(data) for key, data in merged.items()}
