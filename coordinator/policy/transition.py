"""`apply`: what an event makes of the state, and what is to be done. Total, pure, deterministic.

Rules that hold throughout: epochs only rise; a report of another epoch than the assignment's is ignored;
heartbeats save nothing; a lost worker keeps its assignment (and so its blocks, should it be back) but no longer
counts as holding it.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec

from coordinator.policy.arrival import connected, joined
from coordinator.policy.changes import Change, model_view, save_model
from coordinator.policy.coverage import has_failed
from coordinator.policy.effects import AuditAction, DeleteModel, Effect
from coordinator.policy.events import (
    AssignmentPinned,
    AssignmentUnpinned,
    AuthorAdded,
    AuthorRemoved,
    DrainAsked,
    DrainWithdrawn,
    Event,
    FilesChanged,
    Found,
    ImprovementFound,
    ModelAdded,
    ModelEvent,
    ModelRemoved,
    ModelSigned,
    MoveStepEnded,
    PinnedEndsAsked,
    PlacementFound,
    ReplicasAsked,
    SettingsChanged,
    SocketLost,
    SpansReported,
    TimePassed,
    WorkerBeat,
    WorkerConnected,
    WorkerEvent,
    WorkerJoined,
    WorkerLeft,
    WorkerNotComing,
    WorkerRemoved,
)
from coordinator.policy.giving_out import improvement_found, moved_on, placement_found
from coordinator.policy.handover import reported_on
from coordinator.policy.leaving import going, left
from coordinator.policy.measured import with_beat
from coordinator.policy.operator_changes import finished_moves, operator_decided
from coordinator.policy.passing import kept, let_go, removed, time_passed
from coordinator.policy.signing import author_changed, model_signed, pinned_ends_asked
from coordinator.policy.sound import sound_beat, sound_files, sound_status
from coordinator.policy.state import ClusterState, ModelRecord, WorkerRecord
from coordinator.policy.statuses import span_in
from coordinator.policy.trust_changes import is_banned, refused, reviewed_some, trust_changed
from coordinator.policy.trust_events import (
    AuditEnded,
    EvidenceSeen,
    TrustPinned,
    TrustUnpinned,
    WorkerBanned,
    WorkerPardoned,
)
from coordinator.policy.worker_clocks import clock_said
from protocol.control_messages import SpanReport
from protocol.ids import ModelName


def apply(state: ClusterState, event: Event, now_s: float) -> tuple[ClusterState, tuple[Effect, ...]]:
    """The state after `event`, and the effects in the order in which they are to be carried out."""
    change = _changed(Change(state=state, now_s=now_s), event)
    return change.state, change.effects


def _changed(change: Change, event: Event) -> Change:
    match event:
        case WorkerJoined() | WorkerConnected():
            return _arrived(change, event)
        case ModelAdded() | ReplicasAsked() | ModelSigned() | PinnedEndsAsked() | ModelRemoved():
            return _models_changed(change, event)
        case AuthorAdded() | AuthorRemoved():
            return author_changed(change, event)
        case TimePassed():
            return reviewed_some(finished_moves(time_passed(change)))
        case PlacementFound() | ImprovementFound() | MoveStepEnded():
            return _found(change, event)
        case EvidenceSeen() | AuditEnded() | TrustPinned() | TrustUnpinned() | WorkerBanned() | WorkerPardoned():
            return trust_changed(change, event)
        case AssignmentPinned() | AssignmentUnpinned() | SettingsChanged():
            return operator_decided(change, event)
        case (
            SpansReported()
            | WorkerBeat()
            | FilesChanged()
            | WorkerLeft()
            | WorkerNotComing()
            | SocketLost()
            | DrainAsked()
            | DrainWithdrawn()
            | WorkerRemoved()
        ):
            worker = change.state.workers.get(event.worker_id)
            # of a worker that was forgotten meanwhile, or never was: nothing to change
            return change if worker is None else _worker_changed(change, worker, event)


def _arrived(change: Change, event: WorkerJoined | WorkerConnected) -> Change:
    if is_banned(change.state, event.worker_id):
        return refused(change, event.worker_id)
    match event:
        case WorkerJoined():
            change = joined(change, event.worker_id, event.invite_id)
            return change.updated(event.worker_id, token_until_s=event.token_until_s)
        case WorkerConnected():
            return connected(change, event.worker_id, event.announce)


def _found(change: Change, event: Found) -> Change:
    match event:
        case PlacementFound():
            change = placement_found(change, event)
            return let_go(change, is_placed=change.state.changed_s is None)
        case ImprovementFound():
            return improvement_found(change, event)
        case MoveStepEnded():
            return moved_on(change)


def _worker_changed(change: Change, worker: WorkerRecord, event: WorkerEvent) -> Change:
    match event:
        case SpansReported():
            return _spans_reported(change, _heard(change, worker), event.report)
        case WorkerBeat():
            heard = with_beat(change.state, _heard(change, worker), sound_beat(change.state, event.heartbeat))
            return clock_said(change.with_worker(heard), heard)
        case FilesChanged():
            return change.with_worker(replace(_heard(change, worker), files=sound_files(event.files)))
        case WorkerLeft():
            return left(change, _heard(change, worker), event)
        case WorkerNotComing() | SocketLost() | DrainAsked():
            return going(change, worker, event)
        case DrainWithdrawn():
            return kept(change, worker)
        case WorkerRemoved():
            return removed(change, worker)


def _heard(change: Change, worker: WorkerRecord) -> WorkerRecord:
    """The worker, heard of just now. A message that was under way when its socket closed revives nobody."""
    if not worker.is_connected:
        return worker
    # one that was stopped and finishes what runs is on its way out, however much is heard of it
    is_doubted = worker.is_doubted and (worker.kept_until_s is not None or worker.is_shut_out)
    # on this socket it speaks: if it enrolled, that was for new credentials
    return replace(worker, presence="here", seen_s=change.now_s, starts_by_s=None, is_doubted=is_doubted)


def _spans_reported(change: Change, worker: WorkerRecord, report: SpanReport) -> Change:
    if report.epoch != worker.assignment.epoch:
        return change.with_worker(worker)
    latest = {span_in(status): status for status in report.spans}
    reported = tuple(sound_status(status) for span, status in latest.items() if span in worker.assignment.spans)
    if worker.heartbeat is not None and reported != worker.reported:
        # for what it held then; the next one says it anew
        worker = replace(worker, heartbeat=msgspec.structs.replace(worker.heartbeat, longest_sessions={}))
    after = reported_on(replace(worker, reported=reported))
    change = change.with_worker(after)
    newly_failed = any(has_failed(after, s) and not has_failed(worker, s) for s in worker.assignment.spans)
    # what is ready now may free what had to stay where it was until then
    newly_ready = len(after.ready) > len(worker.ready)
    if newly_failed or (newly_ready and change.state.moving is None):
        change = change.to_place(is_news=False)
    return let_go(change, is_placed=False) if newly_ready else change


# ------------------------------------------------------------------ models


def _models_changed(change: Change, event: ModelEvent) -> Change:
    match event:
        case ModelAdded():
            return _model_added(change, event)
        case ReplicasAsked():
            return _replicas_asked(change, event)
        case ModelSigned():
            return model_signed(change, event)
        case PinnedEndsAsked():
            return pinned_ends_asked(change, event)
        case ModelRemoved():
            return _model_removed(change, event.name)


def _model_added(change: Change, event: ModelAdded) -> Change:
    old = change.state.models.get(event.name)
    if old is not None and old.revision == event.revision:
        return change
    if old is not None:
        change = _without_spans_of(change, event.name, f"{event.name} was replaced by another revision")
    model = ModelRecord(
        name=event.name,
        revision=event.revision,
        manifest=event.manifest,
        n_replicas=event.n_replicas,
        signature=event.signature,
        pinned_ends=event.pinned_ends,
    )
    action: AuditAction = "model_added" if old is None else "model_replaced"
    before = None if old is None else model_view(old)
    change = change.with_model(model).then(save_model(model))
    return change.audited(action, event.name, event.revision, before=before, after=model_view(model)).to_place()


def _replicas_asked(change: Change, event: ReplicasAsked) -> Change:
    old = change.state.models.get(event.name)
    if old is None or old.n_replicas == event.n_replicas:
        return change
    model = replace(old, n_replicas=event.n_replicas)
    change = change.with_model(model).then(save_model(model))
    details = f"{event.n_replicas} instead of {old.n_replicas}"
    before, after = model_view(old), model_view(model)
    return change.audited("replicas_asked", event.name, details, before=before, after=after).to_place()


def _model_removed(change: Change, name: ModelName) -> Change:
    model = change.state.models.get(name)
    if model is None:
        return change
    change = _without_spans_of(change, name, f"{name} was removed")
    change = change.without_model(name).then(DeleteModel(name=name))
    return change.audited("model_removed", name, model.revision, before=model_view(model)).to_place()


def _without_spans_of(change: Change, name: ModelName, reason: str) -> Change:
    for worker in change.state.workers.values():
        old = worker.assignment
        spans = tuple(span for span in old.spans if span.model != name)
        if spans != old.spans or any(span.model == name for span in old.leaving):
            change = change.reassigned(worker.worker_id, spans, reason, dropped=name)
    return change
