"""What operators ask about assignments: who holds what and why; pinning blocks by hand, and moving them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import msgspec
from aiohttp import web

from coordinator.credentials import KeyCaller
from coordinator.keys import CALLER, CLOCK, CLUSTER, TURNS
from coordinator.middleware import add_route, json_answer, read_json
from coordinator.paging import page
from coordinator.policy.events import AssignmentPinned, AssignmentUnpinned
from coordinator.policy.pinning import Consequences, checked_blocks, consequences, moved
from coordinator.policy.pins import Pin
from coordinator.policy.state import ClusterState, ModelRecord, WorkerRecord
from coordinator.policy.views import speed_info, worker_info
from coordinator.queries import read_query
from coordinator.resources import named_worker
from coordinator.route_docs import Resource, RouteDoc
from protocol.admin_rest import PageQuery
from protocol.assignment_rest import (
    AssignmentInfo,
    AssignmentList,
    AssignmentPreview,
    HolderChange,
    MoveRequest,
    PinInfo,
    PinRequest,
    PreviewRequest,
    SpeedChange,
)
from protocol.errors import ConflictError, NotFoundError, OverloadedError
from protocol.ids import WorkerId, block_range_from_text

_TURN = "assignments"
"""One turn for all: a pin that loses nothing by itself may lose the last copy together with another."""


_REFUSALS = (ConflictError, NotFoundError, OverloadedError)
LIST_DOC = RouteDoc("List who holds which blocks, and why.", query=PageQuery, answer=AssignmentList)
PREVIEW_DOC = RouteDoc(
    "Say what would follow if a worker were pinned to blocks.",
    body=PreviewRequest,
    answer=AssignmentPreview,
    errors=_REFUSALS,
)
MOVE_DOC = RouteDoc(
    "Have a worker take blocks over from another one, which serves them until then.",
    body=MoveRequest,
    answer=AssignmentInfo,
    errors=_REFUSALS,
)


def add_assignment_routes(app: web.Application) -> None:
    """Put the routes in."""
    shown = RouteDoc(
        "Show what a worker holds.", answer=AssignmentInfo, errors=(NotFoundError,), resource=_RESOURCE
    )
    pinned = RouteDoc(
        "Pin a worker to exactly these blocks.",
        body=PinRequest,
        answer=AssignmentInfo,
        errors=_REFUSALS,
        resource=_RESOURCE,
    )
    unpinned = RouteDoc(
        "Have the planner decide again what a worker holds.",
        answer=AssignmentInfo,
        errors=_REFUSALS,
        resource=_RESOURCE,
    )
    one = "/admin/v1/workers/{worker_id}/assignment"
    add_route(app, "admin", "GET", "/admin/v1/assignments", assignments, LIST_DOC)
    add_route(app, "admin", "POST", "/admin/v1/assignments/preview", preview, PREVIEW_DOC)
    add_route(app, "admin", "POST", "/admin/v1/assignments/move", move, MOVE_DOC)
    add_route(app, "admin", "GET", one, assignment, shown)
    add_route(app, "admin", "PUT", one, pin, pinned)
    add_route(app, "admin", "DELETE", one, unpin, unpinned)


async def assignments(request: web.Request) -> web.Response:
    """-> `AssignmentList`."""
    query = read_query(request, PageQuery)
    shown, next_cursor = page(request, query, _known(request.app[CLUSTER].state), lambda worker_id: (worker_id,))
    infos = tuple(_info(request, worker_id) for worker_id in shown)
    return json_answer(AssignmentList(assignments=infos, next_cursor=next_cursor))


async def assignment(request: web.Request) -> web.Response:
    """-> `AssignmentInfo`."""
    return json_answer(_info(request, _worker_id(request)))


async def preview(request: web.Request) -> web.Response:
    """`PreviewRequest` -> `AssignmentPreview`. In a thread: a large fleet takes a second."""
    wanted = await read_json(request, PreviewRequest)
    state = request.app[CLUSTER].state
    worker = state.workers[named_worker(wanted.worker, state.workers)]
    blocks = block_range_from_text(wanted.blocks)
    model = checked_blocks(state, wanted.model, blocks)
    if wanted.takes_from is None:
        wished = Pin(model=model.name, blocks=blocks, by=_by(request))
    else:
        giver = state.workers[named_worker(wanted.takes_from, state.workers)]
        wished = replace(moved(state, model, blocks, giver, worker), by=_by(request))
    found = await asyncio.to_thread(consequences, state, worker, model, wished)
    return json_answer(_preview(state, worker, wished, found))


async def pin(request: web.Request) -> web.Response:
    """`PinRequest` -> `AssignmentInfo`, as it is from now on."""
    wanted = await read_json(request, PinRequest)
    state = request.app[CLUSTER].state
    worker = state.workers[named_worker(request.match_info["worker_id"], state.workers)]
    blocks = block_range_from_text(wanted.blocks)
    model = checked_blocks(state, wanted.model, blocks)
    wished = Pin(model=model.name, blocks=blocks, by=_by(request), reason=wanted.reason.strip())
    await _pinned(request, worker, model, wished, is_forced=wanted.force)
    return await assignment(request)


async def unpin(request: web.Request) -> web.Response:
    """-> `AssignmentInfo`, as it is from now on."""
    worker_id, state = _worker_id(request), request.app[CLUSTER].state
    if worker_id not in state.pins:
        worker = state.workers[worker_id]
        how = (
            f"it was started with --blocks {worker.announced_blocks}; start it without"
            if worker.announced_blocks is not None
            else "`coord assignment show` lists those who are"
        )
        raise ConflictError(f"{worker_id} isn't pinned by hand: {how}")
    await request.app[CLUSTER].handle(AssignmentUnpinned(worker_id=worker_id, by=_by(request)))
    return json_answer(_info(request, worker_id))


async def move(request: web.Request) -> web.Response:
    """`MoveRequest` -> `AssignmentInfo`, of the worker that takes the blocks."""
    wanted = await read_json(request, MoveRequest)
    async with request.app[TURNS].of(_TURN):  # who pins with If-Match is to find it changed
        return await _moved(request, wanted)


async def _moved(request: web.Request, wanted: MoveRequest) -> web.Response:
    state = request.app[CLUSTER].state
    giver = state.workers[named_worker(wanted.takes_from, state.workers)]
    taker = state.workers[named_worker(wanted.worker, state.workers)]
    blocks = block_range_from_text(wanted.blocks)
    model = checked_blocks(state, wanted.model, blocks)
    wished = moved(state, model, blocks, giver, taker)
    if not taker.can_be_assigned:
        raise ConflictError(f"{taker.worker_id} can't be given blocks now; `coord status` says why")
    wished = replace(wished, by=_by(request), reason=wanted.reason.strip(), is_forced=wanted.force)
    await _pinned(request, taker, model, wished, is_forced=wanted.force)
    return json_answer(_info(request, taker.worker_id))


async def _pinned(
    request: web.Request, worker: WorkerRecord, model: ModelRecord, wished: Pin, *, is_forced: bool
) -> None:
    """Pin, if nothing speaks against it. In a turn, so that no other pin comes between asking that and pinning.

    Raises:
        ConflictError: something does.
    """
    cluster = request.app[CLUSTER]
    found = await asyncio.to_thread(consequences, cluster.state, worker, model, wished)
    if found.refusal:
        raise ConflictError(f"nothing is changed: {found.refusal}")
    if found.loses and not is_forced:
        raise ConflictError(
            f"nothing is changed: {found.loses}; have others hold them first (`coord assignment move`), or say "
            "--force"
        )
    if worker.worker_id not in cluster.state.workers:
        raise NotFoundError(f"{worker.worker_id} was removed meanwhile")
    await cluster.handle(AssignmentPinned(worker_id=worker.worker_id, pin=wished))


class _Pinned(msgspec.Struct, frozen=True):
    """What operators change of an assignment."""

    pin: PinInfo | None


async def _view(request: web.Request) -> _Pinned:
    return _Pinned(pin=_pin_info(request.app[CLUSTER].state, _worker_id(request)))


def _name(_request: web.Request) -> str:
    return _TURN


_RESOURCE = Resource(name=_name, view=_view)


def _known(state: ClusterState) -> set[WorkerId]:
    """The workers, and those that are forgotten but for their pin."""
    return {*state.workers, *state.pins}


def _worker_id(request: web.Request) -> WorkerId:
    return named_worker(request.match_info["worker_id"], _known(request.app[CLUSTER].state))


def _by(request: web.Request) -> str:
    caller = request[CALLER]
    assert isinstance(caller, KeyCaller)  # the route's access says so
    return caller.key_id


def _info(request: web.Request, worker_id: WorkerId) -> AssignmentInfo:
    state = request.app[CLUSTER].state
    worker, told = state.workers.get(worker_id), _pin_info(state, worker_id)
    if worker is None:
        why = "forgotten: it was away for too long" + ("" if told is None else "; pinned to these if it comes back")
        return AssignmentInfo(
            worker_id=worker_id, hostname="", state="gone", epoch=0, spans=(), reason=why, pin=told
        )
    info = worker_info(state, worker_id, request.app[CLOCK]())
    return AssignmentInfo(
        worker_id=worker.worker_id,
        hostname=worker.hostname,
        state=info.state,
        epoch=worker.assignment.epoch,
        spans=info.spans,
        reason=info.reason if worker.presence == "gone" else worker.assignment.reason,
        pin=told,
    )


def _pin_info(state: ClusterState, worker_id: WorkerId) -> PinInfo | None:
    worker, by_hand = state.workers.get(worker_id), state.pins.get(worker_id)
    if by_hand is not None:
        return _pin_as_told(by_hand)
    if worker is not None and worker.announced_blocks is not None:
        return PinInfo(model=worker.announced_model, blocks=worker.announced_blocks, by="")
    return None


def _pin_as_told(told: Pin) -> PinInfo:
    return PinInfo(
        model=told.model,
        blocks=told.blocks,
        by=told.by,
        reason=told.reason,
        takes_from=told.takes_from,
        taken=told.taken,
    )


def _preview(state: ClusterState, worker: WorkerRecord, wished: Pin, found: Consequences) -> AssignmentPreview:
    return AssignmentPreview(
        worker_id=worker.worker_id,
        pin=_pin_as_told(wished),
        needed_bytes=found.needed_bytes,
        capacity_bytes=found.capacity_bytes,
        models=tuple(
            SpeedChange(model=name, now=speed_info(found.now[name]), then=speed_info(found.then[name]))
            for name in state.models
        ),
        changes=tuple(_change(state, worker_id, found) for worker_id in sorted(found.changes)),
        refusal=found.refusal,
        loses=found.loses,
    )


def _change(state: ClusterState, worker_id: WorkerId, found: Consequences) -> HolderChange:
    worker = state.workers[worker_id]
    return HolderChange(
        worker_id=worker_id,
        hostname=worker.hostname,
        now=worker.assignment.spans,
        then=found.changes[worker_id],
    )
