"""What follows when a worker is to go, goes, or doesn't come: by its own word, its socket's end, an operator's."""

from __future__ import annotations

from dataclasses import replace

from coordinator.policy.changes import Change, save_worker
from coordinator.policy.events import DrainAsked, SocketLost, WorkerLeft, WorkerNotComing
from coordinator.policy.passing import departed, gone, to_depart
from coordinator.policy.state import Departure, Presence, WorkerRecord
from protocol.control_messages import Drain

MAX_REASON = 1000
"""Characters of why a worker leaves that are kept."""


def left(change: Change, worker: WorkerRecord, event: WorkerLeft) -> Change:
    """It said that it goes."""
    if worker.presence == "gone":
        return change
    reason = event.reason[:MAX_REASON]
    # an operator who drains it wants its blocks elsewhere; who stops it where it runs may start it again
    is_own_wish = not worker.is_draining and worker.departure is None and worker.presence != "lost"
    if is_own_wish and event.serves_on_s > 0 and worker.presence == "here":
        serves_s = min(event.serves_on_s, change.state.settings.longest_departure_s)
        departure = Departure(reason=reason, by_s=change.now_s + serves_s, is_own_wish=True)
        return to_depart(change, worker, departure)
    kept_until_s = change.now_s + change.state.settings.lost_after_s if is_own_wish else worker.kept_until_s
    worker = replace(worker, drain_reason=reason, departure=None, has_said_leaving=True, kept_until_s=kept_until_s)
    change = change.with_worker(worker)
    if not worker.is_connected and kept_until_s is None:
        return gone(change, worker, f"left: {reason}")
    change = change.then(save_worker(worker)).audited("worker_draining", worker.worker_id, reason)
    if event.serves_on_s > 0:
        change = change.sent(worker.worker_id, Drain(reason=reason))
    return change if kept_until_s is not None else change.to_place()


def going(change: Change, worker: WorkerRecord, event: WorkerNotComing | SocketLost | DrainAsked) -> Change:
    """What others noticed or want, or what it said before it was here."""
    match event:
        case WorkerNotComing():
            # what an earlier start said may be heard after the next one has enrolled
            is_of_this_start = worker.token_until_s in (0.0, event.token_until_s)
            return _not_coming(change, worker, event.reason) if is_of_this_start else change
        case SocketLost():
            return _socket_lost(change, worker)
        case DrainAsked():
            return _drain_asked(change, worker, event.reason)


def _socket_lost(change: Change, worker: WorkerRecord) -> Change:
    if not worker.is_connected:
        return change
    worker = replace(worker, is_connected=False)
    if worker.departure is not None and worker.departure.is_own_wish:
        change = departed(change, worker, worker.departure, worker.departure.reason)
        worker = change.state.workers[worker.worker_id]
    if worker.starts_by_s is not None:
        return _starting(change, worker)
    if worker.has_said_leaving and worker.kept_until_s is None:
        return gone(change.with_worker(worker), worker, f"left: {worker.drain_reason}")
    presence: Presence = "suspect" if worker.presence == "here" else worker.presence
    return change.with_worker(replace(worker, presence=presence))


def _starting(change: Change, worker: WorkerRecord) -> Change:
    """It enrolled after all that was heard on the socket that is over: it was started again meanwhile."""
    kept_until_s = None if worker.kept_until_s is None else worker.starts_by_s
    worker = replace(worker, presence="suspect", kept_until_s=kept_until_s)
    return change.with_worker(worker).then(save_worker(worker))


def _not_coming(change: Change, worker: WorkerRecord, reason: str) -> Change:
    """It was starting, and ends before it has connected. What it held is kept for it as for one that was stopped.

    That ends with its first try's time, however often it tries.
    """
    if worker.is_connected or worker.starts_by_s is None or worker.presence in ("lost", "gone"):
        return change
    reason = reason[:MAX_REASON]
    if not worker.assignment.spans:
        return gone(change, worker, reason)
    kept_until_s = min(worker.starts_by_s, change.now_s + change.state.settings.lost_after_s)
    worker = replace(
        worker, presence="suspect", drain_reason=reason, has_said_leaving=True, kept_until_s=kept_until_s
    )
    change = change.with_worker(worker).then(save_worker(worker))
    return change.audited("worker_draining", worker.worker_id, reason)


def _drain_asked(change: Change, worker: WorkerRecord, reason: str) -> Change:
    if worker.presence == "gone" or (worker.departure is not None and not worker.departure.is_own_wish):
        return change
    if worker.presence == "here" and not worker.is_draining:
        departure = Departure(reason=reason, by_s=change.now_s + change.state.settings.longest_departure_s)
        return to_depart(_drain_audited(change, worker, reason), worker, departure)
    change = _drain_audited(change, worker, reason)
    is_doubted = worker.is_doubted and worker.presence == "suspect"
    worker = replace(worker, drain_reason=reason, kept_until_s=None, is_doubted=is_doubted)
    change = change.with_worker(worker)
    if not worker.is_connected and (worker.presence == "lost" or worker.has_said_leaving):
        return gone(change, worker, f"drained while away: {reason}")
    change = change.then(save_worker(worker)).to_place()
    return change.sent(worker.worker_id, Drain(reason=reason))


def _drain_audited(change: Change, worker: WorkerRecord, reason: str) -> Change:
    before, after = {"drain_reason": worker.drain_reason}, {"drain_reason": reason}
    return change.audited("drain_asked", worker.worker_id, reason, before=before, after=after)
