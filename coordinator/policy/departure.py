"""When a worker that is to leave may go: once others serve its blocks, or as soon as it waits for them in vain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from coordinator.policy.coverage import counts, gaps, has_failed, ready_counts, spans_of
from coordinator.policy.state import ClusterState, ModelRecord, WorkerRecord
from protocol.ids import BlockRange


def why_now(state: ClusterState, worker: WorkerRecord, now_s: float, *, is_placed: bool) -> str | None:
    """Why the worker is to take nothing new from now on, in words; None while it is to go on.

    `is_placed`: whether others have been given all that they could be.
    """
    assert worker.departure is not None
    reason, unserved = worker.departure.reason, list(_unserved(state, worker))
    if not unserved:
        return reason
    for model, blocks in unserved if is_placed else ():
        nobodys = gaps([n if i in _indices(blocks) else 1 for i, n in enumerate(_coming(state, model))])
        if nobodys:
            return f"{reason}, and nobody else has room for {_words((model, run) for run in nobodys)}"
    if now_s >= worker.departure.by_s:
        limit_s = state.settings.longest_departure_s
        return f"{reason}, and {_words(unserved)} weren't ready elsewhere within {limit_s:.0f} s"
    return None


def waits_for(state: ClusterState, worker: WorkerRecord, now_s: float) -> str:
    """What a worker that is to leave still waits for, in words."""
    assert worker.departure is not None
    unserved = list(_unserved(state, worker))
    names = {
        other.worker_id
        for other in _staying(state)
        for model, blocks in unserved
        if any(span.blocks.overlaps(blocks) for span in spans_of(model, other.assignment.spans))
    }
    left_s = max(0.0, worker.departure.by_s - now_s)
    return (
        f"{worker.departure.reason}; it serves on until {_words(unserved)} are ready on "
        f"{', '.join(sorted(names)) or 'others'}, {left_s:.0f} s at most; then it finishes what runs and leaves"
    )


def is_served_elsewhere(state: ClusterState, worker: WorkerRecord) -> bool:
    """Whether others who stay serve all that the worker does."""
    return not any(_unserved(state, worker))


def _words(runs: Iterable[tuple[ModelRecord, BlockRange]]) -> str:
    return " and ".join(f"blocks {blocks} of {model.name}" for model, blocks in runs)


def _unserved(state: ClusterState, worker: WorkerRecord) -> Iterator[tuple[ModelRecord, BlockRange]]:
    """Runs of blocks that the worker serves and nobody else who stays does."""
    for model in state.models.values():
        own = {i for span in spans_of(model, worker.served) for i in _indices(span.blocks)}
        if not own:
            continue
        if model.name not in state.n_staying:
            state.n_staying[model.name] = ready_counts(_staying(state), model)
        for run in gaps([n if i in own else 1 for i, n in enumerate(state.n_staying[model.name])]):
            yield model, run


def _coming(state: ClusterState, model: ModelRecord) -> list[int]:
    """For each block, how many who stay hold it or are loading it."""
    ranges = (
        span.blocks
        for other in _staying(state)
        for span in spans_of(model, other.assignment.spans)
        if not has_failed(other, span)
    )
    return counts(ranges, model.manifest.n_blocks)


def _staying(state: ClusterState) -> list[WorkerRecord]:
    return [w for w in state.workers.values() if w.is_routable and w.departure is None]


def _indices(blocks: BlockRange) -> range:
    return range(blocks.start, blocks.end)
