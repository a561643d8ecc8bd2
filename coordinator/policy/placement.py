"""Who holds which blocks: what is to change, and in words why; nothing that is held and needed moves.

Models in the order in which they were added. For each: pinned workers get what their operator fixed; blocks that
nobody holds go to workers with room (`gap_filling`), by measured speed. A model that can't be completed so, and
thus can't be used anyway, is laid out anew if that completes it. When all is held, a worker without anything
becomes a replica of what the fewest hold, else a spare.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from coordinator.policy.board import Board
from coordinator.policy.coverage import runs
from coordinator.policy.gap_filling import Candidate, Filling, filled
from coordinator.policy.sizing import KV_TARGETS
from coordinator.policy.state import ClusterState, ModelRecord, WorkerRecord
from protocol.ids import BlockRange, WorkerId
from protocol.messages import SpanAssignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What a worker is to hold from now on."""

    spans: tuple[SpanAssignment, ...]
    reason: str
    is_pinned: bool = False


def placement(state: ClusterState) -> Mapping[WorkerId, Placed]:
    """What to change, by worker: other spans than it has, or another reason for having none."""
    board = Board.of(state)
    reasons: dict[WorkerId, str] = {}
    for worker in board.assignable:
        if worker.pinned_blocks is not None:
            reasons[worker.worker_id] = _pin(board, worker)
    # a second pass stands on what the first has placed, and may complete what it left out
    is_complete = [_fill_model(board, model) or _fill_model(board, model) for model in state.models.values()]
    if all(is_complete):
        for worker in board.assignable:
            if not board.spans[worker.worker_id] and worker.pinned_blocks is None:
                _make_replica(board, worker)
    return _changes(board, reasons, complete=all(is_complete))


def _changes(board: Board, pin_reasons: Mapping[WorkerId, str], *, complete: bool) -> dict[WorkerId, Placed]:
    changes: dict[WorkerId, Placed] = {}
    for worker in board.assignable:
        spans = board.spans[worker.worker_id]
        has_new_spans = spans != worker.assignment.spans
        reason = pin_reasons.get(worker.worker_id) or _reason(board, worker, complete=complete)
        if has_new_spans or (not spans and reason != worker.assignment.reason):
            is_pinned = worker.worker_id in pin_reasons
            changes[worker.worker_id] = Placed(spans=spans, reason=reason, is_pinned=is_pinned)
    return changes


def _reason(board: Board, worker: WorkerRecord, *, complete: bool) -> str:
    spans = board.spans[worker.worker_id]
    if spans:
        what = " and ".join(f"blocks {span.blocks} of {span.model}" for span in spans)
        return f"{what}: chosen by free memory and measured speed"
    if not board.state.models:
        return "no model is served yet; add one with `coord model add NAME SOURCE`"
    room = board.room_bytes(worker, KV_TARGETS[-1]) / 1e9
    if complete:
        return (
            f"every block of every model is held, and {room:.2f} GB of memory here are too few to hold any of them "
            "again; it is a spare"
        )
    return f"{room:.2f} GB of memory here are too few for what is missing; it is a spare until workers come or go"


# ------------------------------------------------------------------ pinned by an operator


def _pin(board: Board, worker: WorkerRecord) -> str:
    """Give a worker what its operator fixed, whatever its memory; the reason in words."""
    models, blocks = board.state.models, worker.pinned_blocks
    assert blocks is not None
    name = worker.pinned_model or next(iter(models), None)
    model = models.get(name) if name is not None else None
    board.spans[worker.worker_id] = ()
    if model is None:
        wanted = worker.pinned_model or "a model"
        return f"pinned to blocks {blocks} of {wanted}, which isn't served; add it with `coord model add`"
    if blocks.end > model.manifest.n_blocks:
        return (
            f"pinned to blocks {blocks}, but {model.name} has {model.manifest.n_blocks}; "
            f"start the worker with --blocks within 0:{model.manifest.n_blocks}"
        )
    span = SpanAssignment(model=model.name, revision=model.revision, blocks=blocks)
    board.spans[worker.worker_id] = (span,)
    return f"pinned to blocks {blocks} of {model.name} by its operator (--blocks)"


# ------------------------------------------------------------------ blocks that nobody holds


def _fill_model(board: Board, model: ModelRecord) -> bool:
    """Give out what nobody holds of a model; whether all of it is held then.

    Moving nothing comes before room for long contexts, and that before leaving blocks out.
    """
    if not board.gaps(model):
        return True
    attempts: list[tuple[Board, int]] = [(board.copy(), kv_tokens) for kv_tokens in KV_TARGETS]
    attempts += [(board.without(model), kv_tokens) for kv_tokens in KV_TARGETS]
    for trial, kv_tokens in attempts:
        _fill_gaps(trial, model, kv_tokens)
        if not trial.gaps(model):
            board.take(trial)
            return True
    board.take(attempts[len(KV_TARGETS) - 1][0])
    return False


def _fill_gaps(board: Board, model: ModelRecord, kv_tokens: int) -> None:
    for gap in board.gaps(model):
        for worker_id, blocks in _best_filling(board, model, gap, kv_tokens).given.items():
            board.give(worker_id, model, blocks)


def _best_filling(board: Board, model: ModelRecord, gap: BlockRange, kv_tokens: int) -> Filling:
    """The least disturbing way that fills the gap; if none does, the one that fills most."""
    tried: list[Filling] = []
    for filling in _fillings(board, model, gap, kv_tokens):
        if filling.n_missing == 0:
            return filling
        tried.append(filling)
    return min(tried, key=lambda filling: filling.n_missing)


def _fillings(board: Board, model: ModelRecord, gap: BlockRange, kv_tokens: int) -> Iterator[Filling]:
    """Ways to fill the gap, the least disturbing first."""
    n_blocks = model.manifest.n_blocks
    free = board.free(model, kv_tokens)
    if len(gap) < n_blocks:
        # a part that was lost: one worker for it costs a route fewer hops than several
        yield from (filled(gap, n_blocks, [candidate]) for candidate in _by_speed(free))
    yield filled(gap, n_blocks, free)
    movable = board.redundant(model, kv_tokens)
    yield filled(gap, n_blocks, free + movable)
    moved = frozenset(candidate.worker_id for candidate in movable)
    yield filled(
        gap,
        n_blocks,
        free + movable,
        left=board.grower(model, gap, kv_tokens, is_left=True, exclude=moved),
        right=board.grower(model, gap, kv_tokens, is_left=False, exclude=moved),
    )


def _by_speed(candidates: list[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda c: (c.seconds_per_block, c.worker_id))


# ------------------------------------------------------------------ replicas and spares


def _make_replica(board: Board, worker: WorkerRecord) -> None:
    """Give the worker the largest range it can hold of the blocks that the fewest hold, if any fits."""
    for kv_tokens in KV_TARGETS:
        options = []
        for i, model in enumerate(board.state.models.values()):
            candidate = board.candidate(worker, model, kv_tokens)
            for blocks, n_holders in runs(board.counts(model)):
                part = _largest_part(candidate, blocks, model.manifest.n_blocks)
                if part is not None:
                    options.append((n_holders, -len(part), i, part.start, model, part))
        if options:
            *_, model, part = min(options, key=lambda option: option[:4])
            board.give(worker.worker_id, model, part)
            return


def _largest_part(candidate: Candidate, blocks: BlockRange, n_blocks: int) -> BlockRange | None:
    """The largest part of `blocks` that fits: all, else from its start, else up to its end, else from within."""
    owns_first, owns_last = blocks.start == 0, blocks.end == n_blocks
    if candidate.cap(is_first=owns_first, is_last=owns_last) >= len(blocks):
        return blocks
    n = min(candidate.cap(is_first=owns_first), len(blocks) - 1)
    if n > 0:
        return BlockRange(blocks.start, blocks.start + n)
    n = min(candidate.cap(is_last=owns_last), len(blocks) - 1)
    if n > 0:
        return BlockRange(blocks.end - n, blocks.end)
    n = min(candidate.cap(), len(blocks) - 2)
    return BlockRange(blocks.start + 1, blocks.start + 1 + n) if n > 0 else None
