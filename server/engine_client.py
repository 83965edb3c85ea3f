"""A thin proxy round vLLM's engine client: settings go down, statistics come back.

Everything but `generate` is vLLM's own. Each engine request with EM-INF on gets a key of
its own; when its last output arrives, the statistics under that key are fetched from the
worker before the output is passed on, so that they exist when vLLM formats the response.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import math
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

from starlette.datastructures import State
from vllm import SamplingParams
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from logits_processors.settings import (
    EXTRA_ARGS_KEY,
    from_extra_args,
    server_settings,
    to_extra_args,
)
from server import metrics
from server.choices import merge_choices, params_of_choice
from server.current import DECLINED
from server.drain import Drain
from server.report import EMPTY_COLUMNS, REPORTS, Call, Columns, Report, num_minimized
from server.tracing import RequestSpans

logger = logging.getLogger("vllm.em_inf")

FETCH_TIMEOUT_SECONDS = 30.0
TICK_SECONDS = 15.0
TICK_AFTER_REQUEST_SECONDS = 900.0
"""How long after the last request with EM-INF on its errors may still come up."""


class EMInfEngineClient:
    """vLLM's engine client, with EM-INF's settings and statistics on `generate`.

    Args:
        inner: vLLM's engine client; every other attribute is passed through to it.
        state: the application's.
        spans: adds the figures to vLLM's traces; None where there are none.
    """

    def __init__(
        self, inner: Any, state: State, spans: RequestSpans | None = None
    ) -> None:
        self._inner = inner
        self._drain = Drain(inner, state)
        self._spans = spans
        self._fetcher = StatisticsFetcher(inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def generate(
        self,
        prompt: Any,
        sampling_params: SamplingParams,
        request_id: str,
        **kwargs: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """As vLLM's `generate`. Called in the order of a request's prompts."""
        params, report = self._prepare(sampling_params)
        if report is None:
            return self._inner.generate(prompt, params, request_id, **kwargs)
        settings = report.settings
        metrics.REQUESTS.labels(settings.method, report.preset).inc()
        self._fetcher.expect_errors()
        call = report.new_call(params.n)
        if settings.report == "none":
            params.extra_args[EXTRA_ARGS_KEY] = to_extra_args(settings, call.key)
            return self._inner.generate(prompt, params, request_id, **kwargs)
        streams = []
        for index, key in enumerate(call.keys):
            child = params_of_choice(params, index) if params.n > 1 else params
            child.extra_args[EXTRA_ARGS_KEY] = to_extra_args(settings, key)
            streams.append(self._inner.generate(prompt, child, request_id, **kwargs))
        final_only = params.output_kind == RequestOutputKind.FINAL_ONLY
        outputs = merge_choices(streams, final_only) if params.n > 1 else streams[0]
        return self._with_statistics(outputs, params, report, call, request_id)

    def _prepare(
        self, sampling_params: SamplingParams
    ) -> tuple[SamplingParams, Report | None]:
        """Sampling parameters of our own to write to, and the report if EM-INF is on."""
        value = (sampling_params.extra_args or {}).get(EXTRA_ARGS_KEY)
        server = server_settings()
        if value is None and (DECLINED.get() or not server.enabled_by_default):
            return sampling_params, None
        params = copy.copy(sampling_params)
        params.extra_args = dict(sampling_params.extra_args or {})
        if value is None:
            # A route without the field: the server's default applies.
            return params, Report(server.default, server.default_preset or "default")
        settings, key, _ = from_extra_args(value)
        return params, REPORTS.get(key) or Report(settings, "custom")

    async def _with_statistics(
        self,
        outputs: AsyncGenerator[RequestOutput, None],
        params: SamplingParams,
        report: Report,
        call: Call,
        request_id: str,
    ) -> AsyncGenerator[RequestOutput, None]:
        delta = params.output_kind == RequestOutputKind.DELTA
        fetched = False
        if self._spans is not None:
            self._spans.watch(request_id)
        try:
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    for choice in output.outputs:
                        so_far = call.num_tokens.get(choice.index, 0) if delta else 0
                        call.num_tokens[choice.index] = so_far + len(choice.token_ids)
                    if output.finished:
                        began, began_ns = time.perf_counter(), time.time_ns()
                        call.columns = await self._columns(call)
                        fetched = True
                        metrics.FETCH_SECONDS.observe(time.perf_counter() - began)
                        _trim(call)
                        _observe(call)
                        if self._spans is not None:
                            self._spans.add(request_id, report, call, began_ns)
                    yield output
        finally:
            if not fetched:
                for key in call.keys:
                    self._fetcher.forget(key)
                if self._spans is not None:
                    self._spans.forget(request_id)

    async def _columns(self, call: Call) -> dict[int, Columns] | None:
        """Figures of each choice of a call; None where one could not be fetched."""
        found = await asyncio.gather(*(self._fetcher.fetch(key) for key in call.keys))
        columns = {}
        for index, record in enumerate(found):
            if record is None:
                return None
            if record:
                columns[index] = record[0]
        return columns

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """As vLLM's, and refuses everything while the server is stopping."""
        self._drain.refuse_if_begun()
        self._inner.check_admission(n, request_id)

    def shutdown(self, timeout: float | None = None) -> None:
        """As vLLM's, after what is under way has ended. Blocks.

        Args:
            timeout: seconds; 0 or None ends requests at once.
        """
        self._inner.shutdown(timeout=self._drain.wait(timeout) if timeout else timeout)

    @property
    def is_stopping(self) -> bool:
        """Whether the server was told to stop."""
        return self._drain.began

    def keep_errors_current(self) -> None:
        """Bring the workers' errors to the metrics also while nobody asks for reports."""
        self._fetcher.start_ticking()

    async def status(self) -> list[dict[str, Any]]:
        """What each worker's processor says of itself; empty objects where none is."""
        return await self._fetcher.call_workers("em_inf_status")


class StatisticsFetcher:
    """Fetches finished records from the workers, many keys to a call.

    One call is under way at a time; keys that come up meanwhile go with the next.
    """

    def __init__(self, engine_client: Any) -> None:
        self._engine_client = engine_client
        self._waiting: dict[str, asyncio.Future[dict[int, Columns] | None]] = {}
        self._unwanted: list[str] = []
        self._task: asyncio.Task[None] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._last_request = -math.inf

    async def fetch(self, key: str) -> dict[int, Columns] | None:
        """The figures under a key by choice; None where they could not be fetched."""
        future = asyncio.get_running_loop().create_future()
        self._waiting[key] = future
        self._start()
        return await future

    def forget(self, key: str) -> None:
        """Have the worker drop a key whose client went away."""
        self._unwanted.append(key)
        self._start()

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
                self._unwanted.append("")
                self._start()

    async def call_workers(self, method: str, *args: Any) -> list[Any]:
        """Call a method of the worker extension everywhere.

        vLLM's own `collective_rpc` answers for the first data-parallel engine only.

        Returns:
            One result for each worker of each engine.
        """
        by_engine = await self._call_engines(method, *args)
        return [result for results in by_engine for result in results]

    async def _call_engines(self, method: str, *args: Any) -> list[list[Any]]:
        core = self._engine_client.engine_core
        call = core.call_utility_all_async("collective_rpc", method, None, args, None)
        return await asyncio.wait_for(call, FETCH_TIMEOUT_SECONDS)

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._fetch_all())

    async def _fetch_all(self) -> None:
        while self._waiting or self._unwanted:
            waiting, self._waiting = self._waiting, {}
            unwanted, self._unwanted = self._unwanted, []
            records: dict[str, dict[int, Columns]] | None = None
            try:
                answers = await self._call_engines("em_inf_pop", [*waiting, *unwanted])
                records = _merge(answers)
            except Exception:
                # The engine's own health is vLLM's to watch; the answer itself is good.
                metrics.FETCH_ERRORS.inc()
                logger.exception("EM-INF statistics could not be fetched")
            for key, future in waiting.items():
                if not future.done():
                    future.set_result(None if records is None else records.get(key, {}))


def _merge(
    answers: Iterable[Sequence[dict[str, Any]]],
) -> dict[str, dict[int, Columns]]:
    """One view of what all workers answered.

    Ranks of one engine sample the same rows, so the fullest record of a choice stands for
    all; under batch-sharded sampling each rank has its own requests. Errors and times are
    counted for each engine as its worst rank saw them.
    """
    merged: dict[str, dict[int, Columns]] = {}
    for ranks in answers:
        errors: dict[str, int] = {}
        for answer in ranks:
            for kind, count in answer["errors"].items():
                errors[kind] = max(count, errors.get(kind, 0))
            for key, choices in answer["records"].items():
                known = merged.setdefault(key, {})
                for choice, columns in choices.items():
                    index = int(choice)
                    if len(columns[0]) > len(known.get(index, [[]])[0]):
                        known[index] = columns
        for kind, count in errors.items():
            metrics.PROCESSOR_ERRORS.labels(kind).inc(count)
        metrics.PROCESSOR_SECONDS.inc(max((a["seconds"] for a in ranks), default=0.0))
        metrics.PROCESSOR_CALLS.inc(max((a["calls"] for a in ranks), default=0))
    return merged


def _trim(call: Call) -> None:
    """Cut the figures to the tokens that the client got.

    The worker may have sampled one more (asynchronous scheduling) or several (rejected
    drafts); a position that it never recorded holds NaN.
    """
    if call.columns is None:
        return
    for index, count in call.num_tokens.items():
        columns = call.columns.get(index, EMPTY_COLUMNS)
        call.columns[index] = [
            column[:count] + [math.nan] * (count - len(column)) for column in columns
        ]


def _observe(call: Call) -> None:
    """Feed the metrics with a finished call's figures."""
    for before, after, steps, temperatures in (call.columns or {}).values():
        for nats in before:
            if nats == nats:
                metrics.ENTROPY_BEFORE.observe(nats)
        for nats in after:
            if nats == nats:
                metrics.ENTROPY_AFTER.observe(nats)
        metrics.TOKENS.inc(len(before))
        metrics.TOKENS_MINIMIZED.inc(num_minimized(steps, temperatures))
        metrics.GRAD_STEPS.inc(sum(n for n in steps if n == n))
