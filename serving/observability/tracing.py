"""OpenTelemetry: a span for each request and each stage. Imported only where tracing is wanted."""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATED = (b"traceparent", b"tracestate")


class Tracing:
    """Spans of one app, sent to a collector by OTLP over HTTP.

    OpenTelemetry's own variables say where to, which share and how:
    ``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_TRACES_SAMPLER``, ``OTEL_SERVICE_NAME`` and the others
    of its specification.
    """

    def __init__(self) -> None:
        resource = Resource.create({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", "funnel")})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("funnel")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, scope: MutableMapping[str, Any], request_id: str) -> Iterator[Span]:
        """Open the span of a request, in the caller's trace if it names one."""
        carrier = {
            name.decode(): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in _PROPAGATED
        }
        with self._tracer.start_as_current_span(
            scope["method"],
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "funnel.request_id": request_id},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield span

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Open a span of the current trace; of an error it keeps the type only."""
        with self._tracer.start_as_current_span(
            name, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except Exception as error:
                span.set_status(Status(StatusCode.ERROR))
                span.set_attribute("error.type", type(error).__qualname__)
                raise

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()


def answered(span: Span, method: str, endpoint: str, status: int) -> None:
    """Write route and status on a request's span; a path may hold a user id."""
    span.update_name(f"{method} {endpoint}")
    span.set_attribute("http.route", endpoint)
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))


def hexadecimal(span: Span) -> str:
    """Return the id of a span's trace as other tools write it."""
    return trace.format_trace_id(span.get_span_context().trace_id)
