"""What operators ask: the whole cluster, the plan, models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from aiohttp import web

from coordinator.client_api import model
from coordinator.keys import (
    ANNOUNCER,
    AUDITOR,
    AUTHORITY,
    CATALOGUE,
    CLOCK,
    CLUSTER,
    INVITES,
    JOINING,
    MODELS_LOOK,
    PUBLIC_URL,
    REPOSITORY,
    VERSION,
    WORKERS_LOOK,
)
from coordinator.middleware import add_route, json_answer, read_json
from coordinator.paging import page
from coordinator.policy.audit_schedule import unaudited
from coordinator.policy.events import ImprovementFound
from coordinator.policy.improvement import improvement
from coordinator.policy.outlook import moving_words
from coordinator.policy.standing import listed, named
from coordinator.policy.state import ClusterState, Placement, checked_placement
from coordinator.policy.views import explained_worker, model_info, plan_info
from coordinator.queries import read_query
from coordinator.resources import MODEL
from coordinator.route_docs import RouteDoc
from protocol.admin_rest import PageQuery
from protocol.cluster_rest import AddModelRequest, ChangeModelRequest, ClusterStatus, WorkerInfo
from protocol.errors import ConfigError, ConflictError, NotFoundError, StorageError, UntrustedFileError
from protocol.ids import ModelName, WorkerId
from protocol.plan_rest import PlanInfo, PlanQuery
from protocol.rest import ModelInfo, ModelList

STATUS_DOC = RouteDoc("Show the whole cluster.", answer=ClusterStatus)
PLAN_DOC = RouteDoc("Show what would be placed.", query=PlanQuery, answer=PlanInfo, errors=(ConfigError,))
APPLY_PLAN_DOC = RouteDoc("Move to what would be placed.", answer=PlanInfo, errors=(ConflictError,))
MODELS_DOC = RouteDoc("List the models, by name.", query=PageQuery, answer=ModelList)
ADD_MODEL_DOC = RouteDoc(
    "Serve a model that is in the coordinator's store.",
    body=AddModelRequest,
    answer=ModelInfo,
    status=201,
    errors=(ConflictError, NotFoundError, UntrustedFileError),
)
MODEL_DOC = RouteDoc("Show a model.", answer=ModelInfo, resource=MODEL)
CHANGE_MODEL_DOC = RouteDoc(
    "Change a model.",
    body=ChangeModelRequest,
    answer=ModelInfo,
    errors=(UntrustedFileError,),
    resource=MODEL,
)
REMOVE_MODEL_DOC = RouteDoc("Serve a model no more.", answer=ModelInfo, resource=MODEL)


def add_admin_routes(app: web.Application) -> None:
    """Put the operators' routes in."""
    add_route(app, "admin", "GET", "/admin/v1/status", status, STATUS_DOC)
    add_route(app, "admin", "GET", "/admin/v1/plan", plan, PLAN_DOC)
    add_route(app, "admin", "POST", "/admin/v1/plan", apply_plan, APPLY_PLAN_DOC)
    add_route(app, "admin", "GET", "/admin/v1/models", models, MODELS_DOC)
    add_route(app, "admin", "POST", "/admin/v1/models", add_model, ADD_MODEL_DOC)
    add_route(app, "admin", "GET", "/admin/v1/models/{name}", model, MODEL_DOC)
    add_route(app, "admin", "PATCH", "/admin/v1/models/{name}", change_model, CHANGE_MODEL_DOC)
    add_route(app, "admin", "DELETE", "/admin/v1/models/{name}", remove_model, REMOVE_MODEL_DOC)


async def status(request: web.Request) -> web.Response:
    """-> `ClusterStatus`."""
    audits, joining = await audits_words(request.app), await _joining_words(request.app)
    models, workers = await request.app[MODELS_LOOK].get(), await request.app[WORKERS_LOOK].get()
    return json_answer(
        ClusterStatus(
            coordinator_id=request.app[AUTHORITY].coordinator_id,
            version=request.app[VERSION],
            url=request.app[PUBLIC_URL][0],
            database=request.app[REPOSITORY].kind,
            database_problem=request.app[REPOSITORY].problem,
            moving=moving_words(request.app[CLUSTER].state),
            audits=audits,
            joining=joining,
            models=models,
            workers=workers,
        )
    )


async def plan(request: web.Request) -> web.Response:
    """-> `PlanInfo`. In a thread: a large fleet takes a second."""
    query = read_query(request, PlanQuery)
    wanted = checked_placement(query.placement or request.app[CLUSTER].state.settings.placement, "placement")
    return await _planned(request, wanted)


async def audits_words(app: web.Application) -> str:
    """Whom audits don't reach. In a thread: it is a look at who holds what."""
    auditor = app[AUDITOR]
    lone = await asyncio.to_thread(unaudited, app[CLUSTER].state) if auditor.share > 0.0 else ""
    return "; ".join(filter(None, (lone, auditor.evading())))


async def _joining_words(app: web.Application) -> str:
    """How new workers find this coordinator, by which invites they may come, and who needs another secret."""
    now = datetime.fromtimestamp(app[CLOCK](), UTC)
    try:
        n_open = await app[INVITES].n_open(now)
    except StorageError:  # the status says so elsewhere
        n_open = 0
    invites = f"{n_open} invite{'s' * (n_open != 1)} open (`coord invite list`)" if n_open else ""
    return "; ".join(filter(None, (app[ANNOUNCER].words, invites, _outdated_words(app))))


def _outdated_words(app: web.Application) -> str:
    """Workers that are here by a join secret which was replaced: their tokens last, and then they are kept out."""
    workers = app[CLUSTER].state.workers
    outdated = [
        named(workers[join.worker_id])
        for join in app[JOINING].recent.newest_first()
        if not join.is_current and join.worker_id in workers and workers[join.worker_id].presence != "gone"
    ]
    if not outdated:
        return ""
    return (
        f"joined with a join secret that was replaced since: {listed(outdated)}; give them the new one before "
        "their tokens end (`coord secret show`)"
    )


async def apply_plan(request: web.Request) -> web.Response:
    """-> `PlanInfo`, once the first workers were told."""
    cluster = request.app[CLUSTER]
    basis = cluster.state
    better = await asyncio.to_thread(partial(improvement, basis, is_asked=True))
    if not better.is_worth_it:
        raise ConflictError(f"nothing is moved: {better.reason}")
    await cluster.handle(ImprovementFound(basis=basis, improvement=better, is_asked=True))
    if cluster.state.moving is None:
        raise ConflictError("nothing is moved: a worker or a model changed meanwhile; ask again once all is ready")
    return await _planned(request, cluster.state.settings.placement)


async def _planned(request: web.Request, wanted: Placement) -> web.Response:
    state, now_s = request.app[CLUSTER].state, request.app[CLOCK]()
    return json_answer(await asyncio.to_thread(plan_info, state, wanted, now_s))


async def models(request: web.Request) -> web.Response:
    """-> `ModelList`."""
    query = read_query(request, PageQuery)
    infos = await request.app[MODELS_LOOK].get()
    shown, next_cursor = page(request, query, infos, lambda info: (info.name,))
    return json_answer(ModelList(models=shown, next_cursor=next_cursor))


async def add_model(request: web.Request) -> web.Response:
    """`AddModelRequest` -> `ModelInfo`."""
    wanted = await read_json(request, AddModelRequest)
    await request.app[CATALOGUE].add(
        wanted.name,
        wanted.revision,
        wanted.n_replicas,
        signature=wanted.signature,
        pinned_ends=wanted.pinned_ends,
    )
    info = model_info(request.app[CLUSTER].state, ModelName(wanted.name), request.app[CLOCK]())
    return json_answer(info, status=201)


async def change_model(request: web.Request) -> web.Response:
    """`ChangeModelRequest` -> `ModelInfo`."""
    wanted = await read_json(request, ChangeModelRequest)
    changed = await request.app[CATALOGUE].change(
        request.match_info["name"],
        n_replicas=wanted.n_replicas,
        signature=wanted.signature,
        pinned_ends=wanted.pinned_ends,
    )
    return json_answer(model_info(request.app[CLUSTER].state, changed.name, request.app[CLOCK]()))


async def remove_model(request: web.Request) -> web.Response:
    """-> `ModelInfo`, as the model was."""
    found = request.app[CATALOGUE].model(request.match_info["name"])
    info = model_info(request.app[CLUSTER].state, found.name, request.app[CLOCK]())
    await request.app[CATALOGUE].remove(found.name)
    return json_answer(info)


def explained_workers(state: ClusterState, now_s: float, note: Callable[[WorkerId], str]) -> tuple[WorkerInfo, ...]:
    """Every worker as it stands, with all that speaks against it: for a thread, as a large fleet takes long."""
    return tuple(explained_worker(state, w, now_s, note(w)) for w in state.workers)
