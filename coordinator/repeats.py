"""Idempotency-Key: an operator's POST that comes again, since its answer was lost, gets the first answer again.

Kept for 24 hours, over restarts too. Only what succeeded is kept; what was refused may be sent again. One that was
under way when the coordinator died, or its database failed, is answered with 409, since nobody knows whether it was
carried out. The answer lies in the database encrypted under the Idempotency-Key and the coordinator's signing keys,
which aren't in the database: whoever steals that has no API key.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import structlog
from aiohttp import hdrs, web
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from coordinator.admin_requests import FirstAnswer, Repeatable
from coordinator.credentials import KeyCaller
from coordinator.keys import AUTHORITY, CALLER, CLOCK, REPEATING, REPOSITORY, described
from coordinator.middleware import Handler, JsonAnswer, json_answer, read_body
from coordinator.route_docs import RouteDoc
from protocol.background import uninterrupted
from protocol.codec import decode_json, encode_json
from protocol.errors import (
    BrigadeError,
    ConflictError,
    InProgressError,
    InvalidRequestError,
    KeyReusedError,
    StorageError,
)

log = structlog.get_logger(__name__)

IDEMPOTENCY_KEY = "Idempotency-Key"
REPEATED = "Brigade-Repeated"
"""Header of an answer that was given before."""
RETRY_S = 1.0
_NAME = re.compile(r"[\x21-\x7e]{8,128}")


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """An answer as it is sealed."""

    status: int
    etag: str | None
    body: msgspec.Raw


@web.middleware
async def answer_repeats(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Around operators' POSTs."""
    doc, names = described(request), request.headers.getall(IDEMPOTENCY_KEY, [])
    caller = request.get(CALLER)
    if not names or doc is None or request.method != hdrs.METH_POST:
        return await handler(request)
    if not isinstance(caller, KeyCaller) or not request.path.startswith("/admin/"):
        return await handler(request)
    if len(names) > 1 or _NAME.fullmatch(names[0]) is None:
        raise InvalidRequestError(f"{IDEMPOTENCY_KEY} is one word of 8 to 128 ASCII characters, such as a UUID")
    asked = Repeatable(
        key_id=caller.key_id,
        name_hash=_sha256(names[0].encode()),
        request_hash=_sha256(f"{request.method} {request.path_qs}\n".encode(), await read_body(request)),
    )
    repeating = request.app[REPEATING]
    if (asked.key_id, asked.name_hash) in repeating:
        raise InProgressError(
            "the request of this Idempotency-Key is being carried out: ask again", retry_after_s=RETRY_S
        )
    repeating.add((asked.key_id, asked.name_hash))
    try:
        return await _answered(request, handler, doc, asked, names[0])
    finally:
        repeating.discard((asked.key_id, asked.name_hash))


async def _answered(
    request: web.Request, handler: Handler, doc: RouteDoc, asked: Repeatable, name: str
) -> web.StreamResponse:
    kept = request.app[REPOSITORY].requests
    first = await kept.begin(asked, datetime.fromtimestamp(request.app[CLOCK](), UTC))
    if first is not None:
        return _first_again(first, asked, doc, _seal(request.app[AUTHORITY].signing_keys, name))
    try:
        answer = await handler(request)
    except StorageError:
        raise  # it may have been carried out all the same: a commit whose answer was lost looks like this
    except BrigadeError:
        await uninterrupted(kept.forget(asked))
        raise
    if isinstance(answer, JsonAnswer):
        etag = answer.headers.get(hdrs.ETAG)
        plain = _Kept(status=answer.status, etag=etag, body=msgspec.Raw(encode_json(answer.said)))
        seal = _seal(request.app[AUTHORITY].signing_keys, name)  # by now: the request may have rotated them
        try:
            await uninterrupted(kept.finish(asked, seal.encrypt(msgspec.json.encode(plain))))
        except StorageError as error:  # it was carried out, and that is what the caller is to know
            log.warning("answer_not_kept", error_code=error.code, error_message=error.message)
    return answer


def _first_again(first: FirstAnswer, asked: Repeatable, doc: RouteDoc, seal: MultiFernet) -> web.Response:
    """The first answer.

    Raises:
        KeyReusedError: it was to another request.
        ConflictError: how the first ended isn't known, or its answer can't be read any more.
    """
    if first.request_hash != asked.request_hash:
        raise KeyReusedError(
            "this Idempotency-Key came with another request before: take a new one for every new request"
        )
    if first.sealed is None:
        raise ConflictError(
            "the coordinator stopped, or lost its database, while it carried this request out: look whether it was "
            "done, and if not, send it with a new Idempotency-Key"
        )
    try:
        kept = msgspec.json.decode(seal.decrypt(first.sealed), type=_Kept)
    except InvalidToken as exc:
        raise ConflictError(
            "this request was carried out; its answer can't be read any more, since the coordinator's signing keys "
            "were changed meanwhile: look at what it made, and make another if you need its secret"
        ) from exc
    assert isinstance(doc.answer, type)  # only answers of ours are kept
    answer = json_answer(decode_json(bytes(kept.body), doc.answer), status=kept.status)
    answer.headers[REPEATED] = "true"
    if kept.etag is not None:
        answer.headers[hdrs.ETAG] = kept.etag
    return answer


def _seal(signing_keys: Sequence[bytes], name: str) -> MultiFernet:
    """Encrypts with the newest signing key, and opens what an older one encrypted."""
    return MultiFernet([Fernet(_derived(key, name)) for key in reversed(signing_keys)])


def _derived(signing_key: bytes, name: str) -> bytes:
    hkdf = HKDF(algorithm=hashes.SHA256(), length=32, salt=name.encode(), info=b"brigade admin answer v1")
    return base64.urlsafe_b64encode(hkdf.derive(signing_key))


def _sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()
