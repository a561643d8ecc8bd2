"""What follows for workers when trust changes: who is quarantined, released, put out, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from coordinator.policy.audit_accusations import accusations_counted
from coordinator.policy.changes import Change
from coordinator.policy.departure import is_served_elsewhere
from coordinator.policy.effects import (
    AuditAction,
    DeleteTrust,
    SaveTrust,
    SendToWorker,
    SumUpTrustEvents,
    TrustEventKind,
    WriteTrustEvent,
)
from coordinator.policy.passing import gone
from coordinator.policy.state import ClusterState
from coordinator.policy.trust import (
    COORDINATOR,
    NEWCOMER,
    NO_RECORD,
    ROUTED_FROM,
    Level,
    Reporter,
    Standing,
    TrustRecord,
    adds_nothing,
    is_as_new,
    reviewed,
    standing,
    with_evidence,
    without_blame,
)
from coordinator.policy.trust_events import (
    AuditEnded,
    EvidenceSeen,
    Seen,
    TrustEvent,
    TrustPinned,
    TrustUnpinned,
    WorkerBanned,
    WorkerPardoned,
)
from protocol.control_messages import Dismiss
from protocol.errors import ForbiddenError
from protocol.ids import WorkerId

REVIEWS_SHARE = 30
"""Each second one in so many workers is looked at: scores move slowly with time, a large fleet is much to do."""
MAX_EVENTS = 200
N_EVENTS_KEPT = 100
"""When a worker has more than the first, all but so many are summed up."""
MAX_REASON = 500

_BADNESS: dict[Level, int] = {"trusted": 0, "probation": 0, "weak": 1, "quarantined": 2, "banned": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """What the history says of a change."""

    kind: TrustEventKind
    reporter: Reporter = COORDINATOR
    weight: float = 0.0
    reason: str


def trust_changed(change: Change, event: TrustEvent) -> Change:
    """What was seen of workers, or decided about one, and all that follows."""
    if isinstance(event, AuditEnded):
        change = accusations_counted(change, event)
    if isinstance(event, EvidenceSeen | AuditEnded):
        for seen in event.items:
            change = _seen(change, seen)
        return change
    if event.worker_id not in change.state.workers and event.worker_id not in change.state.trust:
        return change
    return _decided(change, event)


def reviewed_some(change: Change) -> Change:
    """Have time count for a few of all; and take their blocks from the quarantined as soon as others serve them."""
    change = _blocks_taken(change)
    state, now_s = change.state, change.now_s
    known = tuple(state.trust)
    if not known:
        return change
    n_reviewed, start = len(known) // REVIEWS_SHARE + 1, state.n_trust_reviews % len(known)
    change = replace(change, state=replace(state, n_trust_reviews=start + n_reviewed))
    for worker_id in (known + known)[start : start + n_reviewed]:
        record = state.trust[worker_id]
        if is_as_new(record, now_s) and worker_id not in state.workers:
            # until then its history stays to be read: of a pardoned newcomer nothing else is left
            change = _forgotten(change, worker_id)
        elif reviewed(record, now_s) != record:
            change = _recorded(change, worker_id, record, _Line(kind="forgiven", reason="evidence grows old"))
        else:
            change = _stands(change, worker_id, _standing(change, worker_id, record))
    return change


def refused(change: Change, worker_id: WorkerId) -> Change:
    """A banned worker got through to us nevertheless: it is told, and its socket closed."""
    return change.then(SendToWorker(worker_id=worker_id, message=_dismissal(change.state.trust[worker_id])))


def is_banned(state: ClusterState, worker_id: WorkerId) -> bool:
    """Whether the worker is to be let in no more."""
    record = state.trust.get(worker_id)
    return record is not None and record.banned_reason is not None


def banned_workers(state: ClusterState) -> tuple[WorkerId, ...]:
    """All that are banned."""
    return tuple(worker_id for worker_id, record in state.trust.items() if record.banned_reason is not None)


def why_refused(record: TrustRecord) -> str | None:
    """Why the worker may neither join nor connect; None if it may."""
    if record.banned_reason is None:
        return None
    return f"this worker is banned from the cluster ({record.banned_reason}); `coord trust pardon` lets it in again"


# ------------------------------------------------------------------ evidence


def _seen(change: Change, seen: Seen) -> Change:
    state, now_s, evidence = change.state, change.now_s, seen.evidence
    is_known = seen.worker_id in state.workers or seen.worker_id in state.trust
    if not is_known or not _is_heard(change, evidence.reporter, seen.worker_id):
        return change
    record = state.trust.get(seen.worker_id, NO_RECORD)
    if adds_nothing(record, evidence, now_s):
        return change
    line = _Line(kind=evidence.kind, reporter=evidence.reporter, weight=evidence.weight, reason=seen.reason)
    return _recorded(change, seen.worker_id, with_evidence(record, evidence, now_s), line)


def _is_heard(change: Change, reporter: Reporter, about: WorkerId) -> bool:
    """Of workers only those that are trusted themselves say anything of others: a new identity costs nothing."""
    kind, _, name = reporter.partition(":")
    if kind != "worker" or name == about:
        return True
    worker = change.state.workers.get(WorkerId(name))
    return worker is not None and worker.trust.level == "trusted"


# ------------------------------------------------------------------ what operators decide


def _decided(change: Change, event: TrustPinned | TrustUnpinned | WorkerBanned | WorkerPardoned) -> Change:
    worker_id, record = event.worker_id, change.state.trust.get(event.worker_id, NO_RECORD)
    reason = event.reason[:MAX_REASON]
    details = f"{reason}, says {event.by}"
    by = f"key:{event.by}"
    match event:
        case TrustPinned(score=score):
            line = _Line(kind="pinned", reporter=by, reason=reason)
            after = replace(record, pinned=score)
            change = _audited(change, "trust_pinned", worker_id, f"{score:.2f}: {details}", after)
            return _recorded(change, worker_id, after, line)
        case TrustUnpinned():
            line = _Line(kind="unpinned", reporter=by, reason=reason)
            after = replace(record, pinned=None)
            return _recorded(_audited(change, "trust_unpinned", worker_id, details, after), worker_id, after, line)
        case WorkerBanned():
            line = _Line(kind="banned", reporter=by, reason=reason)
            after = replace(record, banned_reason=reason)
            change = _audited(change, "worker_banned", worker_id, details, after)
            return _put_out(_recorded(change, worker_id, after, line), worker_id)
        case WorkerPardoned():
            line = _Line(kind="pardoned", reporter=by, reason=reason)
            after = without_blame(record)
            change = _audited(change, "worker_pardoned", worker_id, details, after)
            return _let_in(_recorded(change, worker_id, after, line), worker_id, record)


def _audited(change: Change, action: AuditAction, worker_id: WorkerId, details: str, after: TrustRecord) -> Change:
    before = _view(change.state.trust.get(worker_id, NO_RECORD))
    after = reviewed(after, change.now_s)
    return change.audited(action, worker_id, details, before=before, after=_view(after))


def _view(record: TrustRecord) -> dict[str, Any]:
    """What operators decide about a worker's trust, and what they pardon."""
    return {
        "pinned": record.pinned,
        "banned_reason": record.banned_reason,
        "is_quarantined": record.is_quarantined,
    }


def _put_out(change: Change, worker_id: WorkerId) -> Change:
    worker, record = change.state.workers.get(worker_id), change.state.trust[worker_id]
    if worker is None or worker.presence == "gone":
        return change
    if worker.is_connected:
        change = refused(change, worker_id)
    return gone(change, worker, f"banned: {record.banned_reason}")


def _let_in(change: Change, worker_id: WorkerId, before: TrustRecord) -> Change:
    """What is said of a worker that is gone isn't that it is banned any more."""
    worker = change.state.workers.get(worker_id)
    if worker is None or worker.presence != "gone" or before.banned_reason is None:
        return change
    return change.with_worker(replace(worker, drain_reason="it was banned, and is pardoned"))


def _dismissal(record: TrustRecord) -> Dismiss:
    return Dismiss(error=ForbiddenError(why_refused(record) or "").body())


# ------------------------------------------------------------------ records


def _recorded(change: Change, worker_id: WorkerId, record: TrustRecord, line: _Line) -> Change:
    """The same with this record, saved, with its place in the history, and all that follows from the score."""
    now_s = change.now_s
    old = change.state.trust.get(worker_id, NO_RECORD)
    before, record = _standing(change, worker_id, old), reviewed(record, now_s)
    if record.is_quarantined and not old.is_quarantined:
        record = replace(record, quarantine_reason=f"{line.kind}: {line.reason}")
    after = _standing(change, worker_id, record)
    lines = [line, *_quarantine_lines(old, record)]
    n_events = old.n_events + len(lines)
    record = replace(record, n_events=N_EVENTS_KEPT if n_events > MAX_EVENTS else n_events)
    state = replace(change.state, trust={**change.state.trust, worker_id: record})
    change = replace(change, state=state).then(SaveTrust(worker_id=worker_id, record=record))
    for each in lines:
        change = change.then(_event(worker_id, now_s, each, before, after))
    if n_events > MAX_EVENTS:
        change = change.then(SumUpTrustEvents(worker_id=worker_id, n_kept=N_EVENTS_KEPT))
    return _stands(change, worker_id, after)


def _standing(change: Change, worker_id: WorkerId, record: TrustRecord) -> Standing:
    worker = change.state.workers.get(worker_id)
    return standing(record, change.now_s, NEWCOMER if worker is None else worker.trust)


def _quarantine_lines(old: TrustRecord, new: TrustRecord) -> list[_Line]:
    if new.is_quarantined == old.is_quarantined:
        return []
    if new.is_quarantined:
        return [_Line(kind="quarantined", reason=f"the score fell below {ROUTED_FROM:g}")]
    return [_Line(kind="released", reason="the score is high enough again")]


def _event(worker_id: WorkerId, now_s: float, line: _Line, before: Standing, after: Standing) -> WriteTrustEvent:
    return WriteTrustEvent(
        at_s=now_s,
        worker_id=worker_id,
        kind=line.kind,
        reporter=line.reporter,
        weight=line.weight,
        score_before=before.score,
        score_after=after.score,
        reason=line.reason[:MAX_REASON],
    )


def _stands(change: Change, worker_id: WorkerId, now: Standing) -> Change:
    """The worker with this standing; what it holds is looked at again where that is news to placement."""
    worker = change.state.workers.get(worker_id)
    if worker is None or worker.trust == now:
        return change
    before = worker.trust
    change = change.with_worker(replace(worker, trust=now))
    if now.level == "quarantined" and before.level != "quarantined":
        reason = change.state.trust[worker_id].quarantine_reason
        change = change.audited("worker_quarantined", worker_id, f"score {now.score:.2f}: {reason}")
    elif before.level == "quarantined" and not now.is_barred:
        change = change.audited("worker_released", worker_id, f"score {now.score:.2f}")
    if _BADNESS[now.level] == _BADNESS[before.level]:
        return change
    return change.to_place()


def _forgotten(change: Change, worker_id: WorkerId) -> Change:
    trust = {key: record for key, record in change.state.trust.items() if key != worker_id}
    change = replace(change, state=replace(change.state, trust=trust)).then(DeleteTrust(worker_id=worker_id))
    return _stands(change, worker_id, _standing(change, worker_id, NO_RECORD))


def _blocks_taken(change: Change) -> Change:
    for worker in change.state.workers.values():
        if worker.trust.level != "quarantined" or not worker.assignment.spans or not worker.is_connected:
            continue
        if is_served_elsewhere(change.state, worker):
            change = change.reassigned(worker.worker_id, (), "quarantined; others serve its blocks")
    return change
