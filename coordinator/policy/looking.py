"""What is looked for beside everything else, since it takes seconds in a large fleet: when, and if it holds then.

The search is pure and knows the state as it was when it began. What it finds comes back as an event; if those whom
it rests on have changed meanwhile, it is dropped, and looked for anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import msgspec

from coordinator.policy.cut_moves import is_awaited
from coordinator.policy.events import Found, ImprovementFound, MoveStepEnded, PlacementFound
from coordinator.policy.improvement import improvement
from coordinator.policy.measured import unmeasured
from coordinator.policy.moving import is_at_rest
from coordinator.policy.placement import placement
from coordinator.policy.state import ClusterState, WorkerRecord
from protocol.ids import WorkerId

Sought = Literal["placement", "improvement", "next step"]

MAX_DOUBLINGS = 6
"""After so many moves in a row the time until the next look grows no more."""


def sought(state: ClusterState, now_s: float) -> Sought | None:
    """What is to be looked for now, if anything."""
    is_cut = state.moving is not None and state.moving.is_cut
    if state.changed_s is not None:
        if now_s - state.changed_s < state.settings.settle_s or is_awaited(state, now_s):
            return None
        # what changes while workers are moved ends that; what they say of their own steps is no such change
        return "next step" if is_cut else "placement"
    if is_cut:
        return None if is_awaited(state, now_s) else "next step"
    if state.moving is not None:
        is_late = now_s - state.moving.step_s > state.settings.longest_step_s
        return "next step" if is_late or is_at_rest(state) else None
    is_due = state.improve_s is not None and now_s >= state.improve_s and state.settings.replan == "auto"
    return "improvement" if (is_due or state.is_move_asked) and is_at_rest(state) else None


def found(state: ClusterState, what: Sought) -> Found:
    """The search itself: seconds for hundreds of workers."""
    match what:
        case "placement":
            return PlacementFound(basis=state, placed=placement(state))
        case "improvement":
            is_asked = state.is_move_asked
            better = improvement(state, is_asked=is_asked)
            return ImprovementFound(basis=state, improvement=better, is_asked=is_asked)
        case "next step":
            return MoveStepEnded()


def next_look_s(state: ClusterState, now_s: float) -> float:
    """When to look for something better again, if nothing happens until then."""
    return now_s + float(state.settings.replan_every_s * 2 ** min(state.n_moves, MAX_DOUBLINGS))


def still_holds(basis: ClusterState, state: ClusterState, touched: Iterable[WorkerId]) -> bool:
    """Whether the models are as they were, and those who hold something or are to; who joined matters not."""
    if basis.models != state.models:
        return False
    concerned = {
        worker_id
        for workers in (basis.workers, state.workers)
        for worker_id, worker in workers.items()
        if worker.assignment.spans or worker.assignment.leaving
    }
    return all(
        worker_id in basis.workers
        and worker_id in state.workers
        and _is_alike(basis.workers[worker_id], state.workers[worker_id])
        for worker_id in concerned.union(touched)
    )


def _is_alike(old: WorkerRecord, new: WorkerRecord) -> bool:
    return old is new or _settled(old) == _settled(new)


def _settled(worker: WorkerRecord) -> WorkerRecord:
    """Without what comes by the second: what it measured, how far it has loaded, what an unsteady clock says."""
    reported = tuple(
        msgspec.structs.replace(
            status,
            state="loading" if status.state == "downloading" else status.state,
            progress=0.0,
            reason="",
            note="",
        )
        for status in worker.reported
    )
    clock_offset_s = math.inf if worker.is_shut_out else 0.0
    return replace(unmeasured(worker), reported=reported, clock_offset_s=clock_offset_s, right_since_s=None)
