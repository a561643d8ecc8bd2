"""ETags: who changes something may say in which state they found it (If-Match), and of two who do, one wins.

An ETag is `"STATE-SHOWN"`: a hash of all that operators change of the resource, and one of the answer itself.
If-Match compares the former, so that a heartbeat spoils nobody's change; If-None-Match compares both. Changes of
one resource are made one after the other, whoever names no ETag included: the database has one writer
(`coordinator.lease`), so an order kept in this program is kept.
"""

from __future__ import annotations

import hashlib

import structlog
from aiohttp import ETag, hdrs, web

from coordinator.keys import TURNS, described
from coordinator.middleware import Handler, JsonAnswer, read_body
from coordinator.route_docs import Resource
from protocol.codec import encode_json
from protocol.error_forms import error_fields, repeated
from protocol.errors import BrigadeError, InvalidRequestError, PreconditionFailedError

log = structlog.get_logger(__name__)

_HASH_CHARS = 16
_READING = (hdrs.METH_GET, hdrs.METH_HEAD)


@web.middleware
async def check_preconditions(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Around routes whose description names a resource."""
    doc = described(request)
    if doc is None or doc.resource is None:
        is_change = request.match_info.http_exception is None and request.method not in _READING
        if is_change and hdrs.IF_MATCH in request.headers:
            raise InvalidRequestError(
                f"{hdrs.IF_MATCH} can't be heeded here: {request.method} {repeated(request.path)} changes nothing "
                "that has an ETag; look first, and send it without"
            )
        return await handler(request)
    if request.method == hdrs.METH_GET:
        return await _shown(request, handler, doc.resource)
    if doc.body is not None:
        await read_body(request)  # who sends it slowly keeps nobody waiting
    async with request.app[TURNS].of(doc.resource.name(request)):
        if hdrs.IF_MATCH in request.headers:
            _check_match(request, await _state(request, doc.resource))
        answer = await handler(request)
        if request.method != hdrs.METH_DELETE:
            await _tag(request, doc.resource, answer)
        return answer


async def _tag(request: web.Request, resource: Resource, answer: web.StreamResponse) -> None:
    """With the ETag of the state after the change; without, if it can't be read: what was done was done."""
    try:
        answer.headers[hdrs.ETAG] = _quoted(await _state(request, resource), answer)
    except BrigadeError as error:
        log.warning("etag_left_out", path=request.path[:200], **error_fields(error))


async def _shown(request: web.Request, handler: Handler, resource: Resource) -> web.StreamResponse:
    """With the ETag, of the state before the answer: at worst a change is refused that was good. Else 304."""
    state = await _state(request, resource)
    answer = await handler(request)
    etag = _quoted(state, answer)
    wanted = _values(request, hdrs.IF_NONE_MATCH, request.if_none_match)
    if "*" in wanted or etag.strip('"') in wanted:
        return web.Response(status=web.HTTPNotModified.status_code, headers={hdrs.ETAG: etag})
    answer.headers[hdrs.ETAG] = etag
    return answer


def _check_match(request: web.Request, state: str) -> None:
    """As `state`, the part of the ETag that tells what operators change."""
    wanted = _values(request, hdrs.IF_MATCH, request.if_match)
    if "*" in wanted or state in {value.partition("-")[0] for value in wanted}:
        return
    error = PreconditionFailedError(
        "it was changed since it was read: read it again, see whether the change is still right, and ask for it "
        "again (with the new ETag; of a command: run it again)"
    )
    error.etag = f'"{state}"'
    raise error


def _values(request: web.Request, header: str, parsed: tuple[ETag, ...] | None) -> set[str]:
    """Weak ones match nothing: ours are none."""
    if header not in request.headers:
        return set()
    if not parsed:
        raise InvalidRequestError(f'{header} holds no ETag: send one as it came, such as "1a2b3c-4d5e6f", or *')
    return {etag.value for etag in parsed if not etag.is_weak}


async def _state(request: web.Request, resource: Resource) -> str:
    return _hash(encode_json(await resource.view(request)))


def _quoted(state: str, answer: web.StreamResponse) -> str:
    shown = _hash(encode_json(answer.said)) if isinstance(answer, JsonAnswer) else ""
    return f'"{state}-{shown}"'


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_HASH_CHARS]
