"""Requests to a server of ours as spans: how each was answered, and when."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.typedefs import Handler

from protocol.errors import BrigadeError, CancelledByClientError, InternalError
from protocol.spans import SpanSink
from protocol.tracing import TRACEPARENT, Trace, trace_from_text

SPANS = web.AppKey("spans", SpanSink)


def asked_trace(request: web.Request) -> Trace | None:
    """The trace that the caller says the request is part of. A `traceparent` that is none is passed over."""
    return trace_from_text(request.headers.get(TRACEPARENT, ""))


async def answered_in_span(
    request: web.Request, handler: Handler, trace: Trace, *, cause: str | None
) -> web.StreamResponse:
    """What the handler answers or raises; the application's `SPANS` hear of it, `cause` as `SpanSink` has it."""
    began_s, status = asyncio.get_running_loop().time(), InternalError.status
    try:
        response = await handler(request)
        status = response.status
    except (BrigadeError, web.HTTPException) as error:
        status = error.status
        raise
    except (asyncio.CancelledError, ConnectionError):  # who asked has gone away
        status = CancelledByClientError.status
        raise
    finally:
        resource = request.match_info.route.resource
        request.app[SPANS].ended(
            f"{request.method[:20]} {resource.canonical if resource is not None else 'unknown'}",
            trace,
            cause=cause,
            seconds=asyncio.get_running_loop().time() - began_s,
            kind="server",
            attributes={"http.request.method": request.method[:20], "http.response.status_code": status},
            error_code=str(status) if status >= 500 else None,
        )
    return response
