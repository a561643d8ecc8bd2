"""What operators ask about who did what: the audit log, in pages."""

from __future__ import annotations

from aiohttp import web

from coordinator.audit_log import AuditFilter
from coordinator.keys import REPOSITORY
from coordinator.middleware import add_route, json_answer
from coordinator.paging import page_of, read_cursor
from coordinator.queries import read_query
from coordinator.route_docs import RouteDoc
from protocol.admin_rest import AuditPage, AuditQuery

AUDIT_DOC = RouteDoc("Show who did what, newest first.", query=AuditQuery, answer=AuditPage)


def add_audit_log_routes(app: web.Application) -> None:
    """Put the route in."""
    add_route(app, "admin", "GET", "/admin/v1/audit", audit_log, AUDIT_DOC)


async def audit_log(request: web.Request) -> web.Response:
    """-> `AuditPage`."""
    query = read_query(request, AuditQuery)
    wanted = AuditFilter(
        who=query.who, action=query.action, subject=query.subject, since=query.since, until=query.until
    )
    after = read_cursor(request, query)
    found = await request.app[REPOSITORY].audit_log.entries(
        wanted, before_id=None if after is None else int(after[0]), n_entries=query.limit + 1
    )
    shown, next_cursor = page_of(request, query, found, lambda entry: (entry.entry_id,))
    known = () if found or query.action is None else await request.app[REPOSITORY].audit_log.actions()
    return json_answer(
        AuditPage(entries=shown, next_cursor=next_cursor, known_actions=() if query.action in known else known)
    )
