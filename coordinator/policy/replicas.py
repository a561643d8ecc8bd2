"""More holders of blocks that are held already: as many as a model wants, then whatever spares have room for."""

from __future__ import annotations

from coordinator.policy.board import Board
from coordinator.policy.coverage import runs, spans_of
from coordinator.policy.gap_filling import Candidate, filled
from coordinator.policy.laying_out import laid_out
from coordinator.policy.mending import by_speed
from coordinator.policy.sizing import KV_TARGETS
from coordinator.policy.state import ModelRecord, WorkerRecord
from protocol.ids import BlockRange, WorkerId


def add_pipelines(board: Board) -> None:
    """Have workers that hold nothing run whole models beside what is there, each model with its share of them.

    One plan for each model, so that a large fleet takes no longer: who is left becomes a replica of something.
    """
    models = sorted(
        board.state.models.values(), key=lambda m: (min(board.counts(m)) - m.n_replicas, min(board.counts(m)))
    )
    idle = [worker.worker_id for worker in board.assignable if not board.spans[worker.worker_id]]
    for i, model in enumerate(models):
        share = frozenset(idle[i :: len(models)])
        for worker_id, blocks in _pipelines_of(board, model, share).items():
            board.give(worker_id, model, blocks)


def _pipelines_of(board: Board, model: ModelRecord, workers: frozenset[WorkerId]) -> dict[WorkerId, BlockRange]:
    """With room for long contexts if that is possible."""
    for kv_tokens in KV_TARGETS:
        free = [candidate for candidate in board.free(model, kv_tokens) if candidate.worker_id in workers]
        ranges = laid_out(board.state, model, free, "many-streams", is_sparing=False)
        if ranges:
            return ranges
    return {}


def add_replicas(board: Board, model: ModelRecord) -> None:
    """Have every block of the model held by as many workers as it wants, as far as that takes nothing from anybody.

    Spares come first, then workers that hold another model, then ranges grow; each of these by measured speed.
    """
    for n in range(1, model.n_replicas):
        for are_spare in (True, False):
            for blocks, n_holders in runs(board.counts(model)):
                if n_holders == n:
                    _add_holders(board, model, blocks, are_spare=are_spare)
    if min(board.counts(model)) < model.n_replicas:
        _grow(board, model)


def _add_holders(board: Board, model: ModelRecord, blocks: BlockRange, *, are_spare: bool) -> None:
    """Give the run to workers that hold nothing of the model: to one of them if it fits, else to several."""
    n_blocks = model.manifest.n_blocks
    for kv_tokens in KV_TARGETS:
        free = board.free(model, kv_tokens, gently=True)
        candidates = by_speed([c for c in free if bool(board.spans[c.worker_id]) != are_spare])
        alone = (filled(blocks, n_blocks, [c]) for c in candidates if c.cap() >= len(blocks))
        filling = next((f for f in alone if f.n_missing == 0), None) or filled(blocks, n_blocks, candidates)
        for worker_id, part in filling.given.items():
            board.give(worker_id, model, part)
        if filling.given:
            return


def _grow(board: Board, model: ModelRecord) -> None:
    """Let ranges grow over neighbouring blocks that too few hold."""
    for kv_tokens in KV_TARGETS:
        workers = {worker.worker_id: worker for worker in board.growable(model)}
        candidates = [board.candidate(worker, model, kv_tokens, gently=True) for worker in workers.values()]
        for candidate in by_speed(candidates):
            held = spans_of(model, board.spans[candidate.worker_id])[0].blocks
            grown = _grown(candidate, held, board.counts(model), model.n_replicas)
            if grown != held:
                board.give(candidate.worker_id, model, grown)


def _grown(candidate: Candidate, held: BlockRange, n_of: list[int], n_wanted: int) -> BlockRange:
    """The range with as many of the blocks after and before it as too few hold and there is room for."""
    blocks = held
    while blocks.end < len(n_of) and n_of[blocks.end] < n_wanted:
        longer = BlockRange(blocks.start, blocks.end + 1)
        if not _fits(candidate, held, longer, len(n_of)):
            break
        blocks = longer
    while blocks.start > 0 and n_of[blocks.start - 1] < n_wanted:
        longer = BlockRange(blocks.start - 1, blocks.end)
        if not _fits(candidate, held, longer, len(n_of)):
            break
        blocks = longer
    return blocks


def _fits(candidate: Candidate, held: BlockRange, longer: BlockRange, n_blocks: int) -> bool:
    gains_first = longer.start == 0 < held.start
    gains_last = longer.end == n_blocks > held.end
    return candidate.cap(is_first=gains_first, is_last=gains_last) >= len(longer) - len(held)


def make_replica(board: Board, worker: WorkerRecord) -> None:
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
