"""What follows from time alone: silence makes workers suspect, lost, gone."""

from __future__ import annotations

from dataclasses import replace

from coordinator.policy.changes import Change, save_worker
from coordinator.policy.departure import why_now
from coordinator.policy.effects import DeletePin, DeleteWorker
from coordinator.policy.giving_out import all_placed
from coordinator.policy.looking import next_look_s
from coordinator.policy.placement import take_overs
from coordinator.policy.state import ClusterState, Departure, PolicySettings, Presence, WorkerRecord
from protocol.control_messages import Drain
from protocol.ids import WorkerId


def time_passed(change: Change) -> Change:
    """Judge everybody's silence; give out at once what can't wait until all is looked through (`looking`)."""
    change = _clock_looked_at(change)
    doubted = _doubted(change)
    for worker in change.state.workers.values():
        change = _judged(change, worker)
    if _doubted(change) - doubted:
        change = change.stopped_moving("a worker has been away for a moment")
        change = all_placed(change, take_overs(change.state))
    return let_go(change, is_placed=change.state.changed_s is None)


def to_depart(change: Change, worker: WorkerRecord, departure: Departure) -> Change:
    """Have others given the blocks of a worker that is to leave; it goes once they have them, or at once."""
    worker = replace(worker, departure=departure, has_said_leaving=worker.has_said_leaving or departure.is_own_wish)
    change = change.with_worker(worker).then(save_worker(worker)).stopped_moving("a worker is to leave")
    return let_go(all_placed(change, take_overs(change.state)), is_placed=True)


def kept(change: Change, worker: WorkerRecord) -> Change:
    """The worker stays, if it hasn't been told to go; placement sees to who was given its blocks meanwhile."""
    departure = worker.departure
    if departure is None or departure.is_own_wish:
        return change
    worker = replace(worker, departure=None)
    change = change.with_worker(worker).then(save_worker(worker))
    before, after = {"drain_reason": departure.reason}, {"drain_reason": None}
    reason = f"was: {departure.reason}"
    return change.audited("drain_withdrawn", worker.worker_id, reason, before=before, after=after).to_place()


def let_go(change: Change, *, is_placed: bool) -> Change:
    """Have the workers drain that are to leave and that nothing is waited for any more.

    `is_placed`: whether others have been given all that they could be.
    """
    for worker in change.state.workers.values():
        if worker.departure is None or not worker.is_connected:
            continue
        reason = why_now(change.state, worker, change.now_s, is_placed=is_placed)
        if reason is not None:
            change = change.audited("worker_draining", worker.worker_id, reason)
            change = departed(change, worker, worker.departure, reason).sent(worker.worker_id, Drain(reason=reason))
    return change


def departed(change: Change, worker: WorkerRecord, departure: Departure, reason: str) -> Change:
    """The worker takes nothing new; its blocks are kept for it for a while if it may come back."""
    kept_until_s = change.now_s + change.state.settings.lost_after_s if departure.is_own_wish else None
    worker = replace(worker, departure=None, drain_reason=reason, kept_until_s=kept_until_s)
    change = change.with_worker(worker).then(save_worker(worker))
    return change if departure.is_own_wish else change.to_place()


def _doubted(change: Change) -> set[WorkerId]:
    return {worker_id for worker_id, worker in change.state.workers.items() if worker.is_doubted}


def _clock_looked_at(change: Change) -> Change:
    """Take out of everybody's silence what was none: the clock was set, or we stood still and heard nobody."""
    looked_s, now_s, state = change.state.looked_s, change.now_s, change.state
    change = replace(change, state=replace(state, looked_s=now_s))
    gap_s = 0.0 if looked_s is None else now_s - looked_s
    if 0 <= gap_s <= state.settings.longest_sweep_s:
        return change
    shift_s = max(0.0, gap_s - state.settings.longest_sweep_s)
    latest_s = now_s + state.settings.lost_after_s
    latest_start_s = max(latest_s, now_s + state.settings.longest_start_s)
    workers = {
        worker_id: replace(
            worker,
            # who was heard after the clock was set has the new time already
            seen_s=min(worker.seen_s + shift_s, now_s),
            starts_by_s=_later(worker.starts_by_s, shift_s, latest_start_s),
            kept_until_s=_later(
                worker.kept_until_s, shift_s, latest_s if worker.starts_by_s is None else latest_start_s
            ),
            departure=_shifted(worker.departure, shift_s, now_s + state.settings.longest_departure_s),
        )
        for worker_id, worker in state.workers.items()
    }
    changed_s = None if state.changed_s is None else min(state.changed_s + shift_s, now_s)
    state = replace(_moves_shifted(change.state, shift_s, now_s), workers=workers, changed_s=changed_s)
    return replace(change, state=state)


def _moves_shifted(state: ClusterState, shift_s: float, now_s: float) -> ClusterState:
    moving, improve_s = state.moving, state.improve_s
    if moving is not None:
        moving = replace(moving, step_s=min(moving.step_s + shift_s, now_s))
    if improve_s is not None:
        improve_s = min(improve_s + shift_s, next_look_s(state, now_s))
    return replace(state, moving=moving, improve_s=improve_s)


def _later(deadline_s: float | None, shift_s: float, latest_s: float) -> float | None:
    return None if deadline_s is None else min(deadline_s + shift_s, latest_s)


def _shifted(departure: Departure | None, shift_s: float, latest_s: float) -> Departure | None:
    return None if departure is None else replace(departure, by_s=min(departure.by_s + shift_s, latest_s))


def _judged(change: Change, worker: WorkerRecord) -> Change:
    if worker.kept_until_s is not None and change.now_s > worker.kept_until_s:
        worker = replace(worker, kept_until_s=None, is_doubted=worker.is_doubted and worker.presence == "suspect")
        change = change.with_worker(worker)
        if not worker.is_connected:
            return gone(change, worker, f"left: {worker.drain_reason}")
        change = change.to_place()
    settings, silent_s = change.state.settings, change.now_s - worker.seen_s
    presence = _presence(worker, change.now_s, settings)
    if presence == worker.presence:
        if presence == "gone" and silent_s > settings.forget_after_s:
            return change.without_worker(worker.worker_id)
        return _doubted_if_away(change, worker)
    is_leaving = worker.is_draining or worker.departure is not None
    if presence in ("lost", "gone"):
        worker = replace(worker, kept_until_s=None, starts_by_s=None, is_doubted=False, departure=None)
    worker = replace(worker, presence=presence)
    change = change.with_worker(worker)
    if presence == "gone" or (presence == "lost" and is_leaving):
        return gone(change, worker, f"silent for {silent_s:.0f} s")
    if presence == "lost":
        return change.audited("worker_lost", worker.worker_id, f"silent for {silent_s:.0f} s").to_place()
    return _doubted_if_away(change, worker)


def _doubted_if_away(change: Change, worker: WorkerRecord) -> Change:
    settings, now_s = change.state.settings, change.now_s
    is_silent = worker.presence == "suspect" and now_s - worker.seen_s >= settings.failover_after_s
    left_s = None if worker.kept_until_s is None else worker.kept_until_s - settings.lost_after_s
    has_left = left_s is not None and now_s - left_s >= settings.failover_after_s
    if worker.is_doubted or not (is_silent or has_left):
        return change
    return change.with_worker(replace(worker, is_doubted=True))


def _presence(worker: WorkerRecord, now_s: float, settings: PolicySettings) -> Presence:
    silent_s = now_s - worker.seen_s
    match worker.presence:
        case "here" | "suspect" | "expected":
            is_starting = worker.starts_by_s is not None and now_s <= worker.starts_by_s
            if silent_s > settings.lost_after_s and not is_starting:
                return "lost"
            is_late = worker.presence == "here" and silent_s > settings.suspect_after_s
            return "suspect" if is_late else worker.presence
        case "lost":
            return "gone" if silent_s > settings.forget_after_s else "lost"
        case "gone":
            return "gone"


def removed(change: Change, worker: WorkerRecord) -> Change:
    """The worker is forgotten, if it isn't there any more, and its pin too; what is known of its trust stays."""
    if worker.presence not in ("lost", "gone") or worker.is_connected:
        return change
    if worker.presence == "lost":
        change = gone(change, worker, "removed by an operator")
    pin = change.state.pins.get(worker.worker_id)
    before = {
        "hostname": worker.hostname,
        "url": worker.url,
        "presence": worker.presence,
        "pin": None if pin is None else f"blocks {pin.blocks} of {pin.model}",
    }
    if pin is not None:
        pins = {key: other for key, other in change.state.pins.items() if key != worker.worker_id}
        change = replace(change, state=replace(change.state, pins=pins)).then(DeletePin(worker_id=worker.worker_id))
    change = change.without_worker(worker.worker_id).then(DeleteWorker(worker_id=worker.worker_id))
    return change.audited("worker_removed", worker.worker_id, f"was {worker.presence}", before=before)


def gone(change: Change, worker: WorkerRecord, reason: str) -> Change:
    """The worker is no more: it holds nothing, and others get its blocks."""
    worker = replace(
        worker,
        presence="gone",
        is_connected=False,
        drain_reason=reason,
        departure=None,
        kept_until_s=None,
        starts_by_s=None,
        is_doubted=False,
        files=frozenset(),
        heartbeat=None,
    )
    change = change.with_worker(worker).then(save_worker(worker))
    if worker.assignment.spans:
        change = change.reassigned(worker.worker_id, (), reason)
    return change.audited("worker_gone", worker.worker_id, reason).to_place()
