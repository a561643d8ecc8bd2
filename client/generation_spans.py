"""A generation as a span, for whoever exports those: named after OpenTelemetry's conventions for generative AI."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from client.results import Progress
from protocol.errors import BrigadeError, InternalError
from protocol.ids import ModelName
from protocol.spans import SpanSink

OPERATION = "text_completion"


@contextmanager
def noted_generation(spans: SpanSink, model: ModelName, progress: Progress) -> Iterator[None]:
    """Say, at the end of this context, how the generation went."""
    error_code: str | None = None
    try:
        yield
    except BrigadeError as error:
        error_code = error.code
        raise
    except Exception:
        error_code = InternalError.code
        raise
    finally:
        result = progress.generation()
        assert result.timings is not None
        spans.ended(
            f"{OPERATION} {model}",
            progress.trace,
            cause=progress.cause,
            seconds=asyncio.get_running_loop().time() - progress.clock.began_s,
            kind="client",
            attributes={
                "gen_ai.operation.name": OPERATION,
                "gen_ai.provider.name": "brigade",
                "gen_ai.request.model": model,
                "gen_ai.response.finish_reasons": result.finish_reason,
                "gen_ai.usage.input_tokens": result.prompt_tokens,
                "gen_ai.usage.output_tokens": result.completion_tokens,
                "brigade.failovers": result.failovers,
                "brigade.prepare_s": result.timings.prepare_s,
                "brigade.route_s": result.timings.route_s,
                "brigade.open_s": result.timings.open_s,
                "brigade.prefill_s": result.timings.prefill_s,
                "brigade.decode_s": result.timings.decode_s,
            },
            error_code=error_code,
        )
