"""Around every request: an id for the log, who may ask, limits, and errors as JSON without anything inside ours."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import structlog
from aiohttp import hdrs, web

from coordinator.acting import COORDINATOR, acting
from coordinator.addresses import check_host
from coordinator.credentials import Access, Caller, KeyCaller, WorkerCaller
from coordinator.dashboard_door import SESSION_CLAIMS, give_cookie, visitor_of
from coordinator.keys import ACCESS, AUTHENTICATOR, CALLER, CLOCK, CLUSTER, KNOWN_NAMES, ROUTE_DOCS, described
from coordinator.route_docs import RouteDoc
from protocol.codec import MAX_BODY_BYTES, check_version, decode_json, encode_json
from protocol.compatibility import VERSION_HEADER, answer_understood_by, error_understood_by, spoken_version
from protocol.error_forms import error_fields
from protocol.errors import (
    BrigadeError,
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    PreconditionFailedError,
    QuotaExceededError,
    TooLargeError,
)
from protocol.guarded_application import http_error_body
from protocol.guarded_site import SECURITY_HEADERS, asked_hosts
from protocol.messages import PROTOCOL_VERSION
from protocol.rest import ErrorAnswer

log = structlog.get_logger(__name__)

BODY_TIMEOUT_S = 15.0
"""For a whole body, so that nobody holds a request open with a byte a minute."""

PASSING = (503, 507)
"""Statuses of what may be over in a moment; the answer says when to ask again."""
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""The character as JSON writes it, and not a backslash before the letters."""
RETRY_S = 2.0
"""Where the error itself doesn't say."""

NEWER_HEADERS = frozenset({hdrs.IF_MATCH, "Idempotency-Key"})
"""Who sends one of these is no older program, whether or not it says a version: HTTP's own answers are expected."""
CONTENT_POLICY = "Content-Security-Policy"
OWN_HEADERS = (CONTENT_POLICY, hdrs.CACHE_CONTROL)
"""What an answer says itself goes before what all say: pages run scripts of ours, whose files may be kept."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")


def add_route(
    app: web.Application, access: Access, method: str, path: str, handler: Handler, doc: RouteDoc | None = None
) -> None:
    """Put a handler in, say who may use it, and what it takes and answers."""
    route = app.router.add_route(method, path, handler)
    app[ACCESS][route] = access
    if doc is not None:
        app[ROUTE_DOCS][route] = doc


class JsonAnswer(web.Response):
    """`said` as an answer, which can be put into the words of an older peer."""

    def __init__(self, said: msgspec.Struct, status: int) -> None:
        super().__init__(body=encode_json(said), status=status, content_type="application/json")
        self.said = said

    def put_for(self, version: str) -> None:
        """Leave out what who speaks this version of the protocol can't know."""
        if version != PROTOCOL_VERSION:
            self.body = msgspec.json.encode(answer_understood_by(self.said, version))


def json_answer(body: msgspec.Struct, *, status: int = 200) -> JsonAnswer:
    """`body` as an answer."""
    return JsonAnswer(body, status)


async def read_body(request: web.Request) -> bytes:
    """The body's bytes as they were sent.

    Raises:
        TooLargeError: over `MAX_BODY_BYTES`; the rest was not read.
        InvalidRequestError: compressed: a proof is over the bytes as sent, and a small bomb unpacks large. Or it
            breaks off in what is no chunk.
        DeadlineExceededError: it didn't come within `BODY_TIMEOUT_S`.
    """
    if hdrs.CONTENT_ENCODING in request.headers:
        raise InvalidRequestError("send the body without Content-Encoding")
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise TooLargeError(f"the body is over {MAX_BODY_BYTES} bytes")
    try:
        if request.content.is_eof():  # all of it is here
            return await request.read()
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as exc:
        raise TooLargeError(f"the body is over {MAX_BODY_BYTES} bytes") from exc
    except web.RequestPayloadError as exc:
        raise InvalidRequestError("the body can't be read: it isn't chunked as the headers say") from exc
    except TimeoutError as exc:
        raise DeadlineExceededError(f"the body didn't come within {BODY_TIMEOUT_S:.0f} s") from exc


async def read_json(request: web.Request, kind: type[T]) -> T:
    """The body as a `kind`; InvalidRequestError names the field that is wrong."""
    if request.content_type not in ("application/json", "application/octet-stream"):
        # Not what a browser sends across origins without asking first.
        raise InvalidRequestError(f"the body is {request.content_type[:80]}; send application/json")
    body = await read_body(request)
    # the search for the escape alone, which hardly any body has, takes a hundredth of the other
    _check_no_nul(is_there=b"\\u0000" in body and _NUL.search(body) is not None, where="body")
    return decode_json(body, kind)


def _check_no_nul(*, is_there: bool, where: str) -> None:
    """PostgreSQL takes it into no text, and would fail what is written in the same transaction too."""
    if is_there:
        raise InvalidRequestError(f"the {where} has a NUL character (U+0000) in a text: leave it out")


def error_answer(error: BrigadeError) -> web.Response:
    """The answer that an error is."""
    retry_after_s = error.retry_after_s
    if retry_after_s is None and error.status in PASSING:
        retry_after_s = RETRY_S
    body = msgspec.structs.replace(error.body(), retry_after_s=retry_after_s)
    rates = error.rates if isinstance(error, QuotaExceededError) else ()
    response = json_answer(ErrorAnswer(error=body, rates=rates), status=error.status)
    if retry_after_s is not None:
        response.headers[hdrs.RETRY_AFTER] = str(max(1, math.ceil(retry_after_s)))
    if isinstance(error, PreconditionFailedError):
        response.headers[hdrs.ETAG] = error.etag
    if error.status == web.HTTPUnauthorized.status_code:
        response.headers[hdrs.WWW_AUTHENTICATE] = "Bearer"
    return response


async def add_security_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: every answer has them, files and sockets too. No CORS header is ever sent."""
    own = {name: value for name in OWN_HEADERS if (value := response.headers.get(name)) is not None}
    response.headers.update(SECURITY_HEADERS | own)
    if (request_id := structlog.contextvars.get_contextvars().get("request_id")) is not None:
        response.headers["Brigade-Request-Id"] = request_id


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Outermost: log context, and whatever is raised as an answer. The caller's request id isn't believed."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=secrets.token_hex(8))
    try:
        return await handler(request)
    except BrigadeError as error:
        fields = {"method": request.method, "path": request.path[:200], "status": error.status}
        (log.warning if error.status >= 500 else log.info)("request_refused", **fields, **error_fields(error))
        return error_answer(error)
    except web.HTTPException as exc:
        return _http_error(request, exc)
    except ConnectionError:
        raise  # the caller went away; nobody is there to be answered
    except Exception:
        log.exception("request_failed", method=request.method, path=request.path[:200])
        return error_answer(InternalError("something went wrong in the coordinator; its log has the details"))


@web.middleware
async def check_caller(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse strange Host headers, other major versions, then whoever may not use the route or is banned."""
    for host in asked_hosts(request):
        check_host(host, request.app[KNOWN_NAMES])
    version = _spoken_by(request)
    check_version(version)
    _check_no_nul(is_there="\0" in request.path or "\0" in request.query_string, where="address")
    if request.match_info.http_exception is not None:
        return await handler(request)  # no such route or method: nothing to protect
    access = request.app[ACCESS].get(request.match_info.route)
    if access is None:
        raise InternalError("this route says nothing about who may use it")
    visitor = await visitor_of(request) if access == "admin" else None
    if visitor is not None:
        version = PROTOCOL_VERSION  # the page came with this program
    if access != "open":
        authorization = request.headers.getall(hdrs.AUTHORIZATION, [])
        caller = visitor.caller if visitor else await request.app[AUTHENTICATOR].caller(access, authorization)
        request[CALLER] = caller
        if isinstance(caller, WorkerCaller):
            request.app[CLUSTER].check_admitted(caller.worker_id)
            structlog.contextvars.bind_contextvars(worker_id=caller.worker_id)
        else:
            structlog.contextvars.bind_contextvars(key_id=caller.key_id)
    acting.set(_acts(request.get(CALLER)))
    if access == "admin":
        _check_query(request)
    answer = await _answered_in(version, request, handler)
    if visitor is not None and visitor.renewed is not None and SESSION_CLAIMS in request:
        give_cookie(answer, visitor.renewed, request.app[CLOCK]())
    return answer


def _spoken_by(request: web.Request) -> str:
    """The version that who asks speaks. 1.0 didn't say; what lacks its library too is no program of ours."""
    if VERSION_HEADER not in request.headers and "aiohttp/" not in request.headers.get(hdrs.USER_AGENT, ""):
        return PROTOCOL_VERSION
    return spoken_version(request.headers)


def _acts(caller: Caller | None) -> str:
    match caller:
        case WorkerCaller(worker_id=worker_id):
            return f"worker:{worker_id}"
        case KeyCaller(key_id=key_id):
            return f"key:{key_id}"
        case None:
            return COORDINATOR


def _check_query(request: web.Request) -> None:
    """Where there are query parameters, the handler reads them; else they are a mistake."""
    doc = described(request)
    if request.query_string and doc is not None and doc.query is None:
        raise InvalidRequestError(
            f"{request.method} {request.path[:200]} takes no query parameters: leave them out"
        )


async def _answered_in(version: str, request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        answer = await handler(request)
    except BrigadeError as error:
        known = error_understood_by(error, version)
        if known is error or not NEWER_HEADERS.isdisjoint(request.headers):
            raise
        raise known from error
    if isinstance(answer, JsonAnswer):
        answer.put_for(version)
    return answer


def _http_error(request: web.Request, exc: web.HTTPException) -> web.StreamResponse:
    """What aiohttp itself raises, in our form."""
    response = json_answer(ErrorAnswer(error=http_error_body(request, exc)), status=exc.status)
    if isinstance(exc, web.HTTPMethodNotAllowed):
        response.headers[hdrs.ALLOW] = ", ".join(sorted(exc.allowed_methods))
    return response
