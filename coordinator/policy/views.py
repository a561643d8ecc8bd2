"""The state as the API shows it: models, workers, and who serves which file."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from coordinator.policy import modelled
from coordinator.policy.coverage import ready_counts, runs
from coordinator.policy.missing import missing_blocks
from coordinator.policy.outlook import outlook
from coordinator.policy.pinned_ends import missing_ends
from coordinator.policy.pins import pin_words
from coordinator.policy.plan import plan
from coordinator.policy.redundancy import too_few_replicas
from coordinator.policy.signing import why_unserved
from coordinator.policy.standing import standing
from coordinator.policy.state import ClusterState, ModelRecord, Placement, WorkerRecord
from coordinator.policy.statuses import status_as
from coordinator.policy.trust_words import trust_note, unbacked
from coordinator.policy.worker_clocks import clock_note
from protocol.cluster_rest import WorkerInfo
from protocol.control_messages import LinkReport, SpanStatus
from protocol.ids import BlockRange, FileHash, ModelName, WorkerId
from protocol.model_signature import SignedBy
from protocol.plan_rest import LeftOut, ModelledSpeed, ModelPlan, PlanInfo, PlannedSpan
from protocol.rest import BlockCoverage, ModelInfo, ModelState
from protocol.worker_rest import Source

MAX_SOURCES = 8
"""Of one file; a worker that finds none of these alive takes it from the coordinator."""


def model_info(state: ClusterState, name: ModelName, now_s: float) -> ModelInfo:  # noqa: ARG001 - as worker_info
    """One model; `name` must be one of the state's."""
    model = state.models[name]
    missing = missing_blocks(state, model)
    if missing is None and model.pinned_ends:
        missing = missing_ends(state, model, BlockRange(0, model.manifest.n_blocks))
    unserved = why_unserved(state, model)
    model_state: ModelState = "ready"
    if missing is not None or unserved:
        model_state = "waiting" if missing is not None and missing.is_on_its_way else "incomplete"
    reason = _ready_words(state, model) if missing is None else missing.message
    n_of = ready_counts(state.workers.values(), model)
    manifest = model.manifest
    return ModelInfo(
        name=name,
        revision=model.revision,
        state=model_state,
        reason="; ".join(filter(None, (unserved, reason))),
        architecture=manifest.architecture,
        n_blocks=manifest.n_blocks,
        context_length=manifest.context_length,
        size_bytes=manifest.size_bytes(),
        is_chat=manifest.is_chat,
        coverage=tuple(BlockCoverage(blocks=blocks, n_workers=n) for blocks, n in runs(n_of)),
        n_replicas=model.n_replicas,
        signed=_signed(state, model),
        pinned_ends=model.pinned_ends,
        refused=unserved,
        kind=manifest.kind,
    )


def _signed(state: ClusterState, model: ModelRecord) -> SignedBy | None:
    if model.signature is None:
        return None
    statement = model.signature.statement
    author = state.authors.get(statement.key)
    return SignedBy(
        key=statement.key,
        signer=statement.signer,
        model=statement.model,
        version=statement.version,
        signed_at=statement.signed_at,
        author=author.name if author is not None else None,
    )


def _ready_words(state: ClusterState, model: ModelRecord) -> str:
    return "; ".join(filter(None, (too_few_replicas(state, model), unbacked(state, model))))


def plan_info(state: ClusterState, wanted: Placement, now_s: float) -> PlanInfo:
    """What would be placed if nothing were yet."""
    found = plan(state, wanted, now_s)

    def hostname(worker_id: WorkerId) -> str:
        return state.workers[worker_id].hostname

    is_own = wanted == state.settings.placement
    return PlanInfo(
        placement=found.placement,
        outlook=outlook(state, now_s) if is_own else "",
        models=tuple(
            ModelPlan(
                model=of_model.model,
                spans=tuple(
                    PlannedSpan(
                        worker_id=span.worker_id,
                        hostname=hostname(span.worker_id),
                        blocks=span.blocks,
                        stage_s=span.stage_s,
                        quantization=span.quantization,
                        is_pinned=state.workers[span.worker_id].pinned_blocks is not None,
                    )
                    for span in of_model.spans
                ),
                planned=speed_info(of_model.planned),
                now=speed_info(of_model.now),
                note=of_model.note,
            )
            for of_model in found.models
        ),
        left_out=tuple(
            LeftOut(worker_id=worker_id, hostname=hostname(worker_id), reason=reason)
            for worker_id, reason in found.left_out
        ),
    )


def speed_info(found: modelled.ModelledSpeed | None) -> ModelledSpeed | None:
    """How fast a model would be; None where blocks are left out."""
    if found is None:
        return None
    return ModelledSpeed(one_stream_tokens_per_s=1 / found.step_s, many_streams_tokens_per_s=found.tokens_per_s)


def worker_info(state: ClusterState, worker_id: WorkerId, now_s: float) -> WorkerInfo:
    """One worker; `worker_id` must be one of the state's."""
    worker = state.workers[worker_id]
    word, reason = standing(state, worker_id, now_s)
    device, beat = worker.device, worker.heartbeat
    return WorkerInfo(
        worker_id=worker_id,
        hostname=worker.hostname,
        url=worker.url,
        state=word,
        reason=reason,
        device=device.device if device is not None else "",
        precision=device.held_as if device is not None else "",
        memory_bytes=device.memory_bytes if device is not None else 0,
        spans=_spans(worker),
        n_sessions=beat.n_sessions if beat is not None else 0,
        free_kv_bytes=beat.free_kv_bytes if beat is not None else 0,
        decode_s_per_block=_finite(beat.decode_s_per_block) if beat is not None else 0.0,
        last_seen_s_ago=max(0.0, now_s - worker.seen_s),
        version=worker.version,
        pinned_blocks=worker.pinned_blocks,
        pinned=_pinned_words(worker),
        hop_p50_s=_finite(beat.hop_p50_s) if beat is not None else 0.0,
        hop_p99_s=_finite(beat.hop_p99_s) if beat is not None else 0.0,
        round_trips_s={to: _finite(s) for to, s in beat.round_trips_s.items()} if beat is not None else {},
        links=_links(beat.links) if beat is not None else {},
        kv_precision=device.kv_precision if device is not None else None,
        trust=worker.trust.score,
        trust_level=worker.trust.level,
        clock_offset_s=worker.clock_offset_s,
    )


def explained_worker(state: ClusterState, worker_id: WorkerId, now_s: float, note: str) -> WorkerInfo:
    """The same with all that speaks against it: `note` beside what the state says."""
    info = worker_info(state, worker_id, now_s)
    worker = state.workers[worker_id]
    reasons = (info.reason, note, clock_note(state, worker), trust_note(state, worker, now_s))
    return msgspec.structs.replace(info, reason="; ".join(filter(None, reasons)))


def _pinned_words(worker: WorkerRecord) -> str:
    if worker.pin is not None:
        return pin_words(worker.pin)
    blocks = worker.announced_blocks
    return "" if blocks is None else f"pinned to blocks {blocks} by whoever started it (--blocks)"


def _links(links: dict[WorkerId, LinkReport]) -> dict[WorkerId, LinkReport]:
    return {
        to: LinkReport(n_bytes_sent=link.n_bytes_sent, bytes_per_s=_finite(link.bytes_per_s))
        for to, link in links.items()
    }


def _spans(worker: WorkerRecord) -> tuple[SpanStatus, ...]:
    """What is assigned, as far as reported, then what is served until that is ready.

    A span that the worker hasn't spoken of counts as to be downloaded.
    """
    assigned = (
        worker.status_of(span) or status_as(span, "downloading", "assigned; the worker has said nothing of it yet")
        for span in worker.assignment.spans
    )
    return tuple(_with_why(status, worker.assignment.reason) for status in assigned) + tuple(
        status_as(span, "ready", "served until its replacement is ready") for span in worker.assignment.leaving
    )


def _with_why(status: SpanStatus, reason: str) -> SpanStatus:
    """With a note on why its weights are held in fewer bits than the worker would hold them in."""
    if status.quantization is None:
        return status
    note = "; ".join(filter(None, (status.note, reason)))
    return msgspec.structs.replace(status, note=note)


def _finite(value: float) -> float:
    """What a worker says, or 0.0: JSON has no other numbers, so one worker's NaN would spoil everybody's answer."""
    return value if math.isfinite(value) else 0.0


def file_sources(
    state: ClusterState, files: Iterable[FileHash], asking_worker: WorkerId
) -> dict[FileHash, tuple[Source, ...]]:
    """Other workers that serve each file, the least loaded first; files that none has are left out."""
    others = sorted(
        (w for w in state.workers.values() if w.presence == "here" and w.worker_id != asking_worker),
        key=lambda w: (w.heartbeat.n_sessions if w.heartbeat is not None else 0, w.worker_id),
    )
    found = {
        file: tuple(Source(worker_id=w.worker_id, url=w.url) for w in others if file in w.files)[:MAX_SOURCES]
        for file in files
    }
    return {file: sources for file, sources in found.items() if sources}
