"""Requests that are part of a client's trace: every line that is logged for them names it, and each is a span.

A trace is only ever a client's: what asks without one, a worker above all, is followed by its own ids.
"""

from __future__ import annotations

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from protocol.traced_requests import answered_in_span, asked_trace


@web.middleware
async def follow_trace(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Have the log name the request's trace, if it has one."""
    asked = asked_trace(request)
    if asked is None:
        return await handler(request)
    structlog.contextvars.bind_contextvars(trace_id=asked.trace_id)
    return await answered_in_span(request, handler, asked.child(), cause=asked.span_id)
