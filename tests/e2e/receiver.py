"""An OTLP receiver: what `--otlp-traces-endpoint` sends its spans to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import (
    trace_service_pb2,
    trace_service_pb2_grpc,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

WAIT_SECONDS = 120


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span that it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.endpoint = ""
        self._came = threading.Condition()

    def Export(self, request: Any, context: Any) -> Any:
        with self._came:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    self.spans.extend(scope.spans)
            self._came.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def of_trace(self, trace_id: bytes, name: str, count: int = 1) -> list[Span]:
        """The spans of one trace by name, once there are so many of them."""

        def found() -> list[Span]:
            return [s for s in self.spans if (s.trace_id, s.name) == (trace_id, name)]

        with self._came:
            assert self._came.wait_for(lambda: len(found()) >= count, WAIT_SECONDS)
            return found()

    @classmethod
    @contextlib.contextmanager
    def listen(cls) -> Iterator[Receiver]:
        """Receive on a free port."""
        receiver = cls()
        server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
        receiver.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield receiver
        finally:
            server.stop(None).wait()


def attributes(span: Span) -> dict[str, Any]:
    """A span's attributes, as plain values."""
    return {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value"))
        for pair in span.attributes
    }
