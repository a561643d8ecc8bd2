"""From what is held to what is to be held, a few workers at a time, so that what is served stays served.

Nobody says which worker of a step is ready first. So a step counts only on what is served whoever is: what others
serve, and of those who change the blocks that they serve before and after, if they can load one beside the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from coordinator.policy.coverage import counts, ready_counts, spans_of
from coordinator.policy.handover import Spans, handed_over
from coordinator.policy.state import ClusterState, ModelRecord, WorkerRecord
from coordinator.policy.statuses import status_as
from protocol.control_messages import SpanAssignment
from protocol.ids import BlockRange, WorkerId

LEAST_AT_ONCE = 4
SHARE_AT_ONCE = 0.1
"""Workers that change in one step, of all: they load and serve at once, and who fails delays the others."""

Target = Mapping[WorkerId, Spans]


def is_at_rest(state: ClusterState) -> bool:
    """Whether everybody who holds something is here, is to stay, and has all of it ready."""
    return state.changed_s is None and all(
        worker.is_routable and worker.departure is None and len(worker.ready) == len(worker.assignment.spans)
        for worker in state.workers.values()
        if worker.assignment.spans and worker.presence not in ("lost", "gone")
    )


def pending(state: ClusterState, target: Target) -> dict[WorkerId, Spans]:
    """Those who don't hold yet what they are to; the ones that lose nothing by it first."""
    workers = state.workers
    left = {w: spans for w, spans in target.items() if workers[w].assignment.spans != spans}
    return dict(sorted(left.items(), key=lambda item: (bool(_lost(workers[item[0]], item[1])), item[0])))


def next_step(state: ClusterState, target: Target) -> dict[WorkerId, Spans]:
    """Who is to change next, all at once; nobody if no block of theirs can be spared, or all is done."""
    step: dict[WorkerId, Spans] = {}
    at_once = max(LEAST_AT_ONCE, int(SHARE_AT_ONCE * len(state.workers)))
    for worker_id, spans in pending(state, target).items():
        if len(step) < at_once and is_safe(state, {**step, worker_id: spans}):
            step[worker_id] = spans
    return step


def is_safe(state: ClusterState, step: Target) -> bool:
    """Whether no block that is served now is unserved for a moment while these workers change."""
    touched = {span.model for w, spans in step.items() for span in _lost(state.workers[w], spans)}
    return all(
        min(ready_counts(state.workers.values(), state.models[name])) == 0
        or min(_counts_throughout(state, state.models[name], step)) > 0
        for name in touched
    )


def reachable(state: ClusterState, target: Target) -> dict[WorkerId, Spans]:
    """Of the target what safe steps lead to, all that is asked of a worker having been ready before the next."""
    reached: dict[WorkerId, Spans] = {}
    while step := next_step(state, target):
        reached |= step
        state = all_ready(state, step)
    return reached


def all_ready(state: ClusterState, changes: Target) -> ClusterState:
    """The state once these workers hold and serve this, and nothing else."""
    workers = dict(state.workers)
    for worker_id, spans in changes.items():
        worker = workers[worker_id]
        assignment = replace(worker.assignment, spans=spans, leaving=(), unwanted_bytes=0)
        reported = tuple(status_as(span, "ready", "") for span in spans)
        workers[worker_id] = replace(worker, assignment=assignment, reported=reported)
    return replace(state, workers=workers)


def _lost(worker: WorkerRecord, spans: Spans) -> list[SpanAssignment]:
    return [span for span in worker.served if span not in spans]


def _counts_throughout(state: ClusterState, model: ModelRecord, step: Target) -> list[int]:
    """For each block, how many serve it all the time while the step is carried out."""
    ranges = [
        blocks
        for worker in state.workers.values()
        if worker.is_routable
        for blocks in _served_throughout(state, model, worker, step.get(worker.worker_id))
    ]
    return counts(ranges, model.manifest.n_blocks)


def _served_throughout(
    state: ClusterState, model: ModelRecord, worker: WorkerRecord, spans: Spans | None
) -> list[BlockRange]:
    if spans is None:
        return [span.blocks for span in spans_of(model, worker.served)]
    goes_on = handed_over(state, worker, replace(worker.assignment, spans=spans)).leaving
    stays = [span.blocks for span in spans_of(model, worker.served) if span in spans]
    return stays + [
        BlockRange(max(old.blocks.start, new.blocks.start), min(old.blocks.end, new.blocks.end))
        for old in spans_of(model, goes_on)
        for new in spans_of(model, spans)
        if old.blocks.overlaps(new.blocks)
    ]
