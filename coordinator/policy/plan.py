"""What placement would choose if nothing were placed yet, beside what is placed now, and how fast both would be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from coordinator.policy.board import Board
from coordinator.policy.coverage import spans_of
from coordinator.policy.links import links_among
from coordinator.policy.modelled import ModelledSpeed, modelled_speed
from coordinator.policy.pipelines import Task, pipelines_of
from coordinator.policy.placement import Placed, placement
from coordinator.policy.planning import one_more
from coordinator.policy.quantising import what_would_hold, why_quantised
from coordinator.policy.sizing import KV_TARGETS, decode_times
from coordinator.policy.standing import standing
from coordinator.policy.state import Assignment, ClusterState, ModelRecord, Placement, WorkerRecord
from protocol.control_messages import SpanAssignment
from protocol.ids import BlockRange, FileHash, ModelName, WorkerId
from protocol.messages import Quantization


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSpan:
    """A range on a worker."""

    worker_id: WorkerId
    blocks: BlockRange
    stage_s: float
    """Seconds for one token in all of these blocks, and after the model's last one as far as that counts."""
    quantization: Quantization | None = None
    """What they would be held in, if not as the worker holds weights otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """What one model would get."""

    model: ModelName
    spans: tuple[PlannedSpan, ...]
    """By first block, then worker."""
    planned: ModelledSpeed | None
    """None where blocks would be left out."""
    now: ModelledSpeed | None
    """Of what is assigned at the moment."""
    note: str = ""
    """Why blocks would be held in fewer bits, or with which precision of whose workers the model would fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """For all models, and why workers would hold nothing, or nothing that the quickest way leads over."""

    placement: Placement
    models: tuple[ModelPlan, ...]
    left_out: tuple[tuple[WorkerId, str], ...]


def plan(state: ClusterState, wanted: Placement, now_s: float) -> Plan:
    """A plan on all that is known now: memory, speeds, round trips, files. It changes nothing."""
    empty = _emptied(state, wanted)
    placed = placement(empty)
    held = _spans(empty, placed)
    board = Board.of(empty)
    board.spans |= held
    models = tuple(_model_plan(state, model, board) for model in state.models.values())
    used = {worker_id for found in models if found.planned for worker_id, _ in found.planned.stages}
    left_out = []
    for worker in state.workers.values():
        if worker.worker_id in used or worker.presence == "gone":
            continue
        if not worker.can_be_assigned:
            left_out.append((worker.worker_id, standing(state, worker.worker_id, now_s)[1]))
            continue
        reason = placed[worker.worker_id].reason if worker.worker_id in placed else ""
        hops = [_hop_words(empty, state.models[m.model], m.planned, worker) for m in models if m.planned]
        left_out.append((worker.worker_id, "; ".join(filter(None, (reason, *hops)))))
    return Plan(placement=wanted, models=models, left_out=tuple(left_out))


def planned_spans(
    state: ClusterState, wanted: Placement, *, counts_head: bool = True
) -> dict[WorkerId, tuple[SpanAssignment, ...]]:
    """What each worker that could be given something would hold if nothing were placed yet."""
    empty = _emptied(state, wanted)
    empty = replace(empty, settings=replace(empty.settings, counts_head=counts_head))
    return _spans(empty, placement(empty))


def _spans(empty: ClusterState, placed: Mapping[WorkerId, Placed]) -> dict[WorkerId, tuple[SpanAssignment, ...]]:
    return {
        worker.worker_id: placed[worker.worker_id].spans if worker.worker_id in placed else ()
        for worker in empty.workers.values()
        if worker.can_be_assigned
    }


def _emptied(state: ClusterState, wanted: Placement) -> ClusterState:
    """The state with nothing assigned to those who could be given something, but the files of what they held."""
    workers = {
        worker_id: replace(
            worker,
            assignment=Assignment(epoch=worker.assignment.epoch),
            reported=(),
            files=worker.files.union(_files_held(state, worker)),
        )
        if worker.can_be_assigned
        else worker
        for worker_id, worker in state.workers.items()
    }
    return replace(state, workers=workers, settings=replace(state.settings, placement=wanted))


def _files_held(state: ClusterState, worker: WorkerRecord) -> Iterator[FileHash]:
    for span in worker.assignment.spans:
        blocks = state.models[span.model].manifest.blocks
        yield from (block.sha256 for block in blocks[span.blocks.start : span.blocks.end])


def _model_plan(state: ClusterState, model: ModelRecord, board: Board) -> ModelPlan:
    held = {w: spans for w, spans in board.spans.items() if state.workers[w].can_be_assigned}
    planned = _only_span(model, held.items())
    now = _only_span(model, ((w.worker_id, w.assignment.spans) for w in state.workers.values() if w.is_routable))
    spans = [_planned_span(state.workers[worker_id], model, span) for worker_id, span in planned.items()]
    speed = modelled_speed(state, model, planned) if planned else None
    note = ""
    if speed is None:
        note = what_would_hold(board, model)
    elif any(span.quantization is not None for span in spans):
        note = f"in fewer bits, since {why_quantised(board, model)}"
    return ModelPlan(
        model=model.name,
        spans=tuple(sorted(spans, key=lambda span: (span.blocks.start, span.worker_id))),
        planned=speed,
        now=modelled_speed(state, model, now) if now else None,
        note=note,
    )


def _planned_span(worker: WorkerRecord, model: ModelRecord, span: SpanAssignment) -> PlannedSpan:
    times = decode_times(worker, model.manifest, quantization=span.quantization)
    return PlannedSpan(
        worker_id=worker.worker_id,
        blocks=span.blocks,
        stage_s=times.of_range(span.blocks, model.manifest.n_blocks),
        quantization=span.quantization,
    )


def _only_span(
    model: ModelRecord, held: Iterable[tuple[WorkerId, tuple[SpanAssignment, ...]]]
) -> dict[WorkerId, SpanAssignment]:
    return {worker_id: span for worker_id, spans in held for span in spans_of(model, spans)}


def _hop_words(state: ClusterState, model: ModelRecord, speed: ModelledSpeed, worker: WorkerRecord) -> str:
    """What the quickest way would take with this worker as one more stage; empty if it has no room for a block."""
    board = Board.of(state)
    workers = [*(state.workers[worker_id] for worker_id, _ in speed.stages), worker]
    candidates = [board.candidate(each, model, KV_TARGETS[-1]) for each in workers]
    if candidates[-1].cap() == 0 or len(workers) > model.manifest.n_blocks:
        return ""
    task = Task(n_blocks=model.manifest.n_blocks, candidates=candidates, links=links_among(workers))
    found = list(pipelines_of(task, one_more(task, tuple(range(len(workers) - 1)), len(workers) - 1)))
    if not found:
        return ""
    with_it = min(found, key=lambda pipeline: pipeline.step_s)
    return (
        f"as one more stage of the way of one stream of {model.name} it would make that "
        f"{1000 * with_it.step_s:.1f} ms a token, {1000 * with_it.ring_s:.1f} of them on links, instead of "
        f"{1000 * speed.step_s:.1f}"
    )
