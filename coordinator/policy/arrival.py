"""What follows when a worker enrols or opens its control socket."""

from __future__ import annotations

from dataclasses import replace

from coordinator.policy.changes import Change, assign, is_starting, save_assignment, save_worker
from coordinator.policy.handover import reported_on
from coordinator.policy.sizing import capacity_bytes, spans_bytes
from coordinator.policy.sound import MAX_LABEL, sound_device, sound_files, sound_model, sound_status
from coordinator.policy.state import Assignment, ClusterState, WorkerRecord
from coordinator.policy.statuses import span_in
from coordinator.policy.trust import NEWCOMER, standing
from protocol.control_messages import Announce, Drain, SpanAssignment, SpanStatus
from protocol.ids import InviteId, WorkerId

_LARGEST_EPOCH = 2**53
"""An announced epoch above this is a lie; it would end up in a column that can't hold many more."""


def joined(change: Change, worker_id: WorkerId, invite_id: InviteId | None = None) -> Change:
    """Enrolment: a new worker is known from now on. Renewed credentials change nothing, unless it is back."""
    old = change.state.workers.get(worker_id)
    settings = change.state.settings
    starts_by_s = change.now_s + max(settings.longest_start_s, settings.lost_after_s)
    if old is not None and old.presence != "gone":
        return _enrolled_again(change, old, starts_by_s)
    assignment = Assignment() if old is None else old.assignment
    record = change.state.trust.get(worker_id)
    trust = NEWCOMER if record is None else standing(record, change.now_s)
    worker = WorkerRecord(
        worker_id=worker_id,
        presence="expected",
        seen_s=change.now_s,
        starts_by_s=starts_by_s,
        assignment=assignment,
        trust=trust,
        pin=change.state.pins.get(worker_id),
    )
    change = change.with_worker(worker).then(save_worker(worker))
    admission = "with the join secret" if invite_id is None else f"by the invite {invite_id}"
    return change.audited("worker_joined", worker_id, f"enrolled {admission}")


def _enrolled_again(change: Change, old: WorkerRecord, starts_by_s: float) -> Change:
    if old.presence == "lost" or (not old.is_connected and is_starting(old)):
        # whoever enrols again and again and never connects has the time of the first try only
        return change
    if old.is_connected:  # with new credentials; or started again, and nobody has told us of the old socket's end
        return change.updated(old.worker_id, starts_by_s=starts_by_s)
    starts_by_s = starts_by_s if old.starts_by_s is None else old.starts_by_s
    kept_until_s = None if old.kept_until_s is None else starts_by_s
    worker = replace(old, seen_s=change.now_s, starts_by_s=starts_by_s, kept_until_s=kept_until_s)
    return change.with_worker(worker).then(save_worker(worker))


def connected(change: Change, worker_id: WorkerId, announce: Announce) -> Change:
    """A control socket: the worker is here, keeps what it holds, and is told its assignment (again)."""
    old = change.state.workers.get(worker_id)
    if old is None or old.presence == "gone":
        change = joined(change, worker_id)
        old = change.state.workers[worker_id]
    assignment = _assignment(change.state, old, announce)
    worker = replace(
        _present(old, announce, change.now_s),
        assignment=_with_leaving(change.state, assignment, announce),
        reported=_reports_of(assignment, announce),
    )
    worker = reported_on(worker)
    change = change.with_worker(worker).then(save_worker(worker))
    if assignment.epoch != old.assignment.epoch:
        change = change.then(save_assignment(worker_id, assignment))
    change = change.sent(worker_id, assign(assignment))
    if worker.drain_reason is not None:
        change = change.sent(worker_id, Drain(reason=worker.drain_reason))
    return change.to_place()


def _present(old: WorkerRecord, announce: Announce, now_s: float) -> WorkerRecord:
    # a worker that was started again after draining has nothing yet and serves again
    is_same_process = announce.epoch > 0 and announce.epoch == old.assignment.epoch
    return replace(
        old,
        presence="here",
        is_connected=True,
        seen_s=now_s,
        has_said_leaving=old.has_said_leaving and is_same_process,
        drain_reason=old.drain_reason if is_same_process else None,
        departure=old.departure if is_same_process else None,
        kept_until_s=old.kept_until_s if is_same_process else None,
        starts_by_s=None,
        is_doubted=is_same_process and old.is_doubted and (old.kept_until_s is not None or old.is_shut_out),
        hostname=announce.hostname[:MAX_LABEL],
        version=announce.version[:MAX_LABEL],
        url=announce.url,
        device=sound_device(announce.device),
        announced_model=sound_model(announce.pinned_model),
        announced_blocks=announce.pinned_blocks,
        files=sound_files(announce.files),
        heartbeat=None,
        block_s=0.0,
        measured_of=frozenset(),
        clock_offset_s=old.clock_offset_s if is_same_process else 0.0,  # whoever is new showed it at the door
        right_since_s=old.right_since_s if is_same_process else None,
    )


def _assignment(state: ClusterState, old: WorkerRecord, announce: Announce) -> Assignment:
    """The assignment that is kept; what the worker announces only where it is newer than all that we know.

    It is when the database was restored from a backup, or lost: then what the worker holds is taken as assigned,
    if it can be, and the epoch goes on from there.
    """
    if not old.assignment.epoch < announce.epoch <= _LARGEST_EPOCH:
        return old.assignment
    spans = tuple(span_in(status) for status in announce.spans)
    if _can_hold(state, spans):
        reason = "held already when it connected"
        return Assignment(epoch=announce.epoch, spans=spans, reason=reason, unwanted_bytes=None)
    return Assignment(epoch=announce.epoch + 1, spans=(), reason="what it held is served no longer")


def _with_leaving(state: ClusterState, assignment: Assignment, announce: Announce) -> Assignment:
    """With what it serves on: nothing if it was started again, what it says if it missed its assignment.

    What it says too if it is we who were started again, where it can load the rest beside that.
    """
    if announce.epoch == assignment.epoch:
        said = tuple(span for span in announce.leaving if span not in assignment.spans)
        is_news = bool(said) and assignment.unwanted_bytes is None and _can_hold(state, said)
        held = (*said, *assignment.spans) if is_news else ()
        fits = spans_bytes(state, held, announce.device.held_as, 0) <= capacity_bytes(announce.device)
        return replace(assignment, leaving=said) if is_news and fits else assignment
    if announce.epoch == 0:
        return replace(assignment, leaving=(), unwanted_bytes=0)
    ready = {span_in(status) for status in announce.spans if status.state == "ready"}
    leaving = tuple(span for span in assignment.leaving if span in ready)
    return replace(assignment, leaving=leaving)


def _can_hold(state: ClusterState, spans: tuple[SpanAssignment, ...]) -> bool:
    names = [span.model for span in spans]
    if len(set(names)) < len(names):
        return False
    for span in spans:
        model = state.models.get(span.model)
        if model is None or model.revision != span.revision or span.blocks.end > model.manifest.n_blocks:
            return False
    return True


def _reports_of(assignment: Assignment, announce: Announce) -> tuple[SpanStatus, ...]:
    if announce.epoch != assignment.epoch:
        return ()
    latest = {span_in(status): status for status in announce.spans}
    return tuple(sound_status(status) for span, status in latest.items() if span in assignment.spans)
