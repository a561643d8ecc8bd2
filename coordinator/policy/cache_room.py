"""Which workers a session is too long for, however little else they have to do; in numbers and in words."""

from __future__ import annotations

from coordinator.policy.coverage import counts, has_failed, spans_of
from coordinator.policy.routing import Route
from coordinator.policy.state import ClusterState, WorkerRecord
from protocol.control_messages import SpanAssignment
from protocol.ids import BlockRange, ModelName, WorkerId

_MAX_NAMES = 4


def too_small(state: ClusterState, name: ModelName, n_positions: int) -> frozenset[WorkerId]:
    """Workers whose memory for caches has no room for so many positions of their whole span of the model."""
    return frozenset(
        worker_id
        for worker_id, worker in state.workers.items()
        if worker.heartbeat is not None and n_positions > worker.heartbeat.longest_sessions.get(name, n_positions)
    )


def without_room(state: ClusterState, route: Route, n_positions: int) -> frozenset[WorkerId]:
    """Workers of the route with no room for them in the blocks that they are to run, perhaps few of theirs."""
    found = []
    for hop in route.hops:
        worker = state.workers[hop.worker_id]
        spans = spans_of(state.models[route.model], worker.served)
        holding = [span for span in spans if span.blocks.contains(hop.blocks)]
        room = None if worker.heartbeat is None else worker.heartbeat.longest_sessions.get(route.model)
        if room is None:
            continue
        span = max(holding, key=lambda span: len(span.blocks), default=None)
        used, held = _cached(worker, span, hop.blocks) if span is not None else (1, 0)
        if n_positions * used > room * held:
            found.append(hop.worker_id)
    return frozenset(found)


def _cached(worker: WorkerRecord, span: SpanAssignment, blocks: BlockRange) -> tuple[int, int]:
    """What a position takes in the caches of these blocks, and of the span: bytes, or blocks of the same size."""
    status = worker.status_of(span)
    by_block = status.kv_bytes_by_block if status is not None else ()
    if not by_block:
        return len(blocks), len(span.blocks)
    return sum(by_block[blocks.start - span.blocks.start : blocks.end - span.blocks.start]), sum(by_block)


def others_come(
    state: ClusterState, name: ModelName, without: frozenset[WorkerId], *, awaits_lost: bool = False
) -> bool:
    """Whether all blocks have holders besides `without`, some of whom only aren't ready, or heard of, just now.

    With `awaits_lost`, those who are lost, and whose blocks nobody could take, may come back.
    """
    model = state.models[name]
    held = [
        (span, worker.is_routable and span in worker.ready)
        for worker in state.workers.values()
        if worker.worker_id not in without
        and (worker.counts_as_holder or (awaits_lost and worker.presence == "lost"))
        for span in spans_of(model, worker.assignment.spans)
        if not has_failed(worker, span)
    ]
    n_holders = counts((span.blocks for span, _ in held), model.manifest.n_blocks)
    return all(n_holders) and not all(is_ready for _, is_ready in held)


def too_long_words(state: ClusterState, name: ModelName, n_positions: int, left_out: frozenset[WorkerId]) -> str:
    """What is too long for whom, and what to do."""
    model = state.models[name]
    rooms = {
        worker_id: worker.heartbeat.longest_sessions.get(name, 0)
        for worker_id, worker in state.workers.items()
        if worker_id in left_out and worker.heartbeat is not None and spans_of(model, worker.served)
    }
    who = [f"for {rooms[worker_id]:,} on {worker_id}" for worker_id in sorted(rooms, key=lambda w: (-rooms[w], w))]
    more = f" and for less on {len(who) - _MAX_NAMES} more" if len(who) > _MAX_NAMES else ""
    return (
        f"{n_positions:,} positions, of prompt and answer, don't fit into the caches of {len(who)} of the workers "
        f"that serve {name}, even with nothing else there: there is room {', '.join(who[:_MAX_NAMES])}{more}. "
        "Ask for fewer tokens; or have those workers join with more --memory (or --kv-memory)"
    )
