"""Routes that begin and end on workers whose trust an operator pinned: the first and the last see the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from coordinator.policy.coverage import has_failed, ready_spans, spans_of
from coordinator.policy.missing import MissingBlocks
from coordinator.policy.segments import Segment
from coordinator.policy.standing import named
from coordinator.policy.state import ClusterState, ModelRecord, WorkerRecord
from protocol.ids import BlockRange, WorkerId

_MAX_NAMES = 4


def without_ends(segments: Sequence[Segment], n_blocks: int) -> tuple[Segment, ...]:
    """The segments of a worker that isn't pinned without the first and the last block.

    So a way through all blocks begins and ends on pinned workers, and whoever isn't may still hold all between.
    """
    kept = []
    for segment in segments:
        start, end = max(segment.blocks.start, 1), min(segment.blocks.end, n_blocks - 1)
        if (start, end) == (segment.blocks.start, segment.blocks.end):
            kept.append(segment)
        elif start < end:
            kept.append(replace(segment, blocks=BlockRange(start, end)))
    return tuple(kept)


def missing_ends(
    state: ClusterState, model: ModelRecord, covered: BlockRange, exclude: frozenset[WorkerId] = frozenset()
) -> MissingBlocks | None:
    """Which ends of the blocks `covered` no pinned worker has ready, who is pinned, and what to do; None if none.

    For blocks that are all ready on somebody.
    """
    pinned = [w for w in state.workers.values() if w.trust.may_hold_ends and w.worker_id not in exclude]
    ends = (BlockRange(covered.start, covered.start + 1), BlockRange(covered.end - 1, covered.end))
    missing = tuple(dict.fromkeys(end for end in ends if not any(_has_ready(w, model, end) for w in pinned)))
    if not missing:
        return None
    return MissingBlocks(
        model=model.name,
        blocks=missing,
        is_on_its_way=all(any(_may_get(worker, model, end) for worker in pinned) for end in missing),
        message=_words(state, model, covered, missing, pinned),
    )


def _has_ready(worker: WorkerRecord, model: ModelRecord, end: BlockRange) -> bool:
    return worker.is_routable and any(span.blocks.contains(end) for span in ready_spans(worker, model))


def _may_get(worker: WorkerRecord, model: ModelRecord, end: BlockRange) -> bool:
    spans = spans_of(model, worker.assignment.spans) if worker.counts_as_holder else ()
    return any(span.blocks.contains(end) and not has_failed(worker, span) for span in spans)


def _words(
    state: ClusterState,
    model: ModelRecord,
    covered: BlockRange,
    missing: Sequence[BlockRange],
    pinned: Sequence[WorkerRecord],
) -> str:
    ends = " and ".join("the first" if end.start == covered.start else "the last" for end in missing)
    blocks = ", ".join(str(end) for end in missing)
    holders = [
        w for w in state.workers.values() if any(_has_ready(w, model, end) for end in missing) and w not in pinned
    ]
    return (
        f"blocks {covered.start} and {covered.end - 1} of {model.name}, where its route begins and ends, must be "
        f"on workers whose trust an operator pinned, and {ends} ({blocks}) is ready on none of them; pinned are "
        f"{_named(pinned, model) or 'none'}; pin one that has it (`coord trust pin WORKER 1`: "
        f"{_named(holders, model) or 'nobody has it'}), or have a pinned one hold it (`worker join --blocks "
        f"{missing[0]}`)"
    )


def _named(workers: Sequence[WorkerRecord], model: ModelRecord) -> str:
    names = [f"{named(worker)} with {_held(worker, model)}" for worker in workers[:_MAX_NAMES]]
    more = [f"{len(workers) - _MAX_NAMES} more"] if len(workers) > _MAX_NAMES else []
    return ", ".join([*names, *more])


def _held(worker: WorkerRecord, model: ModelRecord) -> str:
    spans = spans_of(model, worker.assignment.spans)
    return "blocks " + " and ".join(str(span.blocks) for span in spans) if spans else "no block of it"
