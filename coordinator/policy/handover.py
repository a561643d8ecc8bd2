"""Make before break: which spans a worker serves on while it loads others, and which changes break a route.

The arithmetic is the worker's own, on the safe side: it keeps what it has until all that it is to have is ready, if
the weights of both fit into its memory; else it drops what is no longer wanted first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from coordinator.policy.coverage import counts, ready_counts, spans_of
from coordinator.policy.sizing import capacity_bytes, spans_bytes
from coordinator.policy.state import Assignment, ClusterState, WorkerRecord
from protocol.control_messages import SpanAssignment
from protocol.ids import ModelName, WorkerId

Spans = tuple[SpanAssignment, ...]


def handed_over(
    state: ClusterState, worker: WorkerRecord, assignment: Assignment, dropped: ModelName | None = None
) -> Assignment:
    """The new assignment with what the worker serves on while it loads the spans: nothing if both don't fit.

    `dropped`: a model that is served no longer.
    """
    old, spans = worker.assignment, assignment.spans
    served = worker.served
    if all(span in served for span in spans):
        return replace(assignment, leaving=(), unwanted_bytes=0)
    if worker.device is None or old.unwanted_bytes is None:
        return replace(assignment, leaving=(), unwanted_bytes=None)
    held_as = worker.device.held_as
    taken_back = [span for span in old.leaving if span in spans]
    taken_away = [span for span in old.spans if span not in spans]
    unwanted_bytes = (
        old.unwanted_bytes + spans_bytes(state, taken_away, held_as, 0) - spans_bytes(state, taken_back, held_as, 0)
    )
    fits = unwanted_bytes + spans_bytes(state, spans, held_as, 0) <= capacity_bytes(worker.device)
    leaving = tuple(span for span in served if span not in spans and span.model != dropped)
    return replace(assignment, leaving=leaving if fits else (), unwanted_bytes=unwanted_bytes)


def reported_on(worker: WorkerRecord) -> WorkerRecord:
    """The worker after it reported, without what it needs no longer serve on."""
    ready, assignment = worker.ready, worker.assignment
    if len(ready) == len(assignment.spans):
        return replace(worker, assignment=replace(assignment, leaving=(), unwanted_bytes=0))
    replaced = {span.model for span in ready}
    leaving = tuple(span for span in assignment.leaving if span.model not in replaced)
    return replace(worker, assignment=replace(assignment, leaving=leaving))


def breaks_a_route(state: ClusterState, changes: Mapping[WorkerId, Spans]) -> bool:
    """Whether these new spans, given all at once, leave a model without a route that has one now."""
    after: dict[WorkerId, Spans] = {}
    for worker_id, spans in changes.items():
        worker = state.workers[worker_id]
        stay = tuple(span for span in worker.served if span in spans)
        after[worker_id] = (*stay, *handed_over(state, worker, replace(worker.assignment, spans=spans)).leaving)
    lost = {w: [s for s in state.workers[w].served if s not in spans] for w, spans in after.items()}
    for model in state.models.values():
        if not any(spans_of(model, spans) for spans in lost.values()):
            continue
        before = ready_counts(state.workers.values(), model)
        taken = counts((s.blocks for spans in lost.values() for s in spans_of(model, spans)), len(before))
        if min(before) > 0 and min(n - m for n, m in zip(before, taken, strict=True)) <= 0:
            return True
    return False
