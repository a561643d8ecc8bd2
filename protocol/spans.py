"""Spans: parts of a trace that are over. What ends a part of the work tells the `SpanSink` that it was given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, TypeAlias

from protocol.tracing import Trace

SpanKind: TypeAlias = Literal["internal", "server", "client"]
Attributes: TypeAlias = Mapping[str, str | int | float | bool]


class SpanSink(Protocol):
    """Where spans go."""

    def ended(
        self,
        name: str,
        trace: Trace,
        *,
        cause: str | None,
        seconds: float,
        kind: SpanKind = "internal",
        attributes: Attributes,
        error_code: str | None = None,
    ) -> None:
        """The span of `trace` has just ended, after so many seconds; `cause` is the id of the one it is part of.

        Doesn't wait, and never fails. No attribute may hold a prompt, an answer or a secret.
        """
        ...


class NoSpans:
    """Nobody wants them."""

    def ended(
        self,
        name: str,
        trace: Trace,
        *,
        cause: str | None,
        seconds: float,
        kind: SpanKind = "internal",
        attributes: Attributes,
        error_code: str | None = None,
    ) -> None:
        """Nothing happens."""


NO_SPANS = NoSpans()
