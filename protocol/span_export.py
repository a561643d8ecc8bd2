"""Where a program's spans go: to the OpenTelemetry collector that the environment names; without one, nowhere."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import structlog

from protocol.spans import NO_SPANS, SpanSink

log = structlog.get_logger(__name__)

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""Either switches the export on. They, and OpenTelemetry's other variables, are read by its own library."""
DISABLED_VARIABLE = "OTEL_SDK_DISABLED"
EXPORTER_VARIABLE = "OTEL_TRACES_EXPORTER"


def are_wanted(environ: Mapping[str, str]) -> bool:
    """Whether the environment says where spans are to go."""
    is_disabled = environ.get(DISABLED_VARIABLE, "").strip().lower() == "true"
    exporters = {name.strip() for name in (environ.get(EXPORTER_VARIABLE) or "otlp").split(",")}
    return not is_disabled and "otlp" in exporters and any(environ.get(name) for name in ENDPOINT_VARIABLES)


@asynccontextmanager
async def span_export(program: str) -> AsyncIterator[SpanSink]:
    """Where this program's spans go: to the collector that the environment names, if it does.

    At the end what has not been sent yet is, for a short while. Where the environment asks for what can't be done,
    the log says so, and there are none: no program fails for its spans.
    """
    if not are_wanted(os.environ):
        yield NO_SPANS
        return
    try:
        from protocol.otlp import OtlpSpans  # noqa: PLC0415 - an extra, which takes 0.2 s to import

        spans = OtlpSpans(program, os.environ)
    except ImportError:
        log.warning(
            "spans_not_exported", reason="OpenTelemetry is not installed: pip install '.[otel]' in Brigade's folder"
        )
        yield NO_SPANS
        return
    except ValueError as exc:  # about one of the variables
        log.warning("spans_not_exported", reason=str(exc))
        yield NO_SPANS
        return
    try:
        yield spans
    finally:
        await spans.finish()
