"""EM-INF's figures on vLLM's OpenTelemetry traces (`--otlp-traces-endpoint`).

A request with EM-INF on has a span `em_inf` in the trace that its client began, or in a
new one. It lasts from the request's way into the engine until its figures are there, and
vLLM's own spans `llm_request`, one for each choice, are its children.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from vllm.tracing import SpanAttributes

from em_inf.logits_processors.settings import settings_of_method
from em_inf.server.report import Generation, Report
from em_inf.server.responses import NOT_FETCHED, summary

_PROPAGATOR = TraceContextTextMapPropagator()


def tracer() -> Tracer | None:
    """Of the provider that vLLM has set up; None where it exports no traces."""
    provider = trace.get_tracer_provider()
    return provider.get_tracer("em_inf") if isinstance(provider, TracerProvider) else None


def begin_span(
    of: Tracer, request_id: str, headers: Mapping[str, str] | None
) -> tuple[Span, dict[str, str]]:
    """A request's span, and the headers that make vLLM's spans its children.

    Args:
        of: from `tracer`.
        request_id: as handed to vLLM's `generate`.
        headers: the request's own trace context (W3C), if its client sent one.

    Returns:
        The span, which `end_span` ends, and headers for vLLM's `generate`.
    """
    span = of.start_span("em_inf", _PROPAGATOR.extract(headers or {}))
    span.set_attribute(SpanAttributes.GEN_AI_REQUEST_ID, request_id)
    inside = dict(headers or {})
    _PROPAGATOR.inject(inside, trace.set_span_in_context(span))
    return span, inside


def end_span(span: Span, report: Report, generation: Generation | None) -> None:
    """End a request's span.

    Args:
        span: from `begin_span`.
        report: whose settings it ran with.
        generation: its figures; None where the client went away before the end.
    """
    if span.is_recording():
        span.set_attributes(_attributes(report, generation))
        if generation is not None and generation.all_figures is None:
            span.set_status(Status(StatusCode.ERROR, NOT_FETCHED))
    span.end()


def _attributes(report: Report, generation: Generation | None) -> dict[str, Any]:
    found = {**settings_of_method(report.settings), "preset": report.preset}
    if generation is not None:
        found["choices"] = len(generation.keys)
        figures = generation.all_figures
        if figures is not None:
            found.update(summary(figures, report.settings))
    return {f"em_inf.{name}": x for name, x in found.items() if x is not None}
