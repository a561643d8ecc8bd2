"""Who holds which blocks: what is to change, and in words why; nothing that is held and needed moves.

Models in the order in which they were added. For each: pinned workers get what their operator fixed; blocks that
nobody holds go to workers with room (`mending`), by measured speed. When all is held, models that want more
replicas get them, and a worker without anything becomes a replica of what the fewest hold, else a spare
(`replicas`). Last, blocks that nobody holds who is trusted, and those of workers that have been away for a moment,
are given to others as well, where that takes nothing from anybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.policy.board import Board, can_run
from coordinator.policy.mending import back_up, fill_model, take_over
from coordinator.policy.pins import pin_words
from coordinator.policy.quantising import filled_quantised, fitting_quantization, why_quantised
from coordinator.policy.replicas import add_pipelines, add_replicas, make_replica
from coordinator.policy.sizing import KV_TARGETS
from coordinator.policy.state import ClusterState, ModelRecord, WorkerRecord
from protocol.control_messages import SpanAssignment
from protocol.ids import ModelName, WorkerId


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
    board.drop_unwanted()
    # a second pass stands on what the first has placed, and may complete what it left out
    is_filled: dict[ModelName | None, bool] = {
        name: _is_filled(board, model) for name, model in state.models.items()
    }
    is_complete = all(is_filled.values())
    if is_complete:
        if state.settings.placement != "spread":
            add_pipelines(board)
        for model in state.models.values():
            add_replicas(board, model)
    for worker in board.assignable:
        # who may hold one model only is of no use to others that lack blocks
        is_free = is_complete or is_filled.get(worker.only_model, False)
        if is_free and not board.spans[worker.worker_id] and worker.pinned_blocks is None:
            make_replica(board, worker)
    for model in state.models.values():
        back_up(board, model)
        take_over(board, model)
    return _changes(board, reasons, complete=is_complete)


def _is_filled(board: Board, model: ModelRecord) -> bool:
    """Give out what nobody holds of a model, in fewer bits if it fits in no other way; whether all is held then."""
    before = board.copy()
    if fill_model(board, model) or fill_model(board, model):
        return True
    quantised = filled_quantised(before, model)
    if quantised is not None:
        board.take(quantised)
    return quantised is not None


def take_overs(state: ClusterState) -> Mapping[WorkerId, Placed]:
    """What to add at once because workers have been away for a moment, without moving anything."""
    board = Board.of(state)
    for model in state.models.values():
        take_over(board, model)
    return {
        worker_id: Placed(spans=spans, reason=_reason(board, state.workers[worker_id], complete=False))
        for worker_id, spans in board.changes().items()
    }


def _changes(board: Board, pin_reasons: Mapping[WorkerId, str], *, complete: bool) -> dict[WorkerId, Placed]:
    changes: dict[WorkerId, Placed] = {}
    for worker in board.assignable:
        spans = board.spans[worker.worker_id]
        has_new_spans = spans != worker.assignment.spans
        if spans and not has_new_spans:
            continue
        reason = pin_reasons.get(worker.worker_id) or _reason(board, worker, complete=complete)
        if has_new_spans or reason != worker.assignment.reason:
            is_pinned = worker.worker_id in pin_reasons
            changes[worker.worker_id] = Placed(spans=spans, reason=reason, is_pinned=is_pinned)
    return changes


def _reason(board: Board, worker: WorkerRecord, *, complete: bool) -> str:
    spans = board.spans[worker.worker_id]
    if spans:
        what = " and ".join(_span_words(board, span) for span in spans)
        return f"{what}: chosen by free memory and measured speed"
    if not board.state.models:
        return "no model is served yet; add one with `coord model add NAME SOURCE`"
    if worker.only_model is not None:
        return _spare_of_one_model(board, worker, worker.only_model)
    assert worker.device is not None
    if not worker.device.runs_encoders and all(m.manifest.kind == "encoder" for m in board.state.models.values()):
        return "its version runs no encoders, and no other models are served yet: upgrade it"
    room = board.room_bytes(worker, KV_TARGETS[-1]) / 1e9
    if complete:
        return (
            f"every block of every model is held, and {room:.2f} GB of memory here are too few to hold any of them "
            "again; it is a spare"
        )
    return f"{room:.2f} GB of memory here are too few for what is missing; it is a spare until workers come or go"


def _spare_of_one_model(board: Board, worker: WorkerRecord, name: ModelName) -> str:
    started, model = f"it was started with --model {name}", board.state.models.get(name)
    if model is None:
        return f"{started}, which isn't served; add it with `coord model add`, or start the worker without --model"
    if not can_run(worker, model):
        return f"{started}, and its version runs no encoders: upgrade it"
    room = board.room_bytes(worker, KV_TARGETS[-1]) / 1e9
    if board.gaps(model):
        return f"{started}, and {room:.2f} GB of memory here are too few for what is missing of that; it is a spare"
    return (
        f"{started}, of which others hold every block, and {room:.2f} GB of memory here are too few; it is a spare"
    )


def _span_words(board: Board, span: SpanAssignment) -> str:
    what = f"blocks {span.blocks} of {span.model}"
    if span.quantization is None:
        return what
    return f"{what} in {span.quantization}, since {why_quantised(board, board.state.models[span.model])}"


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
            f"{'pin it' if worker.pin is not None else 'start the worker with --blocks'} within "
            f"0:{model.manifest.n_blocks}"
        )
    fewer_bits = fitting_quantization(worker, model, blocks) if board.state.settings.auto_quantize else None
    span = SpanAssignment(model=model.name, revision=model.revision, blocks=blocks, quantization=fewer_bits)
    board.spans[worker.worker_id] = (span,)
    why = f", and in {fewer_bits}, since they don't fit otherwise" if fewer_bits else ""
    if worker.pin is not None:
        return f"{pin_words(worker.pin)}{why}"
    return f"pinned to blocks {blocks} of {model.name} by its operator (--blocks){why}"
