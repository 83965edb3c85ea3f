"""EM-INF's figures on vLLM's OpenTelemetry traces (`--otlp-traces-endpoint`).

vLLM ends its span of a request, `llm_request`, when the last token arrives; only then can
the figures be fetched, and an ended span takes no more attributes. So they stand on a
span of their own, `em_inf`, a child of vLLM's, which lasts as long as fetching them did.
"""

from __future__ import annotations

from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, Status, StatusCode
from vllm.tracing import SpanAttributes

from logits_processors.settings import settings_of_method
from server.report import Call, Report, figures_of_all

REQUEST_ID = SpanAttributes.GEN_AI_REQUEST_ID
NOT_FETCHED = "the statistics could not be fetched"


class RequestSpans(SpanProcessor):
    """Watches vLLM's spans end, and adds ours to those of requests with EM-INF.

    A request that is not sampled has no span of vLLM's that ends, hence none of ours.
    Of two requests at a time with the same id of their clients' choice, one has none.

    Args:
        provider: vLLM's, which exports the spans.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("em_inf")
        self._ended: dict[str, list[SpanContext]] = {}
        provider.add_span_processor(self)

    def watch(self, request_id: str) -> None:
        """Note that the spans of this request will be asked for."""
        self._ended.setdefault(request_id, [])

    def forget(self, request_id: str) -> None:
        """Do without the spans of a request whose client went away."""
        self._ended.pop(request_id, None)

    def on_end(self, span: ReadableSpan) -> None:
        """Keep the context of a span that is one of a watched request's choices."""
        request_id = (span.attributes or {}).get(REQUEST_ID)
        if isinstance(request_id, str) and request_id in self._ended and span.context:
            self._ended[request_id].append(span.context)

    def add(self, request_id: str, report: Report, call: Call, began_ns: int) -> None:
        """Make the span of a finished engine request, which ends now.

        With several choices vLLM has a span for each: ours is a child of the first to
        end, with links to the others, and holds the figures of all.

        Args:
            request_id: as handed to vLLM's `generate`.
            report: whose settings it ran with.
            call: its figures.
            began_ns: when fetching them began, nanoseconds since the epoch.
        """
        contexts = self._ended.pop(request_id, [])
        if not contexts:
            return
        parent = trace.set_span_in_context(NonRecordingSpan(contexts[0]))
        links = [Link(context) for context in contexts[1:]]
        span = self._tracer.start_span("em_inf", parent, links=links, start_time=began_ns)
        span.set_attribute(REQUEST_ID, request_id)
        span.set_attributes(_attributes(report, call))
        if call.columns is None:
            span.set_status(Status(StatusCode.ERROR, NOT_FETCHED))
        span.end()


def _attributes(report: Report, call: Call) -> dict[str, Any]:
    found = {
        **settings_of_method(report.settings),
        "preset": report.preset,
        "choices": call.num_choices,
        **figures_of_all(call, report.settings),
    }
    return {f"em_inf.{name}": x for name, x in found.items() if x is not None}


def request_spans() -> RequestSpans | None:
    """On the provider that vLLM has set up; None where it exports no traces."""
    provider = trace.get_tracer_provider()
    return RequestSpans(provider) if isinstance(provider, TracerProvider) else None
