"""A thin proxy round vLLM's engine client: settings go down, statistics come back.

Everything but `generate` is vLLM's own. Each engine request with EM-INF on gets a key of
its own; when its last output arrives, the statistics under that key are fetched from the
worker before the output is passed on, so that they exist when vLLM formats the response.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
import time
from collections.abc import AsyncGenerator
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
from server.fetch import StatisticsFetcher
from server.report import EMPTY_COLUMNS, REPORTS, Call, Columns, Report, num_minimized
from server.tracing import RequestSpans


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
        metrics.observe_all(metrics.ENTROPY_BEFORE, before)
        metrics.observe_all(metrics.ENTROPY_AFTER, after)
        metrics.TOKENS.inc(len(before))
        metrics.TOKENS_MINIMIZED.inc(num_minimized(steps, temperatures))
        metrics.GRAD_STEPS.inc(sum(n for n in steps if n == n))
