"""What follows from time alone: silence makes workers suspect, lost, gone; a settled cluster is placed."""

from __future__ import annotations

from dataclasses import replace

from coordinator.policy.changes import Change, save_worker
from coordinator.policy.placement import Placed, placement
from coordinator.policy.sizing import capacity_bytes
from coordinator.policy.state import Assignment, PolicySettings, Presence, WorkerRecord
from protocol.ids import WorkerId


def time_passed(change: Change) -> Change:
    """Judge everybody's silence, then place if nothing changed for `settle_s`."""
    for worker in change.state.workers.values():
        change = _judged(change, worker)
    changed_s, settle_s = change.state.changed_s, change.state.settings.settle_s
    # a clock that was set back must not stop placement
    if changed_s is None or 0 <= change.now_s - changed_s < settle_s:
        return change
    for worker_id, placed in placement(change.state).items():
        change = _placed(change, worker_id, placed)
    return replace(change, state=replace(change.state, changed_s=None))


def _judged(change: Change, worker: WorkerRecord) -> Change:
    if worker.kept_until_s is not None and _is_over(worker.kept_until_s, change):
        worker = replace(worker, kept_until_s=None)
        change = change.with_worker(worker)
        if not worker.is_connected:
            return gone(change, worker, f"left: {worker.drain_reason}")
        change = change.to_place()
    silent_s = change.now_s - worker.seen_s
    presence = _presence(worker, silent_s, change.state.settings)
    if presence == worker.presence:
        is_over = presence == "gone" and silent_s > change.state.settings.forget_after_s
        return change.without_worker(worker.worker_id) if is_over else change
    worker = replace(worker, presence=presence, kept_until_s=None if presence == "lost" else worker.kept_until_s)
    change = change.with_worker(worker)
    if presence == "gone" or (presence == "lost" and worker.is_draining):
        return gone(change, worker, f"silent for {silent_s:.0f} s")
    if presence == "lost":
        return change.audited("worker_lost", worker.worker_id, f"silent for {silent_s:.0f} s").to_place()
    return change


def _is_over(until_s: float, change: Change) -> bool:
    # a clock that was set back must not keep blocks for long
    return not 0 <= until_s - change.now_s <= change.state.settings.lost_after_s


def _presence(worker: WorkerRecord, silent_s: float, settings: PolicySettings) -> Presence:
    match worker.presence:
        case "here" | "suspect" | "expected":
            if silent_s > settings.lost_after_s:
                return "lost"
            is_late = worker.presence == "here" and silent_s > settings.suspect_after_s
            return "suspect" if is_late else worker.presence
        case "lost":
            return "gone" if silent_s > settings.forget_after_s else "lost"
        case "gone":
            return "gone"


def gone(change: Change, worker: WorkerRecord, reason: str) -> Change:
    """The worker is no more: it holds nothing, and others get its blocks."""
    worker = replace(
        worker,
        presence="gone",
        is_connected=False,
        drain_reason=reason,
        kept_until_s=None,
        files=frozenset(),
        heartbeat=None,
    )
    change = change.with_worker(worker).then(save_worker(worker))
    if worker.assignment.spans:
        change = change.reassigned(worker.worker_id, (), reason)
    return change.audited("worker_gone", worker.worker_id, reason).to_place()


def _placed(change: Change, worker_id: WorkerId, placed: Placed) -> Change:
    worker = change.state.workers[worker_id]
    old = worker.assignment
    if placed.spans == old.spans:
        return change.updated(worker_id, assignment=replace(old, reason=placed.reason))
    assert worker.device is not None
    assignment = Assignment(
        epoch=old.epoch + 1,
        spans=placed.spans,
        reason=placed.reason,
        capacity_bytes=None if placed.is_pinned else capacity_bytes(worker.device),
    )
    return change.assigned(worker_id, assignment)
