"""Spans by OpenTelemetry's SDK, exported over OTLP; what `pip install 'sequoia[tracing]'` is for."""

from __future__ import annotations

import time
from threading import Thread

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sequoia.tracing.spans import Attributes, Kind, Metadata, Span

_KINDS = {
    Kind.INTERNAL: SpanKind.INTERNAL,
    Kind.CLIENT: SpanKind.CLIENT,
    Kind.SERVER: SpanKind.SERVER,
}
CLOSE_SECONDS = 3.0
_PROPAGATOR = TraceContextTextMapPropagator()


class OtelSpan:
    """See `Span`."""

    def __init__(self, span: trace.Span) -> None:
        self.span = span
        self.is_recording = span.is_recording()
        context = span.get_span_context()
        self.identifiers = {
            "trace_id": trace.format_trace_id(context.trace_id),
            "span_id": trace.format_span_id(context.span_id),
        }

    @property
    def metadata(self) -> Metadata:
        """See `Span`."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(self.span))
        return list(carrier.items())

    def note(self, attributes: Attributes) -> None:
        """See `Span`."""
        self.span.set_attributes(attributes)

    def fail(self, error_type: str) -> None:
        """See `Span`; the first reason stays, for those behind it follow from it."""
        if self.span.is_recording() and "error.type" not in (
            getattr(self.span, "attributes", None) or {}
        ):
            self.span.set_attribute("error.type", error_type)
            self.span.set_status(StatusCode.ERROR)

    def end(self) -> None:
        """See `Span`."""
        self.span.end()


class OtelTracer:
    """See `Tracer`.

    Args:
        role: names the service, unless OTEL_SERVICE_NAME does.
        exporter: where spans go, in batches, on a thread of their own.
        step_interval: one step in so many has a span of its own; 0: none.
    """

    def __init__(self, role: str, exporter: SpanExporter, step_interval: int) -> None:
        self.step_interval = step_interval
        resource = Resource.create({SERVICE_NAME: f"sequoia-{role}"})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("sequoia")

    def begin(
        self,
        name: str,
        kind: Kind,
        attributes: Attributes,
        parent: Span | Metadata | None,
        seconds_ago: float = 0.0,
    ) -> Span:
        """See `Tracer`."""
        if isinstance(parent, OtelSpan):
            context = trace.set_span_in_context(parent.span)
        else:
            context = _PROPAGATOR.extract(dict(parent or ()) if isinstance(parent, list) else {})
        start = time.time_ns() - round(seconds_ago * 1e9)
        return OtelSpan(
            self._tracer.start_span(name, context, _KINDS[kind], attributes, start_time=start)
        )

    def close(self) -> None:
        """See `Tracer`; a collector that is away holds no role up for long."""
        handing_over = Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        handing_over.start()
        handing_over.join(CLOSE_SECONDS)


def otlp_tracer(role: str, endpoint: str, step_interval: int) -> OtelTracer:
    """A tracer that exports to a collector at an http:// or https:// URL, over gRPC."""
    return OtelTracer(role, OTLPSpanExporter(endpoint=endpoint), step_interval)
