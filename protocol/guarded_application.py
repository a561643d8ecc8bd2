"""A plain web application that answers to its own names only, and says what is wrong as all our servers do."""

from __future__ import annotations

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from protocol.codec import MAX_BODY_BYTES, encode_json
from protocol.errors import BrigadeError, InternalError
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
    except web.HTTPException:
        raise
    except Exception:  # the outermost edge of a request
        log.exception("request_failed", path=request.path)
        return _answer(InternalError("something went wrong in this program; its log says what"))


def _answer(error: BrigadeError) -> web.Response:
    body = encode_json(ErrorAnswer(error=error.body()))
    return web.Response(status=error.status, body=body, content_type="application/json")
