"""What operators ask about API keys: make, list, show, rename, rotate and revoke them, say whose they are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from aiohttp import web

from coordinator.keys import (
    AUTHENTICATOR,
    AUTHORITY,
    CLOCK,
    CLUSTER,
    DASHBOARD_FEED,
    EARNED_PRIORITY,
    REPOSITORY,
    SESSION_ENDS,
)
from coordinator.middleware import add_route, json_answer, read_json
from coordinator.paging import Position, page_of, read_cursor
from coordinator.policy.settings import with_default_limits
from coordinator.queries import read_query
from coordinator.repository import Repository
from coordinator.resources import KEY, named_key
from coordinator.route_docs import RouteDoc
from coordinator.stored_rows import StoredKey
from protocol.admin_rest import MAX_PAGE, ChangeKeyRequest, KeyQuery, RotatedKey, RotateKeyRequest
from protocol.api_key import new_api_key, secret_hash
from protocol.errors import ConflictError, InvalidRequestError
from protocol.ids import KeyId
from protocol.key_rest import CreatedKey, CreateKeyRequest, KeyInfo, KeyList
from protocol.quota_rest import OwnerRequest

MAX_KEY_NAME = 100

KEYS_DOC = RouteDoc("List the API keys, oldest first.", query=KeyQuery, answer=KeyList)
CREATE_DOC = RouteDoc(
    "Make an API key; this answer alone shows it.", body=CreateKeyRequest, answer=CreatedKey, status=201
)
KEY_DOC = RouteDoc("Show an API key.", answer=KeyInfo, resource=KEY)
RENAME_DOC = RouteDoc("Rename an API key.", body=ChangeKeyRequest, answer=KeyInfo, resource=KEY)
OWNER_DOC = RouteDoc("Say whose an API key is.", body=OwnerRequest, answer=KeyInfo, resource=KEY)
REVOKE_DOC = RouteDoc("Refuse an API key from now on.", answer=KeyInfo, resource=KEY)
ROTATE_DOC = RouteDoc(
    "Give an API key another secret; this answer alone shows it.",
    body=RotateKeyRequest,
    answer=RotatedKey,
    errors=(ConflictError,),
    resource=KEY,
)


def add_key_routes(app: web.Application) -> None:
    """Put the routes in."""
    add_route(app, "admin", "GET", "/admin/v1/keys", keys, KEYS_DOC)
    add_route(app, "admin", "POST", "/admin/v1/keys", create_key, CREATE_DOC)
    add_route(app, "admin", "GET", "/admin/v1/keys/{key_id}", key, KEY_DOC)
    add_route(app, "admin", "PATCH", "/admin/v1/keys/{key_id}", rename_key, RENAME_DOC)
    add_route(app, "admin", "PATCH", "/admin/v1/keys/{key_id}/owner", set_key_owner, OWNER_DOC)
    add_route(app, "admin", "DELETE", "/admin/v1/keys/{key_id}", revoke_key, REVOKE_DOC)
    add_route(app, "admin", "POST", "/admin/v1/keys/{key_id}/rotate", rotate_key, ROTATE_DOC)


async def keys(request: web.Request) -> web.Response:
    """-> `KeyList`."""
    query = read_query(request, KeyQuery)
    found = await _found(request.app[REPOSITORY], query, read_cursor(request, query))
    shown, next_cursor = page_of(request, query, found, lambda key: (key.key_id,))
    return json_answer(KeyList(keys=tuple(key_info(key) for key in shown), next_cursor=next_cursor))


async def key(request: web.Request) -> web.Response:
    """-> `KeyInfo`."""
    return json_answer(key_info(await named_key(request)))


async def create_key(request: web.Request) -> web.Response:
    """`CreateKeyRequest` -> `CreatedKey`."""
    wanted = await read_json(request, CreateKeyRequest)
    name = _checked_name(wanted.name)
    created = new_api_key(wanted.kind, request.app[AUTHORITY].ca_fingerprint)
    limits, settings = wanted.limits, request.app[CLUSTER].state.settings
    await request.app[REPOSITORY].add_api_key(
        created.key_id,
        name,
        created.kind,
        secret_hash(created.secret),
        _now(request),
        limits=with_default_limits(limits, settings) if created.kind == "client" else limits,
        owner=wanted.owner.strip(),
    )
    return json_answer(CreatedKey(key_id=created.key_id, key=created.text()), status=201)


async def rename_key(request: web.Request) -> web.Response:
    """`ChangeKeyRequest` -> `KeyInfo`."""
    wanted = await read_json(request, ChangeKeyRequest)
    key_id = KeyId(request.match_info["key_id"])
    stored = await request.app[REPOSITORY].keys.rename(key_id, _checked_name(wanted.name), _now(request))
    request.app[AUTHENTICATOR].forget(key_id)
    return json_answer(key_info(stored))


async def set_key_owner(request: web.Request) -> web.Response:
    """`OwnerRequest` -> `KeyInfo`."""
    wanted = await read_json(request, OwnerRequest)
    key_id = KeyId(request.match_info["key_id"])
    stored = await request.app[REPOSITORY].keys.set_owner(key_id, wanted.owner.strip(), _now(request))
    request.app[AUTHENTICATOR].forget(key_id)
    await request.app[EARNED_PRIORITY].look()
    return json_answer(key_info(stored))


async def rotate_key(request: web.Request) -> web.Response:
    """`RotateKeyRequest` -> `RotatedKey`."""
    wanted = await read_json(request, RotateKeyRequest)
    old, now = await named_key(request), _now(request)
    fresh = new_api_key(old.kind, request.app[AUTHORITY].ca_fingerprint)
    old_until = now + timedelta(seconds=wanted.grace_s)
    await request.app[REPOSITORY].keys.rotate(old.key_id, secret_hash(fresh.secret), old_until, now)
    request.app[AUTHENTICATOR].forget(old.key_id)
    text = fresh.of_id(old.key_id).text()
    return json_answer(RotatedKey(key_id=old.key_id, key=text, old_until=old_until.isoformat()))


async def revoke_key(request: web.Request) -> web.Response:
    """-> `KeyInfo`."""
    key_id = KeyId(request.match_info["key_id"])
    stored = await request.app[REPOSITORY].revoke_api_key(key_id, _now(request))
    request.app[AUTHENTICATOR].forget(key_id)
    request.app[DASHBOARD_FEED].end_key(key_id)
    await request.app[SESSION_ENDS].end_key(key_id)
    return json_answer(key_info(stored))


def key_info(stored: StoredKey) -> KeyInfo:
    """A key for operators, without its secret."""
    return KeyInfo(
        key_id=stored.key_id,
        name=stored.name,
        kind=stored.kind,
        created_at=stored.created_at.isoformat(),
        revoked_at=stored.revoked_at.isoformat() if stored.revoked_at is not None else None,
        limits=stored.limits,
        old_until=stored.old_until.isoformat() if stored.old_until is not None else None,
        owner=stored.owner,
    )


def _checked_name(text: str) -> str:
    name = text.strip()
    if not (1 <= len(name) <= MAX_KEY_NAME and name.isprintable()):
        raise InvalidRequestError("a key needs a name: 1 to 100 printable characters that say who holds it")
    return name


def _is_wanted(key: StoredKey, query: KeyQuery) -> bool:
    return (
        (query.kind is None or key.kind == query.kind)
        and (query.is_revoked is None or (key.revoked_at is not None) == query.is_revoked)
        and (query.name is None or query.name.casefold() in key.name.casefold())
    )


async def _found(repository: Repository, query: KeyQuery, after: Position | None) -> list[StoredKey]:
    """The keys from where the page begins, as `page_of` wants them; a part of the table at a time."""
    found: list[StoredKey] = []
    last = None if after is None else KeyId(str(after[0]))
    while len(found) <= query.limit:
        part = await repository.api_keys(after=last, n_keys=MAX_PAGE)
        found += [key for key in part if _is_wanted(key, query)]
        if len(part) < MAX_PAGE:
            break
        last = part[-1].key_id
    return found


def _now(request: web.Request) -> datetime:
    return datetime.fromtimestamp(request.app[CLOCK](), UTC)
