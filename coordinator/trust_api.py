"""What operators ask about trust: how far each worker is trusted and why, and what they decide about one."""

from __future__ import annotations

from aiohttp import web

from coordinator.credentials import KeyCaller
from coordinator.keys import AUDITOR, CALLER, CLOCK, CLUSTER, REPOSITORY, SESSION_ENDS
from coordinator.middleware import add_route, json_answer, read_json
from coordinator.paging import page
from coordinator.policy.state import ClusterState
from coordinator.policy.trust import NEWCOMER, NO_RECORD, TrustRecord, standing
from coordinator.policy.trust_events import TrustEvent, TrustPinned, TrustUnpinned, WorkerBanned, WorkerPardoned
from coordinator.policy.trust_words import level_words
from coordinator.queries import read_query
from coordinator.resources import WORKER, named_worker
from coordinator.route_docs import RouteDoc
from protocol.admin_rest import PageQuery
from protocol.ids import WorkerId
from protocol.trust_rest import TrustHistory, TrustInfo, TrustList, TrustOpinion, TrustRequest

N_EVENTS_SHOWN = 100

TRUST_DOC = RouteDoc(
    "Show how far workers are trusted, the least trusted first.", query=PageQuery, answer=TrustList
)
HISTORY_DOC = RouteDoc("Show how far a worker is trusted, and why.", answer=TrustHistory, resource=WORKER)
DECIDE_DOC = RouteDoc(
    "Pin or unpin a worker's trust, ban or pardon it.", body=TrustRequest, answer=TrustInfo, resource=WORKER
)


def add_trust_routes(app: web.Application) -> None:
    """Put the routes in."""
    add_route(app, "admin", "GET", "/admin/v1/trust", trust_list, TRUST_DOC)
    add_route(app, "admin", "GET", "/admin/v1/workers/{worker_id}/trust", trust_history, HISTORY_DOC)
    add_route(app, "admin", "POST", "/admin/v1/workers/{worker_id}/trust", decide, DECIDE_DOC)


async def trust_list(request: web.Request) -> web.Response:
    """-> `TrustList`."""
    query, state, now_s = read_query(request, PageQuery), request.app[CLUSTER].state, request.app[CLOCK]()
    infos = [_info(state, worker_id, now_s) for worker_id in {**state.workers, **state.trust}]
    shown, next_cursor = page(request, query, infos, lambda info: (info.score, info.worker_id))
    return json_answer(TrustList(workers=shown, next_cursor=next_cursor))


async def trust_history(request: web.Request) -> web.Response:
    """-> `TrustHistory`."""
    state, now_s = request.app[CLUSTER].state, request.app[CLOCK]()
    worker_id = _named(request)
    events, older = await request.app[REPOSITORY].trust_history(worker_id, N_EVENTS_SHOWN)
    opinions = (
        TrustOpinion(reporter=opinion.reporter, kind=opinion.kind, weight=opinion.mass_at(now_s))
        for opinion in state.trust.get(worker_id, NO_RECORD).opinions
    )
    return json_answer(
        TrustHistory(trust=_info(state, worker_id, now_s), opinions=tuple(opinions), events=events, older=older)
    )


async def decide(request: web.Request) -> web.Response:
    """`TrustRequest` -> `TrustInfo`, as it is from now on."""
    wanted = await read_json(request, TrustRequest)
    worker_id, cluster = _named(request), request.app[CLUSTER]
    caller = request[CALLER]
    assert isinstance(caller, KeyCaller)  # the route's access says so
    record = cluster.state.trust.get(worker_id, NO_RECORD)
    await cluster.handle(_event(wanted, worker_id, caller.key_id, record))
    if wanted.action == "pardon":
        request.app[AUDITOR].pardon(worker_id)
    if wanted.action == "ban":
        request.app[SESSION_ENDS].end_beside(worker_id)
    return json_answer(_info(cluster.state, worker_id, request.app[CLOCK]()))


def _event(wanted: TrustRequest, worker_id: WorkerId, by: str, record: TrustRecord) -> TrustEvent:
    known = record.banned_reason if wanted.action == "ban" else None  # why it is banned already
    reason = wanted.reason.strip() or known or "an operator decided so"
    match wanted.action:
        case "pin":
            assert wanted.score is not None  # checked when it was read
            return TrustPinned(worker_id=worker_id, score=wanted.score, by=by, reason=reason)
        case "unpin":
            return TrustUnpinned(worker_id=worker_id, by=by, reason=reason)
        case "ban":
            return WorkerBanned(worker_id=worker_id, by=by, reason=reason)
        case "pardon":
            return WorkerPardoned(worker_id=worker_id, by=by, reason=reason)


def _named(request: web.Request) -> WorkerId:
    """Also of a worker that is forgotten but for its trust."""
    state = request.app[CLUSTER].state
    return named_worker(request.match_info["worker_id"], {**state.workers, **state.trust})


def _info(state: ClusterState, worker_id: WorkerId, now_s: float) -> TrustInfo:
    record, worker = state.trust.get(worker_id, NO_RECORD), state.workers.get(worker_id)
    found = standing(record, now_s, NEWCOMER if worker is None else worker.trust)
    return TrustInfo(
        worker_id=worker_id,
        hostname=worker.hostname if worker is not None else "",
        score=found.score,
        level=found.level,
        reason=level_words(found, record, now_s),
        pinned=record.pinned,
        banned_reason=record.banned_reason,
    )
