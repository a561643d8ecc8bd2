"""What operators ask about quotas: limits of keys, what is used of them, usage by day, and who contributed what."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from aiohttp import web

from coordinator.key_api import key_info
from coordinator.keys import AUTHENTICATOR, CLOCK, CLUSTER, EARNED_PRIORITY, QUOTA_CLOCK, QUOTA_DESK, REPOSITORY
from coordinator.middleware import add_route, json_answer, read_json
from coordinator.paging import page_of, read_cursor
from coordinator.queries import read_query
from coordinator.resources import KEY, WORKER, key_called, named_key, named_worker
from coordinator.route_docs import RouteDoc
from protocol.admin_rest import PageQuery
from protocol.errors import ConflictError, NotFoundError
from protocol.ids import KeyId
from protocol.key_limits import LimitsChange
from protocol.key_rest import KeyInfo
from protocol.quota_rest import (
    ContributionList,
    ContributionQuery,
    OwnerRequest,
    QuotaInfo,
    QuotaList,
    UsageList,
    UsageQuery,
    WorkerOwner,
)

LIMITS_DOC = RouteDoc(
    "Change what an API key may use.", body=LimitsChange, answer=KeyInfo, errors=(ConflictError,), resource=KEY
)
QUOTAS_DOC = RouteDoc(
    "Show the keys that have limits, and what is used of them.", query=PageQuery, answer=QuotaList
)
QUOTA_DOC = RouteDoc("Show a key's limits, and what is used of them.", answer=QuotaInfo, resource=KEY)
USAGE_DOC = RouteDoc(
    "Show what keys used, newest day first.", query=UsageQuery, answer=UsageList, errors=(NotFoundError,)
)
CONTRIBUTIONS_DOC = RouteDoc(
    "Show what workers gave, newest day first.", query=ContributionQuery, answer=ContributionList
)
OWNER_DOC = RouteDoc("Say whose machine a worker is.", body=OwnerRequest, answer=WorkerOwner, resource=WORKER)


def add_quota_routes(app: web.Application) -> None:
    """Put the routes in."""
    add_route(app, "admin", "PATCH", "/admin/v1/keys/{key_id}/limits", change_limits, LIMITS_DOC)
    add_route(app, "admin", "GET", "/admin/v1/quotas", quotas, QUOTAS_DOC)
    add_route(app, "admin", "GET", "/admin/v1/quotas/{key_id}", quota, QUOTA_DOC)
    add_route(app, "admin", "GET", "/admin/v1/usage", usage, USAGE_DOC)
    add_route(app, "admin", "GET", "/admin/v1/contributions", contributions, CONTRIBUTIONS_DOC)
    add_route(app, "admin", "PATCH", "/admin/v1/workers/{worker_id}/owner", set_owner, OWNER_DOC)


async def change_limits(request: web.Request) -> web.Response:
    """`LimitsChange` -> `KeyInfo`."""
    change = await read_json(request, LimitsChange)
    key_id = KeyId(request.match_info["key_id"])
    await request.app[REPOSITORY].quotas.change(key_id, change, _quota_now(request))
    request.app[AUTHENTICATOR].forget(key_id)
    request.app[QUOTA_DESK].forget_refusal(key_id)
    return json_answer(key_info(await named_key(request)))


async def quotas(request: web.Request) -> web.Response:
    """-> `QuotaList`."""
    query = read_query(request, PageQuery)
    after = read_cursor(request, query)
    found = await request.app[REPOSITORY].quotas.quotas(
        _quota_now(request), after=None if after is None else KeyId(str(after[0])), n_keys=query.limit + 1
    )
    shown, next_cursor = page_of(request, query, found, lambda quota: (quota.key_id,))
    return json_answer(QuotaList(quotas=shown, next_cursor=next_cursor))


async def quota(request: web.Request) -> web.Response:
    """-> `QuotaInfo`."""
    key_id = KeyId(request.match_info["key_id"])
    return json_answer(await request.app[REPOSITORY].quotas.quota(key_id, _quota_now(request)))


async def usage(request: web.Request) -> web.Response:
    """-> `UsageList`."""
    query = read_query(request, UsageQuery)
    if query.key is not None:
        await key_called(request, query.key)
    place = read_cursor(request, query)
    after = None if place is None else (date.fromisoformat(str(place[0])), str(place[1]))
    found = await request.app[REPOSITORY].usage.usage(
        *_days(request, query.days), query.key, after=after, n_rows=query.limit + 1
    )
    shown, next_cursor = page_of(request, query, found, lambda used: (used.day, used.key_id))
    return json_answer(UsageList(usage=shown, next_cursor=next_cursor))


async def contributions(request: web.Request) -> web.Response:
    """-> `ContributionList`."""
    query = read_query(request, ContributionQuery)
    place = read_cursor(request, query)
    after = None if place is None else (date.fromisoformat(str(place[0])), str(place[1]), str(place[2]))
    found = await request.app[REPOSITORY].usage.contributions(
        *_days(request, query.days), after=after, n_rows=query.limit + 1
    )
    shown, next_cursor = page_of(request, query, found, lambda gave: (gave.day, gave.owner, gave.worker_id))
    raised = request.app[EARNED_PRIORITY].raised_owners
    return json_answer(ContributionList(contributions=shown, next_cursor=next_cursor, raised_owners=raised))


async def set_owner(request: web.Request) -> web.Response:
    """`OwnerRequest` -> `WorkerOwner`."""
    wanted = await read_json(request, OwnerRequest)
    worker_id = named_worker(request.match_info["worker_id"], request.app[CLUSTER].state.workers)
    owner = wanted.owner.strip()
    now = datetime.fromtimestamp(request.app[CLOCK](), UTC)
    await request.app[REPOSITORY].usage.set_owner(worker_id, owner, now)
    return json_answer(WorkerOwner(worker_id=worker_id, owner=owner))


def _days(request: web.Request, n_days: int) -> tuple[date, date]:
    """The first and the last day that are asked for: the latest so many, with today (UTC)."""
    last = datetime.fromtimestamp(request.app[CLOCK](), UTC).date()
    return last - timedelta(days=n_days - 1), last


def _quota_now(request: web.Request) -> datetime:
    return datetime.fromtimestamp(request.app[QUOTA_CLOCK](), UTC)
