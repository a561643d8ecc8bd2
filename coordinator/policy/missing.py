"""Which blocks of a model can't be routed to, why, and what to do about it, in words."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.policy.board import Board, can_run
from coordinator.policy.changes import is_starting
from coordinator.policy.coverage import counts, gaps, has_failed, ready_counts, ready_spans, spans_of
from coordinator.policy.quantising import usual_format, what_would_hold
from coordinator.policy.sizing import KV_TARGETS, span_bytes
from coordinator.policy.standing import listed, named, span_words
from coordinator.policy.state import ClusterState, ModelRecord, WorkerRecord
from coordinator.policy.worker_clocks import clock_words
from protocol.ids import BlockRange, ModelName, WorkerId

_MAX_RUNS_IN_WORDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingBlocks:
    """There is no route."""

    model: ModelName
    blocks: tuple[BlockRange, ...]
    """Runs of blocks that no worker can run now, in order."""
    is_on_its_way: bool
    """Whether waiting helps: each of them has a worker that hasn't failed to hold it, or may soon have one."""
    message: str


def missing_blocks(
    state: ClusterState, model: ModelRecord, exclude: frozenset[WorkerId] = frozenset()
) -> MissingBlocks | None:
    """What is missing for a route through the model without `exclude`; None if nothing is."""
    workers = [w for w in state.workers.values() if w.worker_id not in exclude]
    runs = gaps(ready_counts(workers, model))
    if not runs:
        return None
    assigned = [
        (worker, span)
        for worker in state.workers.values()
        if worker.counts_as_holder
        for span in spans_of(model, worker.assignment.spans)
    ]
    held = [(worker, span.blocks) for worker, span in assigned]
    hopeful = ((w, s) for w, s in assigned if not has_failed(w, s) and not w.takes_no_tickets)
    coming = counts((s.blocks for _, s in hopeful), model.manifest.n_blocks)
    if _is_about_to_be_given(state, model):
        coming = [n or not any(b.start <= i < b.end for _, b in held) for i, n in enumerate(coming)]
    sentences = []
    for run in runs:
        nobodys = gaps([sum(b.start <= i < b.end for _, b in held) for i in range(run.start, run.end)])
        sentences += [_unheld(state, model, BlockRange(run.start + g.start, run.start + g.end)) for g in nobodys]
        if not nobodys or len(nobodys) > 1 or len(nobodys[0]) < len(run):
            sentences += [_unready(model, run, w, exclude) for w, b in held if b.overlaps(run)]
    n_more = len(sentences) - _MAX_RUNS_IN_WORDS
    more = [f"and {n_more} more such"] if n_more > 0 else []
    return MissingBlocks(
        model=model.name,
        blocks=runs,
        is_on_its_way=all(coming[i] for run in runs for i in range(run.start, run.end)),
        message="; ".join([*sentences[:_MAX_RUNS_IN_WORDS], *more]),
    )


def _is_about_to_be_given(state: ClusterState, model: ModelRecord) -> bool:
    """Whether blocks that nobody holds may find a holder without anybody doing anything more."""
    if _starting(state):
        return True
    here = (w for w in state.workers.values() if w.can_be_assigned)
    return state.changed_s is not None and any(can_run(worker, model) for worker in here)


def _starting(state: ClusterState) -> list[WorkerRecord]:
    """Workers that have enrolled, hold nothing, and aren't connected yet."""
    return [w for w in state.workers.values() if w.presence == "expected" and not w.assignment.spans]


def _unready(model: ModelRecord, run: BlockRange, worker: WorkerRecord, exclude: frozenset[WorkerId]) -> str:
    who = named(worker)
    what = f"blocks {run} of {model.name} are held by {who}"
    if worker.worker_id in exclude:
        return f"{what}, which the request excludes"
    if worker.kept_until_s is not None and is_starting(worker):
        return f"{what}, which is starting again: wait"
    if worker.kept_until_s is not None:
        return f"{what}, which was stopped: start it again, or others get them within seconds if they have room"
    if worker.presence == "here" and worker.takes_no_tickets:
        return f"{what}, which lets nobody in: {clock_words(worker)}"
    if not worker.is_routable:
        return f"{what}, which is not heard of at the moment; wait, or look after it"
    ready = ready_spans(worker, model)
    waiting = [s for s in spans_of(model, worker.assignment.spans) if s not in ready and s.blocks.overlaps(run)]
    return f"on {who}, " + " and ".join(span_words(s, worker.status_of(s)) for s in waiting)


def _unheld(state: ClusterState, model: ModelRecord, run: BlockRange) -> str:
    what = f"blocks {run} of {model.name} are held by nobody"
    here = [w for w in state.workers.values() if w.can_be_assigned]
    if starting := _starting(state):
        return f"{what}; {listed([named(w) for w in starting])} may get them: enrolled, not connected yet"
    if not here and any(w.presence == "here" and w.is_shut_out for w in state.workers.values()):
        return f"{what}: the clocks of workers are wrong, or were a moment ago (`coord status` says what to do)"
    if not here:
        return f"{what}: no worker is connected; run `worker join` on a machine"
    if not any(worker.only_model in (None, model.name) for worker in here):
        return (
            f"{what}: all workers were started for other models (--model); run `worker join` without on a machine"
        )
    if state.changed_s is not None:
        return f"{what}; they are given out once nothing has changed for {state.settings.settle_s:g} s"
    board = Board.of(state)
    open_to_it = [w for w in here if w.pinned_blocks is None and can_run(w, model)]
    held_as = usual_format(here)
    room = sum(max(0, board.room_bytes(w, KV_TARGETS[-1])) for w in open_to_it)
    needed = span_bytes(model.manifest, run, held_as, KV_TARGETS[-1])
    way_out = what_would_hold(board, model)
    machine = f"`worker join` on another machine{f'; {way_out}' if way_out else ''}"
    if needed > room:
        return (
            f"{what}; {(needed - room) / 1e9:.2f} GB of memory more are needed (they take {needed / 1e9:.2f} GB in "
            f"{held_as}, {room / 1e9:.2f} GB are left); {machine}"
        )
    return (
        f"{what}; they take {needed / 1e9:.2f} GB in {held_as}, and the {room / 1e9:.2f} GB left are on workers "
        f"that have other blocks, too little each, or failed; {machine}"
    )
