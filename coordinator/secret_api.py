"""What operators ask about secrets: when they were rotated and who joined with which, and rotating them.

Values are never shown but in the answer to a rotation of the join secret. The audit log has the act before it is
done: one that fails has a second line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import structlog
from aiohttp import web

from coordinator.credentials import KeyCaller
from coordinator.cut_rotations import tell_untold
from coordinator.keys import AUTHORITY, CALLER, CLOCK, CLUSTER, CONFIG, JOINING, REPOSITORY, ROTATING
from coordinator.middleware import add_route, json_answer, read_json
from coordinator.policy.effects import AuditAction, AuditView, WriteAudit
from coordinator.recent_joins import Join
from coordinator.route_docs import RouteDoc
from coordinator.secret_files import DatedSecret
from coordinator.secret_sweep import close_outdated_sockets
from protocol.background import uninterrupted
from protocol.errors import BrigadeError, ConflictError, StorageError
from protocol.secret_rest import RecentJoin, RotatedSecret, RotateSecretRequest, SecretDates, SecretsInfo

log = structlog.get_logger(__name__)

MAX_JOINS_SHOWN = 200
T = TypeVar("T")


def add_secret_routes(app: web.Application) -> None:
    """Put the routes in."""
    errors = (ConflictError, StorageError)
    add_route(
        app,
        "admin",
        "GET",
        "/admin/v1/secrets",
        secrets,
        RouteDoc("Show when secrets were rotated, and who joined with which.", answer=SecretsInfo),
    )
    add_route(
        app,
        "admin",
        "POST",
        "/admin/v1/secrets/join/rotate",
        rotate_join_secret,
        RouteDoc(
            "Make a new join secret; older ones admit for a while.",
            body=RotateSecretRequest,
            answer=RotatedSecret,
            errors=errors,
        ),
    )
    add_route(
        app,
        "admin",
        "POST",
        "/admin/v1/secrets/signing-key/rotate",
        rotate_signing_key,
        RouteDoc(
            "Sign session tokens and tickets with a new key; what older ones signed verifies for a while.",
            body=RotateSecretRequest,
            answer=SecretsInfo,
            errors=errors,
        ),
    )


async def secrets(request: web.Request) -> web.Response:
    """-> `SecretsInfo`."""
    return json_answer(_info(request))


async def rotate_join_secret(request: web.Request) -> web.Response:
    """`RotateSecretRequest` -> `RotatedSecret`."""
    wanted = await read_json(request, RotateSecretRequest)
    grace, files = timedelta(seconds=wanted.grace_s), request.app[AUTHORITY].secrets
    secret, now = await _rotated(request, "join_secret_rotated", grace, files.rotate_join_secret)
    request.app[JOINING].recent.rotated()
    return json_answer(RotatedSecret(secret=secret, old_until=(now + grace).isoformat()))


async def rotate_signing_key(request: web.Request) -> web.Response:
    """`RotateSecretRequest` -> `SecretsInfo`, as it is from now on."""
    wanted = await read_json(request, RotateSecretRequest)
    grace, files = timedelta(seconds=wanted.grace_s), request.app[AUTHORITY].secrets
    await _rotated(request, "signing_key_rotated", grace, files.rotate_signing_key)
    await close_outdated_sockets(request.app)
    return json_answer(_info(request))


async def _rotated(
    request: web.Request, action: AuditAction, grace: timedelta, rotate: Callable[[datetime, timedelta], T]
) -> tuple[T, datetime]:
    """What `rotate` comes to, when its turn has come, and when that was."""
    rotating, files = request.app[ROTATING], request.app[AUTHORITY].secrets

    async def step() -> tuple[T, datetime]:
        async with rotating.turn:
            await tell_untold(rotating, request.app[REPOSITORY], files, _now(request))
            now = _now(request)  # of the line and of the secret: by that they are known to belong together
            rotating.has_untold = True
            await _write_line(request, action, now, grace)
            try:
                result = await asyncio.to_thread(rotate, now, grace)
            except BrigadeError as error:
                await _tell_failure(request, f"{action}: {error.message}")
                raise
            rotating.has_untold = False
            return result, now

    return await uninterrupted(step())


async def _write_line(request: web.Request, action: AuditAction, now: datetime, grace: timedelta) -> None:
    caller = request[CALLER]
    assert isinstance(caller, KeyCaller)  # the route's access says so
    files, until = request.app[AUTHORITY].secrets, (now + grace).isoformat()
    older = files.join_secret_dates if action == "join_secret_rotated" else files.signing_key_dates
    before = {"older_end_at": [each.ends.isoformat() for each in older if each.ends is not None]}
    details = f"by {caller.key_id}; older ones end at {until} at the latest"
    await _audit(request, now, action, details, before, {"older_end_at": [until]})


async def _tell_failure(request: web.Request, details: str) -> None:
    try:
        await _audit(request, _now(request), "rotation_failed", details)
    except (
        StorageError
    ) as error:  # what the caller is to hear is why it failed; `tell_untold_forever` says it later
        log.warning("failed_rotation_not_said_yet", error_message=error.message)
    else:
        request.app[ROTATING].has_untold = False


async def _audit(
    request: web.Request,
    at: datetime,
    action: AuditAction,
    details: str,
    before: AuditView = None,
    after: AuditView = None,
) -> None:
    line = WriteAudit(
        at_s=at.timestamp(), action=action, subject="cluster", details=details, before=before, after=after
    )
    await request.app[REPOSITORY].apply([line])


def _info(request: web.Request) -> SecretsInfo:
    files, state = request.app[AUTHORITY].secrets, request.app[CLUSTER].state
    since = files.join_secret_since
    joins = request.app[JOINING].recent.newest_first()[:MAX_JOINS_SHOWN]

    def recent(join: Join) -> RecentJoin:
        worker = state.workers.get(join.worker_id)
        return RecentJoin(
            worker_id=join.worker_id,
            hostname="" if worker is None else worker.hostname,
            at=datetime.fromtimestamp(join.at_s, UTC).isoformat(timespec="seconds"),
            is_current=join.is_current,
            invite_id=join.invite_id,
        )

    return SecretsInfo(
        coordinator_id=request.app[AUTHORITY].coordinator_id,
        join_secret_since=None if since is None else since.isoformat(),
        join_secret_from=secret_words(request.app[CONFIG].secret_from, files.is_given, files.given_was_retired_at),
        is_in_state_folder=not files.is_given,
        previous_join_secrets=tuple(_dates(each) for each in files.join_secret_dates),
        signing_keys=tuple(_dates(each) for each in files.signing_key_dates),
        joins=tuple(recent(join) for join in joins),
    )


def secret_words(given_by: str, is_given: bool, retired_at: datetime | None) -> str:  # noqa: FBT001 - two facts
    """Where the join secret in force comes from, and which wins where there are two."""
    given_by = given_by or "the start"
    if is_given:
        return f"given by {given_by}, which goes before the state folder's; a rotation ends that for good"
    if retired_at is not None:
        return (
            f"in the state folder; the one that {given_by} gives was rotated away on {retired_at:%Y-%m-%d}, and "
            "doesn't count: leave it out, or give the new one"
        )
    return "in the state folder"


def _dates(each: DatedSecret) -> SecretDates:
    ends = each.ends
    return SecretDates(
        retired_at=None if each.retired_at is None else each.retired_at.isoformat(),
        until=None if ends is None else ends.isoformat(),
    )


def _now(request: web.Request) -> datetime:
    return datetime.fromtimestamp(request.app[CLOCK](), UTC)
