"""Every request is part of a trace, its caller's or one of its own, and says what its generations took.

The trace goes on to the coordinator and the workers; whoever asked gets its id back, and a `Server-Timing`: of an
answer in one piece as a header, of a stream as a comment at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from client.results import Generation
from client.timings import Timings
from protocol.traced_requests import answered_in_span, asked_trace
from protocol.tracing import Trace, begun_span, within

TRACE = web.RequestKey("trace", Trace)
TIMINGS = web.RequestKey("timings", list[Timings])

TRACE_HEADER = "Traceresponse"
"""W3C's name for the answer's part of it."""
TIMING_HEADER = "Server-Timing"
_MS_PER_S = 1e3

_timings: ContextVar[list[Timings] | None] = ContextVar("gateway_timings", default=None)


@web.middleware
async def follow_trace(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Have all that the request leads to belong to its trace."""
    asked = asked_trace(request)
    trace, cause = (asked.child(), asked.span_id) if asked is not None else begun_span()
    request[TRACE], request[TIMINGS] = trace, []
    structlog.contextvars.bind_contextvars(trace_id=trace.trace_id)
    _timings.set(request[TIMINGS])
    with within(trace):
        return await answered_in_span(request, handler, trace, cause=cause)


def note_timings(result: Generation) -> None:
    """A generation of this request is over."""
    noted = _timings.get()
    if noted is not None and result.timings is not None:
        noted.append(result.timings)


def add_trace_headers(request: web.Request, response: web.StreamResponse) -> None:
    """The trace, and what is known of the time when the answer begins."""
    if (trace := request.get(TRACE)) is not None:
        response.headers[TRACE_HEADER] = trace.traceparent()
    if noted := request.get(TIMINGS):
        response.headers[TIMING_HEADER] = server_timing(noted)


class TimingComments:
    """The same for an event stream, as comments before the events by which answers end."""

    def __init__(self, request: web.Request) -> None:
        self._noted = request[TIMINGS]
        self._n_said = 0

    def new(self) -> bytes:
        """What hasn't been said yet; mostly nothing."""
        if len(self._noted) == self._n_said:
            return b""
        self._n_said = len(self._noted)
        return f": {TIMING_HEADER}: {server_timing(self._noted)}\n\n".encode()


def server_timing(noted: Sequence[Timings]) -> str:
    """As W3C writes it, in milliseconds; of several generations for one answer, the one that took longest.

    A stage's figure is all that it took for decoding: who runs which blocks is the cluster's own business.
    """
    longest = max(noted, key=lambda timings: timings.total_s)
    phases = {
        "prepare": longest.prepare_s,
        "route": longest.route_s,
        "open": longest.open_s,
        "prefill": longest.prefill_s,
        "decode": longest.decode_s,
        "wire": longest.wire_s,
        "total": longest.total_s,
    }
    parts = [f"{name};dur={seconds * _MS_PER_S:.1f}" for name, seconds in phases.items()]
    parts += [
        f'stage{number};desc="blocks {stage.start}:{stage.end}";dur={stage.decode_s * _MS_PER_S:.1f}'
        for number, stage in enumerate(longest.stages, 1)
    ]
    return ", ".join(parts)
