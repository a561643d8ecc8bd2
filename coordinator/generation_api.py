"""What operators ask about generations: which run and which are over, over whom, and ending one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from aiohttp import web

from coordinator.generation_book import GenerationFilter
from coordinator.keys import CLOCK, GENERATIONS, REPOSITORY, RUNNING, SESSION_ENDS
from coordinator.middleware import add_route, json_answer
from coordinator.paging import page_of, read_cursor
from coordinator.queries import read_query
from coordinator.route_docs import RouteDoc
from coordinator.ticket_desk import TICKET_LIFE_S
from protocol.error_forms import repeated
from protocol.errors import ConflictError, NotFoundError
from protocol.generation_rest import GenerationInfo, GenerationPage, GenerationQuery
from protocol.ids import SessionId, is_session_id

GENERATIONS_DOC = RouteDoc("List generations, newest first.", query=GenerationQuery, answer=GenerationPage)
GENERATION_DOC = RouteDoc("Show a generation.", answer=GenerationInfo)
CANCEL_DOC = RouteDoc("End a generation that runs.", answer=GenerationInfo, errors=(ConflictError,))


def add_generation_routes(app: web.Application) -> None:
    """Put the routes in."""
    add_route(app, "admin", "GET", "/admin/v1/generations", generations, GENERATIONS_DOC)
    add_route(app, "admin", "GET", "/admin/v1/generations/{session_id}", generation, GENERATION_DOC)
    add_route(app, "admin", "DELETE", "/admin/v1/generations/{session_id}", cancel, CANCEL_DOC)


async def generations(request: web.Request) -> web.Response:
    """-> `GenerationPage`."""
    query = read_query(request, GenerationQuery)
    after = read_cursor(request, query)
    before = None if after is None else (datetime.fromisoformat(str(after[0])), SessionId(str(after[1])))
    found = await request.app[GENERATIONS].generations(
        GenerationFilter(state=query.state, key=query.key, model=query.model),
        _running_since(request),
        n_generations=query.limit + 1,
        before=before,
    )
    shown, next_cursor = page_of(request, query, found, lambda info: (info.started_at, info.session_id))
    return json_answer(GenerationPage(generations=shown, next_cursor=next_cursor))


async def generation(request: web.Request) -> web.Response:
    """-> `GenerationInfo`."""
    return json_answer(await _named(request))


async def cancel(request: web.Request) -> web.Response:
    """-> `GenerationInfo`, as it was; all its workers are told to end it, and its client why."""
    found = await _named(request)
    if found.state != "running":
        raise ConflictError(f"generation {found.session_id} is over ({found.outcome or 'no end was reported'})")
    stored = await request.app[REPOSITORY].generation(found.session_id)
    assert stored is not None  # rows of generations are never deleted
    await request.app[GENERATIONS].record_cancelled(stored, datetime.fromtimestamp(request.app[CLOCK](), UTC))
    request.app[SESSION_ENDS].end_cancelled(stored)
    request.app[RUNNING].ended(found.session_id)
    return json_answer(found)


async def _named(request: web.Request) -> GenerationInfo:
    session_id = SessionId(request.match_info["session_id"])
    since, found = _running_since(request), None
    if is_session_id(session_id):
        found = await request.app[GENERATIONS].generation(session_id, since)
    if found is None:
        raise NotFoundError(
            f"there is no generation {repeated(session_id)}; `coord generation list` shows the newest"
        )
    return found


def _running_since(request: web.Request) -> datetime:
    """What began before then has no tickets any more."""
    return datetime.fromtimestamp(request.app[CLOCK](), UTC) - timedelta(seconds=TICKET_LIFE_S)
