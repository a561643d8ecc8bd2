"""A plain web application that answers to its own names only, and says what is wrong as all our servers do."""

from __future__ import annotations

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from protocol.codec import MAX_BODY_BYTES, encode_json
from protocol.errors import BrigadeError, ErrorBody, InternalError, InvalidRequestError, NotFoundError
from protocol.guarded_site import add_security_headers, asked_hosts
from protocol.host_names import check_host
from protocol.rest import ErrorAnswer

log = structlog.get_logger(__name__)


def guarded_application(names: frozenset[str] | None, *, who: str, option: str) -> web.Application:
    """An application without routes, which answers to these names and to addresses, and says what is wrong.

    `names` None: it answers to any. For what is said of others: `who` answers, `option` makes names known to it.
    """

    @web.middleware
    async def check_names(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse what is for another host: nobody who was sent here asks for one."""
        for host in asked_hosts(request):
            check_host(host, names or frozenset(), who=who, option=option)
        return await handler(request)

    middlewares = [errors_to_answers] if names is None else [errors_to_answers, check_names]
    app = web.Application(middlewares=middlewares, client_max_size=MAX_BODY_BYTES)
    app.on_response_prepare.append(add_security_headers)
    return app


@web.middleware
async def errors_to_answers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer an error with its status and code, and a defect of ours without its details."""
    try:
        return await handler(request)
    except BrigadeError as exc:
        return _answer(exc)
    except web.HTTPException as exc:
        return _http_answer(request, exc)
    except ConnectionError:
        raise  # whoever asked is gone; the server knows
    except Exception:  # the outermost edge of a request
        log.exception("request_failed", path=request.path)
        return _answer(InternalError("something went wrong in this program; its log says what"))


def http_error_body(request: web.Request, exc: web.HTTPException) -> ErrorBody:
    """What aiohttp itself raises, such as for a path that isn't there, as the body of an error of ours."""
    if isinstance(exc, web.HTTPNotFound):
        return NotFoundError(f"there is nothing at {request.path[:200]}").body()
    if isinstance(exc, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(exc.allowed_methods))
        message = f"{request.method[:20]} isn't possible at {request.path[:200]}; {allowed} is"
        return ErrorBody(code=InvalidRequestError.code, message=message)
    code = InvalidRequestError.code if exc.status < 500 else InternalError.code
    return ErrorBody(code=code, message=f"the request can't be answered: {exc.reason}")


def _http_answer(request: web.Request, exc: web.HTTPException) -> web.Response:
    answer = _json(http_error_body(request, exc), exc.status)
    if isinstance(exc, web.HTTPMethodNotAllowed):
        answer.headers[hdrs.ALLOW] = ", ".join(sorted(exc.allowed_methods))
    return answer


def _answer(error: BrigadeError) -> web.Response:
    return _json(error.body(), error.status)


def _json(error: ErrorBody, status: int) -> web.Response:
    body = encode_json(ErrorAnswer(error=error))
    return web.Response(status=status, body=body, content_type="application/json")
