"""What operators ask: the whole cluster, models, keys, draining a worker."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from datetime import UTC, datetime
from functools import partial

import msgspec
from aiohttp import web

from coordinator.client_api import model, model_infos, models
from coordinator.keys import (
    AUTHENTICATOR,
    AUTHORITY,
    CATALOGUE,
    CLOCK,
    CLUSTER,
    PUBLIC_URL,
    REPOSITORY,
    ROUTE_DESK,
    VERSION,
)
from coordinator.middleware import add_route, json_answer, read_json
from coordinator.policy.events import DrainAsked, ImprovementFound
from coordinator.policy.improvement import improvement
from coordinator.policy.outlook import moving_words
from coordinator.policy.state import checked_placement
from coordinator.policy.trust_words import trust_note
from coordinator.policy.views import model_info, plan_info, worker_info
from coordinator.stored_rows import StoredKey
from protocol.api_key import new_api_key, secret_hash
from protocol.errors import ConflictError, InvalidRequestError, NotFoundError, repeated
from protocol.ids import KeyId, ModelName, WorkerId
from protocol.rest import (
    AddModelRequest,
    ChangeModelRequest,
    ClusterStatus,
    CreatedKey,
    CreateKeyRequest,
    KeyInfo,
    KeyList,
    WorkerInfo,
)

MIN_ID_CHARS = 6
"""Fewer characters of a worker's id don't name it."""
_KEY_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,100}")


def add_admin_routes(app: web.Application) -> None:
    """Put the operators' routes in."""
    add_route(app, "admin", "GET", "/admin/v1/status", status)
    add_route(app, "admin", "GET", "/admin/v1/plan", plan)
    add_route(app, "admin", "POST", "/admin/v1/plan", apply_plan)
    add_route(app, "admin", "GET", "/admin/v1/models", models)
    add_route(app, "admin", "POST", "/admin/v1/models", add_model)
    add_route(app, "admin", "GET", "/admin/v1/models/{name}", model)
    add_route(app, "admin", "PATCH", "/admin/v1/models/{name}", change_model)
    add_route(app, "admin", "DELETE", "/admin/v1/models/{name}", remove_model)
    add_route(app, "admin", "GET", "/admin/v1/keys", keys)
    add_route(app, "admin", "POST", "/admin/v1/keys", create_key)
    add_route(app, "admin", "DELETE", "/admin/v1/keys/{key_id}", revoke_key)
    add_route(app, "admin", "POST", "/admin/v1/workers/{worker_id}/drain", drain)


async def status(request: web.Request) -> web.Response:
    """-> `ClusterStatus`."""
    state, now_s = request.app[CLUSTER].state, request.app[CLOCK]()
    return json_answer(
        ClusterStatus(
            coordinator_id=request.app[AUTHORITY].coordinator_id,
            version=request.app[VERSION],
            url=request.app[PUBLIC_URL][0],
            database=request.app[REPOSITORY].kind,
            database_problem=request.app[REPOSITORY].problem,
            moving=moving_words(state),
            models=model_infos(request),
            workers=tuple(
                _with_notes(
                    worker_info(state, worker_id, now_s),
                    request.app[ROUTE_DESK].note(worker_id),
                    trust_note(state, worker, now_s),
                )
                for worker_id, worker in state.workers.items()
            ),
        )
    )


def _with_notes(info: WorkerInfo, *notes: str) -> WorkerInfo:
    return msgspec.structs.replace(info, reason="; ".join(filter(None, (info.reason, *notes))))


async def plan(request: web.Request) -> web.Response:
    """-> `PlanInfo`. In a thread: a large fleet takes a second."""
    state, now_s = request.app[CLUSTER].state, request.app[CLOCK]()
    wanted = checked_placement(request.query.get("placement") or state.settings.placement, "placement")
    return json_answer(await asyncio.to_thread(plan_info, state, wanted, now_s))


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
    return await plan(request)


async def add_model(request: web.Request) -> web.Response:
    """`AddModelRequest` -> `ModelInfo`."""
    wanted = await read_json(request, AddModelRequest)
    await request.app[CATALOGUE].add(wanted.name, wanted.revision, wanted.n_replicas)
    info = model_info(request.app[CLUSTER].state, ModelName(wanted.name), request.app[CLOCK]())
    return json_answer(info, status=201)


async def change_model(request: web.Request) -> web.Response:
    """`ChangeModelRequest` -> `ModelInfo`."""
    wanted = await read_json(request, ChangeModelRequest)
    changed = await request.app[CATALOGUE].set_replicas(request.match_info["name"], wanted.n_replicas)
    return json_answer(model_info(request.app[CLUSTER].state, changed.name, request.app[CLOCK]()))


async def remove_model(request: web.Request) -> web.Response:
    """-> `ModelInfo`, as the model was."""
    found = request.app[CATALOGUE].model(request.match_info["name"])
    info = model_info(request.app[CLUSTER].state, found.name, request.app[CLOCK]())
    await request.app[CATALOGUE].remove(found.name)
    return json_answer(info)


async def keys(request: web.Request) -> web.Response:
    """-> `KeyList`."""
    stored = await request.app[REPOSITORY].api_keys()
    return json_answer(KeyList(keys=tuple(key_info(key) for key in stored)))


async def create_key(request: web.Request) -> web.Response:
    """`CreateKeyRequest` -> `CreatedKey`."""
    wanted = await read_json(request, CreateKeyRequest)
    name = wanted.name.strip()
    if _KEY_NAME.fullmatch(name) is None:
        raise InvalidRequestError("a key needs a name: 1 to 100 printable characters that say who holds it")
    key = new_api_key(wanted.kind, request.app[AUTHORITY].ca_fingerprint)
    await request.app[REPOSITORY].add_api_key(
        key.key_id, name, key.kind, secret_hash(key.secret), _now(request), limits=wanted.limits
    )
    return json_answer(CreatedKey(key_id=key.key_id, key=key.text()), status=201)


async def revoke_key(request: web.Request) -> web.Response:
    """-> `KeyInfo`."""
    key_id = KeyId(request.match_info["key_id"])
    stored = await request.app[REPOSITORY].revoke_api_key(key_id, _now(request))
    request.app[AUTHENTICATOR].forget(key_id)
    return json_answer(key_info(stored))


async def drain(request: web.Request) -> web.Response:
    """-> `WorkerInfo`."""
    cluster = request.app[CLUSTER]
    worker_id = named_worker(request.match_info["worker_id"], cluster.state.workers)
    await cluster.handle(DrainAsked(worker_id=worker_id, reason="an operator asked for it"))
    return json_answer(worker_info(cluster.state, worker_id, request.app[CLOCK]()))


def named_worker(name: str, workers: Collection[WorkerId]) -> WorkerId:
    """The worker of this id, or the only one whose id begins so."""
    if name in workers:
        return WorkerId(name)
    found = [worker_id for worker_id in workers if len(name) >= MIN_ID_CHARS and worker_id.startswith(name)]
    if len(found) > 1:
        raise InvalidRequestError(f"{len(found)} workers' ids begin with {repeated(name)}; give more of it")
    if not found:
        raise NotFoundError(f"there is no worker {repeated(name)}; `coord status` shows them")
    return found[0]


def key_info(stored: StoredKey) -> KeyInfo:
    """A key for operators, without its secret."""
    return KeyInfo(
        key_id=stored.key_id,
        name=stored.name,
        kind=stored.kind,
        created_at=stored.created_at.isoformat(),
        revoked_at=stored.revoked_at.isoformat() if stored.revoked_at is not None else None,
        limits=stored.limits,
    )


def _now(request: web.Request) -> datetime:
    return datetime.fromtimestamp(request.app[CLOCK](), UTC)
