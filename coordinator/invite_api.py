"""What operators ask about invites: make one, list and show them, revoke one."""

from __future__ import annotations

import asyncio
import secrets
from datetime import UTC, datetime, timedelta

from aiohttp import web
from yarl import URL

from coordinator.credentials import KeyCaller
from coordinator.invite_store import StoredInvite
from coordinator.keys import AUTHORITY, CALLER, CLOCK, CONFIG, INVITES, PUBLIC_URL
from coordinator.middleware import add_route, json_answer, read_json
from coordinator.own_addresses import addresses_of
from coordinator.paging import page_of, read_cursor
from coordinator.queries import read_query
from coordinator.route_docs import RouteDoc
from protocol.coordinator_urls import checked_coordinator_url
from protocol.errors import ConfigError, InvalidRequestError
from protocol.ids import InviteId
from protocol.invite_rest import CreatedInvite, CreateInviteRequest, InviteInfo, InviteList, InviteQuery
from protocol.invites import MAX_INVITE_URLS, Invite
from protocol.lan import urls_of

INVITES_DOC = RouteDoc("List the invites, newest first.", query=InviteQuery, answer=InviteList)
CREATE_DOC = RouteDoc(
    "Make an invite, by which workers join; this answer alone shows it.",
    body=CreateInviteRequest,
    answer=CreatedInvite,
    status=201,
)
INVITE_DOC = RouteDoc("Show an invite.", answer=InviteInfo)
REVOKE_DOC = RouteDoc("Have nobody join by an invite any more, nor come again.", answer=InviteInfo)


def add_invite_routes(app: web.Application) -> None:
    """Put the routes in."""
    add_route(app, "admin", "GET", "/admin/v1/invites", invites, INVITES_DOC)
    add_route(app, "admin", "POST", "/admin/v1/invites", create_invite, CREATE_DOC)
    add_route(app, "admin", "GET", "/admin/v1/invites/{invite_id}", invite, INVITE_DOC)
    add_route(app, "admin", "DELETE", "/admin/v1/invites/{invite_id}", revoke_invite, REVOKE_DOC)


async def invites(request: web.Request) -> web.Response:
    """-> `InviteList`."""
    query, now = read_query(request, InviteQuery), _now(request)
    after = read_cursor(request, query)
    found = await request.app[INVITES].invites(
        now,
        query.state,
        after=None if after is None else (datetime.fromisoformat(str(after[0])), InviteId(str(after[1]))),
        n_invites=query.limit + 1,
    )
    shown, next_cursor = page_of(request, query, found, lambda each: (each.created_at.isoformat(), each.invite_id))
    return json_answer(InviteList(invites=tuple(_info(each, now) for each in shown), next_cursor=next_cursor))


async def invite(request: web.Request) -> web.Response:
    """-> `InviteInfo`."""
    return json_answer(_info(await request.app[INVITES].invite(_named(request)), _now(request)))


async def create_invite(request: web.Request) -> web.Response:
    """`CreateInviteRequest` -> `CreatedInvite`."""
    wanted, now = await read_json(request, CreateInviteRequest), _now(request)
    if not wanted.name.isprintable():
        raise InvalidRequestError("an invite's name is of printable characters: whom or what it is for")
    caller = request[CALLER]
    assert isinstance(caller, KeyCaller)  # the route's access says so
    stored = StoredInvite(
        invite_id=InviteId(secrets.token_hex(4)),
        name=wanted.name.strip(),
        created_at=now,
        created_by=caller.key_id,
        expires_at=now + timedelta(seconds=wanted.expires_in_s),
        n_uses=wanted.n_uses,
    )
    authority = request.app[AUTHORITY]
    made = Invite(
        invite_id=stored.invite_id,
        ca_fingerprint=authority.ca_fingerprint,
        urls=_checked(wanted.urls) if wanted.urls else await _own_urls(request),
        key=authority.invite_key(stored.invite_id),
    )
    await request.app[INVITES].add(stored)
    return json_answer(CreatedInvite(info=_info(stored, now), urls=made.urls, invite=made.text()), status=201)


async def revoke_invite(request: web.Request) -> web.Response:
    """-> `InviteInfo`."""
    now = _now(request)
    return json_answer(_info(await request.app[INVITES].revoke(_named(request), now), now))


def _named(request: web.Request) -> InviteId:
    return InviteId(request.match_info["invite_id"])


def _checked(urls: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tuple(dict.fromkeys(map(checked_coordinator_url, urls)))
    except ConfigError as exc:
        raise InvalidRequestError(exc.message) from exc


async def _own_urls(request: web.Request) -> tuple[str, ...]:
    """Where others reach this coordinator: as the operator said at its start, else at this machine's addresses."""
    config, url = request.app[CONFIG], request.app[PUBLIC_URL][0]
    if config.public_url is not None:
        return (url,)
    addresses = await asyncio.to_thread(addresses_of, config.listen_host)
    return urls_of(addresses, URL(url).port or 443)[:MAX_INVITE_URLS] or (url,)


def _info(stored: StoredInvite, now: datetime) -> InviteInfo:
    return InviteInfo(
        invite_id=stored.invite_id,
        name=stored.name,
        state=stored.state(now),
        created_at=stored.created_at.isoformat(timespec="seconds"),
        created_by=stored.created_by,
        expires_at=stored.expires_at.isoformat(timespec="seconds"),
        revoked_at=None if stored.revoked_at is None else stored.revoked_at.isoformat(timespec="seconds"),
        n_uses=stored.n_uses,
        workers=stored.workers,
    )


def _now(request: web.Request) -> datetime:
    return datetime.fromtimestamp(request.app[CLOCK](), UTC)
