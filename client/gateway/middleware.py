"""Around every request: who is let in, from which pages, and errors in the shape of the API that was asked."""

from __future__ import annotations

import math
import secrets

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from client.gateway.asking import asking_client
from client.gateway.bodies import said_bytes
from client.gateway.body_room import KEPT_BODY
from client.gateway.callers import caller_key
from client.gateway.faults import FieldError
from client.gateway.keys import BODY_ROOM, CONFIG, GATE, METRICS, NAMES, REQUEST_ID, shape_for
from client.gateway.rates import EXPOSED, add_rate_headers, follow_rates, note_rates
from client.gateway.streams import DEFECT, send_in_pieces
from client.gateway.traced import TIMING_HEADER, TRACE_HEADER, add_trace_headers, follow_trace
from protocol.error_forms import error_fields
from protocol.errors import (
    BrigadeError,
    CancelledByClientError,
    ForbiddenError,
    InternalError,
    NotFoundError,
    QuotaExceededError,
)
from protocol.guarded_site import add_security_headers, asked_hosts
from protocol.host_names import check_host

log = structlog.get_logger(__name__)

PASSING = (429, 503, 529)
"""Statuses of what may be over in a moment: the answer says when to ask again."""
RETRY_S = 2.0
"""Where the error itself doesn't say."""
PREFLIGHT_S = 600
HEALTH_PATH = "/health"


@web.middleware
async def count_answers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Outermost: what it was answered, once the answer is out; a caller that went away counts as 499."""
    status = CancelledByClientError.status
    try:
        response = await handler(request)
        status = response.status
    finally:
        request.app[METRICS].answered(request, status)
    return response


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """An id for the log, and whatever is raised as an answer."""
    request[REQUEST_ID] = secrets.token_hex(12)
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=request[REQUEST_ID])
    follow_rates(request)
    try:
        return await handler(request)
    except BrigadeError as error:
        fields = {"method": request.method, "path": request.path[:200], "status": error.status}
        (log.warning if error.status >= 500 else log.info)("request_refused", **fields, **error_fields(error))
        return error_answer(request, error)
    except web.HTTPException as exc:
        return error_answer(request, _of_http(request, exc), status=exc.status)
    except ConnectionError:
        raise  # the caller went away; nobody is there to be answered
    except Exception:
        log.exception("request_failed", method=request.method, path=request.path[:200])
        return error_answer(request, InternalError(DEFECT))


@web.middleware
async def check_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse strange Host headers and strange pages in browsers; answer a browser's question beforehand (CORS).

    Pages are refused here and not only by the missing header: a page needn't read the answer to cost tokens.
    """
    for host in asked_hosts(request):
        check_host(host, request.app[NAMES], who="gateway", option="--name")
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None or origin in {f"{scheme}://{request.host}" for scheme in ("http", "https")}:
        return await handler(request)
    allowed = request.app[CONFIG].allow_origins
    if origin not in allowed and "*" not in allowed:
        raise ForbiddenError(
            f"pages of {origin[:200]!r} may not use this gateway: start it with --allow-origin {origin[:200]}"
        )
    if request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
        return web.Response(status=204)
    return await handler(request)


@web.middleware
async def pass_gate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let nothing new begin while the gateway stops."""
    if request.path == HEALTH_PATH:
        return await handler(request)
    with request.app[GATE].passed():
        return await handler(request)


@web.middleware
async def know_caller(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Before anything of a body is read: nothing is kept for strangers, nor for who has much kept already."""
    if request.method != hdrs.METH_POST or request.match_info.http_exception is not None:
        return await handler(request)
    key_id = caller_key(request.headers, request.app[CONFIG]).key_id
    async with asking_client(request):
        with request.app[BODY_ROOM].kept(key_id, said_bytes(request)) as request[KEPT_BODY]:
            return await handler(request)


MIDDLEWARES = (
    count_answers,
    answer_errors,
    follow_trace,
    check_origin,
    pass_gate,
    send_in_pieces,
    know_caller,
)
"""Outermost first."""


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: every answer has them, streams too."""
    await add_security_headers(request, response)
    if request_id := request.get(REQUEST_ID):
        response.headers["X-Request-Id"] = request_id
    add_trace_headers(request, response)
    add_rate_headers(request, response, shape_for(request).rate_headers)
    allowed = request.app[CONFIG].allow_origins
    if not allowed:
        return
    response.headers.add(hdrs.VARY, hdrs.ORIGIN)
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None or (origin not in allowed and "*" not in allowed):
        return
    response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
    response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = (
        f"Retry-After, {TIMING_HEADER}, {TRACE_HEADER}, X-Request-Id, {EXPOSED}"
    )
    if request.method == hdrs.METH_OPTIONS:
        asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = "GET, POST"
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = asked[:1000]
        response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(PREFLIGHT_S)


def error_answer(request: web.Request, error: BrigadeError, *, status: int | None = None) -> web.Response:
    """The answer that an error is, in the shape of the API whose path was asked for.

    Raises:
        ConnectionAbortedError: the request has an answer, which has begun.
    """
    if request.writer.output_size > 0:
        raise ConnectionAbortedError("the answer had begun: no other can be sent") from error
    if isinstance(error, QuotaExceededError):
        note_rates(error)
    shape = shape_for(request)
    response = web.Response(
        body=shape.body(error), status=status or shape.status(error), content_type="application/json"
    )
    retry_after_s = error.retry_after_s
    if retry_after_s is None and response.status in PASSING:
        retry_after_s = RETRY_S
    if retry_after_s is not None:
        response.headers[hdrs.RETRY_AFTER] = str(max(1, math.ceil(retry_after_s)))
    if response.status == web.HTTPUnauthorized.status_code:
        response.headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
    return response


def _of_http(request: web.Request, exc: web.HTTPException) -> BrigadeError:
    """What aiohttp itself raises, as an error of ours."""
    if isinstance(exc, web.HTTPNotFound):
        return NotFoundError(
            f"there is nothing at {request.method[:20]} {request.path[:200]}; docs/gateway.md has the list"
        )
    if isinstance(exc, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(exc.allowed_methods))
        return FieldError(f"{request.method[:20]} isn't possible at {request.path[:200]}; {allowed} is", param=None)
    return FieldError(f"the request can't be answered: {exc.reason}", param=None)
