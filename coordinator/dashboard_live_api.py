"""What the dashboard's page follows: live events as they happen, and what happened lately for its plots."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from aiohttp import hdrs, web

from coordinator.credentials import KeyCaller
from coordinator.dashboard_door import SESSION_CLAIMS, session_caller
from coordinator.dashboard_feed import Stream
from coordinator.keys import AUTHENTICATOR, CALLER, DASHBOARD_FEED, DASHBOARD_SESSIONS, HISTORIES
from coordinator.middleware import add_route, json_answer
from coordinator.queries import read_query
from coordinator.route_docs import Download, RouteDoc
from protocol.dashboard_rest import HistoryAnswer, HistoryQuery
from protocol.error_forms import repeated
from protocol.errors import NotFoundError, OverloadedError, StorageError, UnauthenticatedError
from protocol.ids import WorkerId

SEND_TIMEOUT_S = 30.0
"""A reader that takes no bytes for so long has gone."""
CHECK_S = 5.0
"""How often it is looked at whether a session is good still."""
RECONNECT = b"retry: 2000\n\n"
"""Milliseconds after which a browser comes back."""

EVENTS_DOC = RouteDoc(
    "Follow the whole cluster: events `snapshot`, `delta`, `sample` and `end`.",
    answer=Download("text/event-stream"),
    errors=(OverloadedError,),
)
HISTORY_DOC = RouteDoc("Show what happened in the cluster lately.", query=HistoryQuery, answer=HistoryAnswer)
WORKER_HISTORY_DOC = RouteDoc("Show what a worker did lately.", query=HistoryQuery, answer=HistoryAnswer)


def add_dashboard_live_routes(app: web.Application) -> None:
    """Put the routes in."""
    add_route(app, "admin", "GET", "/dashboard/events", events, EVENTS_DOC)
    add_route(app, "admin", "GET", "/dashboard/history", history, HISTORY_DOC)
    add_route(app, "admin", "GET", "/dashboard/history/workers/{worker_id}", worker_history, WORKER_HISTORY_DOC)


async def events(request: web.Request) -> web.StreamResponse:
    """-> `LiveState` first, then `LiveDelta`, `HistoryPoint`, until either side ends it; `StreamEnd` says why."""
    caller, claims = request[CALLER], request.get(SESSION_CLAIMS)
    assert isinstance(caller, KeyCaller)  # the route's access says so
    session_id = claims.session_id if claims is not None else ""
    with request.app[DASHBOARD_FEED].reading(caller.key_id, session_id) as stream:
        answer = web.StreamResponse(headers={hdrs.CONTENT_TYPE: "text/event-stream"})
        with suppress(ConnectionError, TimeoutError):  # the reader has gone, which is how most streams end
            await answer.prepare(request)
            await answer.write(RECONNECT)
            await _told(request, stream, answer)
            await answer.write_eof()
        return answer


async def _told(request: web.Request, stream: Stream, answer: web.StreamResponse) -> None:
    loop = asyncio.get_running_loop()
    checked_s = loop.time()
    while True:
        event = await stream.get()
        is_last = stream.is_end(event)
        if not is_last and loop.time() - checked_s >= CHECK_S:
            checked_s = loop.time()
            await _check(request, stream)
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await answer.write(event)
        if is_last:
            return


async def _check(request: web.Request, stream: Stream) -> None:
    """End the stream of a session that is over, or of a key that is good no longer, whatever ended it."""
    claims = request.get(SESSION_CLAIMS)
    if claims is not None and not request.app[DASHBOARD_SESSIONS].is_good(claims):
        stream.end("expired")
        return
    try:
        if claims is not None:
            await session_caller(request.app, claims)
        else:
            await request.app[AUTHENTICATOR].caller("admin", request.headers.getall(hdrs.AUTHORIZATION))
    except UnauthenticatedError:
        stream.end("revoked")
    except (StorageError, OverloadedError):
        return  # nobody can say now; and an operator may see that the database is away


async def history(request: web.Request) -> web.Response:
    """-> `HistoryAnswer` of the cluster."""
    query = read_query(request, HistoryQuery)
    return json_answer(request.app[HISTORIES].of_cluster(query.span))


async def worker_history(request: web.Request) -> web.Response:
    """-> `HistoryAnswer` of a worker."""
    query, worker_id = read_query(request, HistoryQuery), WorkerId(request.match_info["worker_id"])
    found = request.app[HISTORIES].of_worker(worker_id, query.span)
    if found is None:
        raise NotFoundError(f"nothing is known of the last day of a worker {repeated(worker_id)}")
    return json_answer(found)
