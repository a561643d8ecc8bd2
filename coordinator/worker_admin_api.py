"""What operators ask about workers: list and show them, have them leave, forget them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from aiohttp import web

from coordinator.keys import CLOCK, CLUSTER, REPOSITORY, ROUTE_DESK, WORKERS_LOOK
from coordinator.middleware import add_route, json_answer
from coordinator.paging import page
from coordinator.policy.events import DrainAsked, DrainWithdrawn, WorkerRemoved
from coordinator.policy.views import explained_worker, worker_info
from coordinator.queries import read_query
from coordinator.resources import WORKER, named_worker
from coordinator.route_docs import RouteDoc
from protocol.admin_rest import RemoveWorkerQuery, WorkerList, WorkerQuery
from protocol.cluster_rest import WorkerInfo
from protocol.errors import ConflictError
from protocol.ids import WorkerId

OPERATORS_WISH = "an operator asked for it"
DRAINING_RETRY_S = 2.0

WORKERS_DOC = RouteDoc("List the workers.", query=WorkerQuery, answer=WorkerList)
WORKER_DOC = RouteDoc("Show a worker.", answer=WorkerInfo, resource=WORKER)
DRAIN_DOC = RouteDoc("Have a worker leave once others hold its blocks.", answer=WorkerInfo, resource=WORKER)
UNDRAIN_DOC = RouteDoc(
    "Have a worker stay that was asked to leave and serves on until others hold its blocks.",
    answer=WorkerInfo,
    errors=(ConflictError,),
    resource=WORKER,
)
REMOVE_DOC = RouteDoc(
    "Forget a worker that is gone; its trust is kept.",
    query=RemoveWorkerQuery,
    answer=WorkerInfo,
    errors=(ConflictError,),
    resource=WORKER,
)


def add_worker_admin_routes(app: web.Application) -> None:
    """Put the routes in."""
    add_route(app, "admin", "GET", "/admin/v1/workers", workers, WORKERS_DOC)
    add_route(app, "admin", "GET", "/admin/v1/workers/{worker_id}", worker, WORKER_DOC)
    add_route(app, "admin", "DELETE", "/admin/v1/workers/{worker_id}", remove, REMOVE_DOC)
    add_route(app, "admin", "POST", "/admin/v1/workers/{worker_id}/drain", drain, DRAIN_DOC)
    add_route(app, "admin", "POST", "/admin/v1/workers/{worker_id}/undrain", undrain, UNDRAIN_DOC)


async def workers(request: web.Request) -> web.Response:
    """-> `WorkerList`."""
    query = read_query(request, WorkerQuery)
    owners = await request.app[REPOSITORY].usage.owners()
    infos = await request.app[WORKERS_LOOK].get()
    wanted = [info for info in (_owned(info, owners) for info in infos) if _is_wanted(info, query)]
    shown, next_cursor = page(request, query, wanted, lambda info: (info.worker_id,))
    return json_answer(WorkerList(workers=shown, next_cursor=next_cursor))


async def worker(request: web.Request) -> web.Response:
    """-> `WorkerInfo`."""
    owners, worker_id = await request.app[REPOSITORY].usage.owners(), _named(request)
    note = request.app[ROUTE_DESK].note(worker_id)
    info = explained_worker(request.app[CLUSTER].state, worker_id, request.app[CLOCK](), note)
    return json_answer(_owned(info, owners))


async def drain(request: web.Request) -> web.Response:
    """-> `WorkerInfo`."""
    worker_id, cluster = _named(request), request.app[CLUSTER]
    await cluster.handle(DrainAsked(worker_id=worker_id, reason=OPERATORS_WISH))
    return json_answer(worker_info(cluster.state, worker_id, request.app[CLOCK]()))


async def undrain(request: web.Request) -> web.Response:
    """-> `WorkerInfo`."""
    worker_id, cluster = _named(request), request.app[CLUSTER]
    await cluster.handle(DrainWithdrawn(worker_id=worker_id))
    info = worker_info(cluster.state, worker_id, request.app[CLOCK]())
    if info.state == "gone":
        raise ConflictError(f"worker {worker_id} is gone ({info.reason}): start it again (`worker join`)")
    if info.state == "draining":
        raise ConflictError(
            f"worker {worker_id} is on its way out ({info.reason}), and can't be held back: start it again "
            "(`worker join`) once it has left"
        )
    return json_answer(info)


async def remove(request: web.Request) -> web.Response:
    """-> `WorkerInfo`, as the worker was."""
    query, worker_id, cluster = read_query(request, RemoveWorkerQuery), _named(request), request.app[CLUSTER]
    info = worker_info(cluster.state, worker_id, request.app[CLOCK]())
    await cluster.handle(WorkerRemoved(worker_id=worker_id))
    if worker_id not in cluster.state.workers:
        return json_answer(info)
    if not query.force:
        raise ConflictError(
            f"worker {worker_id} is {info.state}, not gone: drain it first (`coord worker drain`), or have that "
            "done (`coord worker remove --force`)"
        )
    await cluster.handle(DrainAsked(worker_id=worker_id, reason=f"{OPERATORS_WISH}, to have it removed"))
    raise ConflictError(
        f"worker {worker_id} was told to leave: ask again once it has", retry_after_s=DRAINING_RETRY_S
    )


def _named(request: web.Request) -> WorkerId:
    return named_worker(request.match_info["worker_id"], request.app[CLUSTER].state.workers)


def _owned(info: WorkerInfo, owners: Mapping[WorkerId, str]) -> WorkerInfo:
    return msgspec.structs.replace(info, owner=owners.get(info.worker_id, ""))


def _is_wanted(info: WorkerInfo, query: WorkerQuery) -> bool:
    return (
        (query.state is None or info.state == query.state)
        and (query.model is None or any(span.model == query.model for span in info.spans))
        and (query.trust_level is None or info.trust_level == query.trust_level)
        and (query.owner is None or info.owner == query.owner)
    )
