"""Blocks of a model that nobody holds: given to workers with room, by moving others, or by a layout made anew.

A model of which nobody holds anything is planned as a whole (`laying_out`). What is served is only taken away
where routes stay, or where there is no route anyway. Gently means that nobody loses anything: only workers with
room beside what they serve now take part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from coordinator.policy.board import Board
from coordinator.policy.gap_filling import Candidate, Filling, filled
from coordinator.policy.laying_out import laid_out
from coordinator.policy.sizing import KV_TARGETS
from coordinator.policy.state import ModelRecord
from protocol.ids import BlockRange


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How to give blocks out."""

    kv_tokens: int
    """Positions of cache that each worker is to have room for."""
    is_gentle: bool = False


def fill_model(board: Board, model: ModelRecord) -> bool:
    """Give out what nobody holds of a model; whether all of it is held then.

    Moving nothing comes before room for long contexts, and that before leaving blocks out. A model that can't be
    completed so, and thus can't be used anyway, is laid out anew if that completes it.
    """
    if not board.gaps(model):
        return True
    most = board
    for layout, how in _attempts(board, model):
        trial = layout.copy()
        _fill_gaps(trial, model, how)
        if trial.breaks_a_route():
            continue
        if not trial.gaps(model):
            board.take(trial)
            return True
        if layout is board:
            most = trial
    board.take(most)
    return False


def take_over(board: Board, model: ModelRecord) -> None:
    """Give blocks that only workers hold that have been away for a moment to others too, if that is all of them.

    Only gently: such a worker may be back any moment, and with it all that was served.
    """
    firm = board.without_doubted()
    if not firm.gaps(model):
        return
    for kv_tokens in KV_TARGETS:
        trial = firm.copy()
        _fill_gaps(trial, model, Manner(kv_tokens=kv_tokens, is_gentle=True))
        if not trial.gaps(model):
            board.take(trial, workers=[worker.worker_id for worker in board.assignable])
            return


def back_up(board: Board, model: ModelRecord) -> None:
    """Give blocks that nobody holds who is trusted to those who are as well, as far as they have room.

    Only gently: what is held by others is in use until it fails.
    """
    trusted = board.of_trusted()
    if not trusted.assignable or not trusted.gaps(model):
        return
    trials = []
    for kv_tokens in KV_TARGETS:
        trial = trusted.copy()
        _fill_gaps(trial, model, Manner(kv_tokens=kv_tokens, is_gentle=True))
        trials.append(trial)
    fullest = min(trials, key=lambda trial: sum(len(gap) for gap in trial.gaps(model)))
    board.take(fullest, workers=[worker.worker_id for worker in trusted.assignable])


def _attempts(board: Board, model: ModelRecord) -> Iterator[tuple[Board, Manner]]:
    """Where to start from and how to go on, the least disturbing first."""
    if board.has_route(model):
        yield from ((board, Manner(kv_tokens=kv_tokens, is_gentle=True)) for kv_tokens in KV_TARGETS)
    yield from ((board, Manner(kv_tokens=kv_tokens)) for kv_tokens in KV_TARGETS)
    yield from ((board.without(model), Manner(kv_tokens=kv_tokens)) for kv_tokens in KV_TARGETS)


def _fill_gaps(board: Board, model: ModelRecord, how: Manner) -> None:
    placement = board.state.settings.placement
    if placement != "spread" and board.gaps(model) == (BlockRange(0, model.manifest.n_blocks),):
        free = board.free(model, how.kv_tokens, gently=how.is_gentle)
        # with other models, pipelines beside the first come when all are held (`replicas.add_pipelines`)
        has_others = len(board.state.models) > 1
        for worker_id, blocks in laid_out(board.state, model, free, placement, is_sparing=has_others).items():
            board.give(worker_id, model, blocks)
    for gap in board.gaps(model):
        for worker_id, blocks in _best_filling(board, model, gap, how).given.items():
            board.give(worker_id, model, blocks)


def _best_filling(board: Board, model: ModelRecord, gap: BlockRange, how: Manner) -> Filling:
    """The least disturbing way that fills the gap; if none does, the one that fills most."""
    tried: list[Filling] = []
    for filling in _fillings(board, model, gap, how):
        if filling.n_missing == 0:
            return filling
        tried.append(filling)
    return min(tried, key=lambda filling: filling.n_missing)


def _fillings(board: Board, model: ModelRecord, gap: BlockRange, how: Manner) -> Iterator[Filling]:
    """Ways to fill the gap, the least disturbing first."""
    n_blocks, kv_tokens = model.manifest.n_blocks, how.kv_tokens
    free = board.free(model, kv_tokens, gently=how.is_gentle)
    if len(gap) < n_blocks:
        # a part that was lost: one worker for it costs a route fewer hops than several
        able = [candidate for candidate in by_speed(free) if candidate.cap() >= len(gap)]
        yield from (filled(gap, n_blocks, [candidate]) for candidate in able)
    yield filled(gap, n_blocks, free)
    movable = [] if how.is_gentle else board.redundant(model, kv_tokens)
    if movable:
        yield filled(gap, n_blocks, free + movable)
    moved = frozenset(candidate.worker_id for candidate in movable)
    yield filled(
        gap,
        n_blocks,
        free + movable,
        left=board.grower(model, gap, kv_tokens, is_left=True, exclude=moved, gently=how.is_gentle),
        right=board.grower(model, gap, kv_tokens, is_left=False, exclude=moved, gently=how.is_gentle),
    )


def by_speed(candidates: list[Candidate]) -> list[Candidate]:
    """The fastest first."""
    return sorted(candidates, key=lambda c: (c.seconds_per_block, c.worker_id))
