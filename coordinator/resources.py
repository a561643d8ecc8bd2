"""The things that operators change, as ETags see them: keys, models, workers."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from aiohttp import web

from coordinator.keys import CATALOGUE, CLUSTER, REPOSITORY
from coordinator.policy.changes import model_view
from coordinator.policy.trust import NO_RECORD
from coordinator.route_docs import Resource
from coordinator.stored_rows import StoredKey
from protocol.admin_rest import KeySettings, ModelSettings, WorkerSettings
from protocol.error_forms import repeated
from protocol.errors import InvalidRequestError, NotFoundError
from protocol.ids import KeyId, WorkerId

MIN_ID_CHARS = 6
"""Fewer characters of a worker's id don't name it."""


async def named_key(request: web.Request) -> StoredKey:
    """The key that the request is about; NotFoundError if there is none."""
    return await key_called(request, KeyId(request.match_info["key_id"]))


async def key_called(request: web.Request, key_id: KeyId) -> StoredKey:
    """The key of this id; NotFoundError if there is none."""
    found = await request.app[REPOSITORY].api_key(key_id)
    if found is None:
        raise NotFoundError(f"there is no key {repeated(key_id)}; `coord key list` shows them")
    return found


def named_worker(name: str, workers: Collection[WorkerId]) -> WorkerId:
    """The worker of this id, or the only one whose id begins so."""
    if name in workers:
        return WorkerId(name)
    found = [worker_id for worker_id in workers if worker_id.startswith(name)]
    if found and len(name) < MIN_ID_CHARS:
        raise InvalidRequestError(
            f"{repeated(name)} is {len(name)} characters of a worker's id, and it takes at least {MIN_ID_CHARS} to "
            "name one; `coord status` shows more"
        )
    if len(found) > 1:
        raise InvalidRequestError(f"{len(found)} workers' ids begin with {repeated(name)}; give more of it")
    if not found:
        raise NotFoundError(f"there is no worker {repeated(name)}; `coord status` shows them")
    return found[0]


async def _key_settings(request: web.Request) -> KeySettings:
    stored = await named_key(request)
    return KeySettings(
        name=stored.name,
        kind=stored.kind,
        secret_hash=stored.secret_hash,
        revoked_at=None if stored.revoked_at is None else stored.revoked_at.isoformat(),
        limits=msgspec.to_builtins(stored.limits),
        owner=stored.owner,
    )


async def _model_settings(request: web.Request) -> ModelSettings:
    return ModelSettings(**model_view(request.app[CATALOGUE].model(request.match_info["name"])))


def _worker_id(request: web.Request) -> WorkerId:
    """Also of a worker that is forgotten but for its trust."""
    state = request.app[CLUSTER].state
    return named_worker(request.match_info["worker_id"], {**state.workers, **state.trust})


async def _worker_settings(request: web.Request) -> WorkerSettings:
    state, worker_id = request.app[CLUSTER].state, _worker_id(request)
    record, worker = state.trust.get(worker_id, NO_RECORD), state.workers.get(worker_id)
    owners = await request.app[REPOSITORY].usage.owners()
    return WorkerSettings(
        owner=owners.get(worker_id, ""),
        pinned=record.pinned,
        banned_reason=record.banned_reason,
        is_asked_to_leave=worker is not None and (worker.departure is not None or worker.is_draining),
    )


KEY = Resource(name=lambda request: f"key {request.match_info['key_id'][:64]}", view=_key_settings)
MODEL = Resource(name=lambda request: f"model {request.match_info['name'][:64]}", view=_model_settings)
WORKER = Resource(name=lambda request: f"worker {_worker_id(request)}", view=_worker_settings)
