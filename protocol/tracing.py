"""Which trace a piece of work belongs to: W3C's `traceparent`, in requests, messages and lines of logs.

A trace id names one piece of work of whoever asks, in all programs that it goes through; a span id names a part of
it, and who is told of a trace is told of the span that is its cause.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from protocol.errors import InvalidRequestError

TRACEPARENT = "traceparent"
"""The header, and the field of `OpenSession`."""
_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_INVALID_VERSION = "ff"
_FIRST_VERSION = "00"
_SAMPLED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A trace, and one span of it."""

    trace_id: str
    """32 hexadecimal digits, small letters."""
    span_id: str
    """16 of them."""
    is_sampled: bool = True
    """Whether spans are wanted; if not, the ids still stand in lines of logs."""

    def traceparent(self) -> str:
        """As W3C writes it."""
        return f"{_FIRST_VERSION}-{self.trace_id}-{self.span_id}-{int(self.is_sampled):02x}"

    def child(self) -> Trace:
        """A new span of the same trace."""
        return replace(self, span_id=secrets.token_hex(8))


def new_trace() -> Trace:
    """A trace of its own."""
    return Trace(trace_id=secrets.token_hex(16), span_id=secrets.token_hex(8))


def trace_from_text(text: str) -> Trace | None:
    """What a `traceparent` says; None if it is none: W3C has it passed over then."""
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == _INVALID_VERSION or (version == _FIRST_VERSION and rest) or not int(trace_id, 16):
        return None
    if not int(span_id, 16):
        return None
    return Trace(trace_id=trace_id, span_id=span_id, is_sampled=bool(int(flags, 16) & _SAMPLED))


def given_trace(text: str, option: str) -> Trace:
    """What somebody gave by hand as `option`.

    Raises:
        InvalidRequestError: it is no `traceparent`.
    """
    trace = trace_from_text(text)
    if trace is None:
        raise InvalidRequestError(
            f"{option} {text[:80]!r} is no W3C traceparent: 00, 32 hexadecimal digits, 16 more, and 01 (or 00: no "
            "spans are wanted), with - between; neither id may be all zeros"
        )
    return trace


_current: ContextVar[Trace | None] = ContextVar("brigade_trace", default=None)


@contextmanager
def within(trace: Trace) -> Iterator[None]:
    """Have what begins in this context, a client's generations above all, belong to the trace."""
    token = _current.set(trace)
    try:
        yield
    finally:
        _current.reset(token)


def begun_span() -> tuple[Trace, str | None]:
    """A span for what begins now, and the id of the span that is its cause; of a new trace there is none."""
    cause = _current.get()
    return (new_trace(), None) if cause is None else (cause.child(), cause.span_id)
