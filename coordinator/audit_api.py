"""What operators ask about audits: one now, and what the newest found. And where audited workers hand on to."""

from __future__ import annotations

from aiohttp import web

from coordinator.credentials import KeyCaller
from coordinator.keys import AUDITOR, CALLER, CLOCK, CLUSTER, NEIGHBOURS, REPOSITORY
from coordinator.middleware import add_route, json_answer
from coordinator.paging import page_of, read_cursor
from coordinator.policy.effects import WriteAudit
from coordinator.queries import read_query
from coordinator.resources import named_worker
from coordinator.route_docs import RouteDoc
from protocol.audit_rest import AuditInfo, AuditList, AuditsQuery
from protocol.errors import ConflictError, NotFoundError

LIST_DOC = RouteDoc(
    "Show what the newest audits of workers found, newest first.",
    query=AuditsQuery,
    answer=AuditList,
)
AUDIT_DOC = RouteDoc(
    "Audit a worker now, and show what that found.", answer=AuditInfo, errors=(NotFoundError, ConflictError)
)
NEXT_HOP_DOC = RouteDoc("The data plane of the hop after a worker that is being audited.", answer=None, status=101)


def add_audit_routes(app: web.Application) -> None:
    """Put the routes in."""
    add_route(app, "admin", "GET", "/admin/v1/audits", audit_list, LIST_DOC)
    add_route(app, "admin", "POST", "/admin/v1/workers/{worker_id}/audits", audit, AUDIT_DOC)
    add_route(app, "open", "GET", "/v1/data", next_hop, NEXT_HOP_DOC)


async def audit_list(request: web.Request) -> web.Response:
    """-> `AuditList`."""
    query, auditor = read_query(request, AuditsQuery), request.app[AUDITOR]
    after = read_cursor(request, query)
    before_id = None if after is None else int(after[0])
    found = await auditor.store.newest(query.limit + 1, before_id=before_id, worker=query.worker)
    shown, next_cursor = page_of(request, query, found, lambda numbered: (numbered[0],))
    audits = tuple(info for _, info in shown)
    return json_answer(AuditList(share=auditor.share, audits=audits, next_cursor=next_cursor))


async def audit(request: web.Request) -> web.Response:
    """-> `AuditInfo`, when the audit is over."""
    worker_id = named_worker(request.match_info["worker_id"], request.app[CLUSTER].state.workers)
    caller = request[CALLER]
    assert isinstance(caller, KeyCaller)  # the route's access says so
    info = await request.app[AUDITOR].audit(worker_id)
    line = WriteAudit(
        at_s=request.app[CLOCK](),
        action="audit_asked",
        subject=worker_id,
        details=f"by {caller.key_id}: {info.outcome}; {info.reason}"[:1000],
    )
    await request.app[REPOSITORY].apply([line])
    return json_answer(info)


async def next_hop(request: web.Request) -> web.StreamResponse:
    """A worker's connection to whom it takes for its neighbour; its first frame has the ticket of an audit."""
    return await request.app[NEIGHBOURS].accept(request)
