"""A thin proxy round vLLM's engine client: settings go down, figures come back.

Everything but `generate` is vLLM's own. Each choice of a request with EM-INF on is an
engine request with a key of its own; when its last output arrives, the figures under that
key are fetched from the worker before the output is passed on, so that they exist when
vLLM formats the response.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import time
from collections.abc import AsyncGenerator
from typing import Any

from opentelemetry.trace import Span, Tracer
from starlette.datastructures import State
from vllm import SamplingParams
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from em_inf.logits_processors.extra_args import EXTRA_ARGS_KEY, to_extra_args
from em_inf.server import metrics
from em_inf.server.choices import merge_choices, params_of_choice
from em_inf.server.current import current_report
from em_inf.server.drain import Drain
from em_inf.server.fetch import FiguresFetcher
from em_inf.server.operator_settings import server_settings
from em_inf.server.report import Generation, Report
from em_inf.server.tracing import begin_span, end_span

ALIVE_SECONDS = 1.0
"""How long an answer of the workers stands for the engine's health."""
FETCH_SECONDS = 0.5
FETCH_SECONDS_ON_CPU = 15.0
"""How long an answer waits for its figures, where the operator does not say. A worker
answers between two steps, and a step that reads prompts takes seconds on a CPU."""


class EMInfEngineClient:
    """vLLM's engine client, with EM-INF's settings and figures on `generate`.

    Args:
        inner: vLLM's engine client; every other attribute is passed through to it.
        state: the application's.
        tracer: makes the spans that show the figures; None where traces are off.

    Attributes:
        processor_status: runner, backend and device, as a worker said at the start.
    """

    def __init__(self, inner: Any, state: State, tracer: Tracer | None = None) -> None:
        self._inner = inner
        self._drain = Drain(inner, state)
        self._tracer = tracer
        self._fetcher = FiguresFetcher(inner)
        self._alive: asyncio.Task[None] | None = None
        self._alive_at = -ALIVE_SECONDS
        self.processor_status: dict[str, Any] = {}

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
        report = current_report()
        if report is None:
            return self._inner.generate(prompt, sampling_params, request_id, **kwargs)
        settings = report.settings
        metrics.REQUESTS.labels(settings.method, report.preset).inc()
        self._fetcher.expect_errors()
        params = copy.copy(sampling_params)
        generation = report.new_generation(params.n)
        if settings.report == "none":
            params.extra_args = _with_settings(params, report, generation.keys[0])
            return self._inner.generate(prompt, params, request_id, **kwargs)
        span = None
        if self._tracer is not None:
            headers = kwargs.get("trace_headers")
            span, headers = begin_span(self._tracer, request_id, headers)
            kwargs["trace_headers"] = headers
        streams = []
        for index, key in enumerate(generation.keys):
            child = params_of_choice(params, index) if params.n > 1 else params
            child.extra_args = _with_settings(params, report, key)
            streams.append(self._inner.generate(prompt, child, request_id, **kwargs))
        final_only = params.output_kind == RequestOutputKind.FINAL_ONLY
        outputs = merge_choices(streams, final_only) if params.n > 1 else streams[0]
        delta = params.output_kind == RequestOutputKind.DELTA
        return self._with_figures(outputs, delta, report, generation, span)

    async def _with_figures(
        self,
        outputs: AsyncGenerator[RequestOutput, None],
        delta: bool,
        report: Report,
        generation: Generation,
        span: Span | None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Outputs as they come; the last one when the figures are there, or late.

        Args:
            outputs: of all choices.
            delta: whether an output holds its new tokens only, not all so far.
            report: whose settings they run with.
            generation: where the figures go.
            span: to be ended with the figures on it.
        """
        num_tokens = generation.num_tokens
        finished = False
        try:
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    for choice in output.outputs:
                        so_far = num_tokens[choice.index] if delta else 0
                        num_tokens[choice.index] = so_far + len(choice.token_ids)
                    if output.finished:
                        began = time.perf_counter()
                        await self._fetch(generation)
                        finished = True
                        metrics.FETCH_SECONDS.observe(time.perf_counter() - began)
                        for figures in generation.figures:
                            if figures is not None:
                                metrics.observe(figures)
                    yield output
        finally:
            if not finished:
                for key in generation.keys:
                    self._fetcher.forget(key)
            if span is not None:
                end_span(span, report, generation if finished else None)

    async def _fetch(self, generation: Generation) -> None:
        """Get the figures of each choice, and cut them to the tokens the client got.

        The worker may have sampled one more (asynchronous scheduling) or several
        (rejected drafts); a position that it never recorded holds NaN.
        """
        seconds = server_settings().fetch_seconds or self._default_fetch_seconds
        found = await asyncio.gather(
            *(self._fetcher.fetch(key, seconds) for key in generation.keys)
        )
        for index, figures in enumerate(found):
            if figures is not None:
                generation.figures[index] = figures.cut(generation.num_tokens[index])

    @property
    def _default_fetch_seconds(self) -> float:
        on_cpu = self.processor_status.get("device") == "cpu"
        return FETCH_SECONDS_ON_CPU if on_cpu else FETCH_SECONDS

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

    async def start(self) -> None:
        """Make sure that the workers have our processor, and keep their errors current.

        Raises:
            RuntimeError: no worker has it.
        """
        for status in await self._fetcher.call_workers("em_inf_status"):
            self.processor_status = self.processor_status or status
        if not self.processor_status:
            raise RuntimeError(
                "EM-INF's endpoint plugin is loaded but its logits processor is not. "
                "Start the server with `em-inf serve`, which puts both in place."
            )
        self._fetcher.start_ticking()

    async def check_alive(self) -> None:
        """Return where the workers answer, or did within the last `ALIVE_SECONDS`.

        However many ask, one call at a time goes to the workers.

        Raises:
            Exception: what became of that call.
        """
        if time.monotonic() - self._alive_at < ALIVE_SECONDS:
            return
        if self._alive is None or self._alive.done():
            self._alive = asyncio.create_task(self._call_workers())
        await asyncio.shield(self._alive)

    async def _call_workers(self) -> None:
        await self._fetcher.call_workers("em_inf_status")
        self._alive_at = time.monotonic()


def _with_settings(params: SamplingParams, report: Report, key: str) -> dict[str, Any]:
    """`extra_args` of an engine request: its own, and the settings on their way down."""
    settings = to_extra_args(report.settings, key)
    return {**(params.extra_args or {}), EXTRA_ARGS_KEY: settings}
