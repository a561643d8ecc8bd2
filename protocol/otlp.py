"""Spans to an OpenTelemetry collector, by OTLP over HTTP: OpenTelemetry's own SDK, with the ids that we have made.

Where to, with which headers, how much at once and how long: OpenTelemetry's environment variables say, to its
library. Needs `brigade[otel]`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from protocol import spans
from protocol.tracing import Trace
from protocol.version import program_version

FLUSH_S = 3.0
"""How long the last spans may take when a program ends; a collector that is away holds nobody up for longer."""

_PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_KINDS = {"internal": SpanKind.INTERNAL, "server": SpanKind.SERVER, "client": SpanKind.CLIENT}
_NS_PER_S = 1e9


class _GivenIds(IdGenerator):
    """The ids of the span that is made next: others have been told of them already."""

    trace_id = span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


class OtlpSpans:
    """A `SpanSink`. Used by one thread, the event loop's; the processor's own thread sends."""

    def __init__(self, program: str, environ: Mapping[str, str]) -> None:
        """`environ`: OpenTelemetry's variables. ValueError: one asks for what isn't there."""
        name = next((name for name in _PROTOCOL_VARIABLES if environ.get(name)), None)
        if name is not None and environ[name] != _PROTOCOL:
            raise ValueError(
                f"{name} is {environ[name]}; spans go by {_PROTOCOL} alone: name that, and a collector's port for "
                "it (mostly 4318)"
            )
        self._exporter = OTLPSpanExporter()
        self._processor = BatchSpanProcessor(self._exporter)
        self._ids = _GivenIds()
        provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: f"brigade-{program}"}),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("brigade", program_version())

    def ended(
        self,
        name: str,
        trace: Trace,
        *,
        cause: str | None,
        seconds: float,
        kind: spans.SpanKind = "internal",
        attributes: spans.Attributes,
        error_code: str | None = None,
    ) -> None:
        """As `SpanSink` says."""
        if not trace.is_sampled:
            return
        self._ids.trace_id, self._ids.span_id = int(trace.trace_id, 16), int(trace.span_id, 16)
        end_ns = time.time_ns()
        span = self._tracer.start_span(
            name,
            _within(trace, cause),
            kind=_KINDS[kind],
            attributes=dict(attributes),
            start_time=end_ns - round(seconds * _NS_PER_S),
        )
        if error_code is not None:
            span.set_attribute("error.type", error_code)
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_ns)

    async def finish(self) -> None:
        """Send what is left within `FLUSH_S`; the rest is lost."""
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        """The processor itself would wait for half a minute; its thread, like this one, holds no process up."""
        ending = threading.Thread(target=self._processor.shutdown, name="last spans", daemon=True)
        ending.start()
        ending.join(FLUSH_S)
        if ending.is_alive():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]


def _within(trace: Trace, cause: str | None) -> Context:
    if cause is None:
        return Context()
    parent = SpanContext(int(trace.trace_id, 16), int(cause, 16), is_remote=True, trace_flags=TraceFlags(1))
    return set_span_in_context(NonRecordingSpan(parent), Context())
