"""What operators ask about quotas: limits of keys, what is used of them, usage by day, and who contributed what."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from aiohttp import web

from coordinator.admin_api import key_info, named_worker
from coordinator.keys import AUTHENTICATOR, CLOCK, CLUSTER, QUOTA_CLOCK, REPOSITORY
from coordinator.middleware import add_route, json_answer, read_json
from protocol.errors import InvalidRequestError, NotFoundError, repeated
from protocol.ids import KeyId
from protocol.key_limits import LimitsChange
from protocol.quota_rest import MAX_DAYS, ContributionList, OwnerRequest, QuotaList, UsageList, WorkerOwner

DEFAULT_DAYS = 7


def add_quota_routes(app: web.Application) -> None:
    """Put the routes in."""
    add_route(app, "admin", "PATCH", "/admin/v1/keys/{key_id}/limits", change_limits)
    add_route(app, "admin", "GET", "/admin/v1/quotas", quotas)
    add_route(app, "admin", "GET", "/admin/v1/quotas/{key_id}", quota)
    add_route(app, "admin", "GET", "/admin/v1/usage", usage)
    add_route(app, "admin", "GET", "/admin/v1/contributions", contributions)
    add_route(app, "admin", "PATCH", "/admin/v1/workers/{worker_id}/owner", set_owner)


async def change_limits(request: web.Request) -> web.Response:
    """`LimitsChange` -> `KeyInfo`."""
    change = await read_json(request, LimitsChange)
    key_id = KeyId(request.match_info["key_id"])
    await request.app[REPOSITORY].quotas.change(key_id, change, _quota_now(request))
    request.app[AUTHENTICATOR].forget(key_id)
    stored = await request.app[REPOSITORY].api_key(key_id)
    if stored is None:
        raise NotFoundError(f"the key {repeated(key_id)} was removed this moment")
    return json_answer(key_info(stored))


async def quotas(request: web.Request) -> web.Response:
    """-> `QuotaList`."""
    found = await request.app[REPOSITORY].quotas.quotas(_quota_now(request))
    return json_answer(QuotaList(quotas=found))


async def quota(request: web.Request) -> web.Response:
    """-> `QuotaInfo`."""
    key_id = KeyId(request.match_info["key_id"])
    return json_answer(await request.app[REPOSITORY].quotas.quota(key_id, _quota_now(request)))


async def usage(request: web.Request) -> web.Response:
    """-> `UsageList`; `?days=7&key=KEY`."""
    first, last = _days(request)
    key_id = request.query.get("key")
    found = await request.app[REPOSITORY].usage.usage(first, last, None if key_id is None else KeyId(key_id))
    return json_answer(UsageList(usage=found))


async def contributions(request: web.Request) -> web.Response:
    """-> `ContributionList`; `?days=7`."""
    return json_answer(
        ContributionList(contributions=await request.app[REPOSITORY].usage.contributions(*_days(request)))
    )


async def set_owner(request: web.Request) -> web.Response:
    """`OwnerRequest` -> `WorkerOwner`."""
    wanted = await read_json(request, OwnerRequest)
    worker_id = named_worker(request.match_info["worker_id"], request.app[CLUSTER].state.workers)
    owner = wanted.owner.strip()
    now = datetime.fromtimestamp(request.app[CLOCK](), UTC)
    await request.app[REPOSITORY].usage.set_owner(worker_id, owner, now)
    return json_answer(WorkerOwner(worker_id=worker_id, owner=owner))


def _days(request: web.Request) -> tuple[date, date]:
    """The first and the last day that are asked for: the latest so many, with today (UTC)."""
    text = request.query.get("days", str(DEFAULT_DAYS))
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_DAYS)) and 1 <= int(text) <= MAX_DAYS):
        raise InvalidRequestError(f"days is {repeated(text)}; it can be 1 to {MAX_DAYS}")
    last = datetime.fromtimestamp(request.app[CLOCK](), UTC).date()
    return last - timedelta(days=int(text) - 1), last


def _quota_now(request: web.Request) -> datetime:
    return datetime.fromtimestamp(request.app[QUOTA_CLOCK](), UTC)
