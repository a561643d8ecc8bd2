"""What workers say of spans: of which span, and what one would say that is in some state."""

from __future__ import annotations

from protocol.control_messages import SpanAssignment, SpanState, SpanStatus


def span_in(status: SpanStatus) -> SpanAssignment:
    """The span that a worker speaks of."""
    return SpanAssignment(
        model=status.model, revision=status.revision, blocks=status.blocks, quantization=status.quantization
    )


def status_as(span: SpanAssignment, state: SpanState, reason: str) -> SpanStatus:
    """What a worker would say of the span that is in this state."""
    return SpanStatus(
        model=span.model,
        revision=span.revision,
        blocks=span.blocks,
        state=state,
        reason=reason,
        progress=float(state == "ready"),
        quantization=span.quantization,
    )
