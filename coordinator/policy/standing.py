"""How a worker stands, in a word and in a sentence: why it isn't ready, and what happens next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from coordinator.policy.changes import is_starting
from coordinator.policy.departure import waits_for
from coordinator.policy.state import ClusterState, WorkerRecord
from coordinator.policy.trust_words import why_quarantined
from protocol.control_messages import SpanAssignment, SpanStatus, WorkerState
from protocol.ids import WorkerId

_MAX_LISTED = 6
_Reason = str | Callable[[], str]
"""In words, or what finds them."""


def standing(state: ClusterState, worker_id: WorkerId, now_s: float) -> tuple[WorkerState, str]:
    """The worker's state and the reason for it; the reason is empty when it is ready."""
    word, reason = _standing(state, state.workers[worker_id], now_s)
    return word, reason if isinstance(reason, str) else reason()


def state_word(state: ClusterState, worker: WorkerRecord, now_s: float) -> WorkerState:
    """The worker's state alone. Some reasons take a look at all other workers: too long for who asks of all."""
    return _standing(state, worker, now_s)[0]


def _standing(state: ClusterState, worker: WorkerRecord, now_s: float) -> tuple[WorkerState, _Reason]:
    silent_s = max(0.0, now_s - worker.seen_s)
    match worker.presence:
        case "gone" if worker.trust.level == "banned":
            record = state.trust[worker.worker_id]
            return "gone", f"banned: {record.banned_reason}; it can't join until `coord trust pardon`"
        case "gone":
            return "gone", f"{worker.drain_reason or 'it left'}; start it with `worker join` to have it back"
        case "lost":
            return "lost", (
                f"silent for {silent_s:.0f} s, more than {state.settings.lost_after_s:.0f} s: its blocks are given "
                "to others; look after the machine and its network, it counts again as soon as it is heard"
            )
        case "suspect" if worker.kept_until_s is not None and not worker.is_connected:
            return _stopped(worker, max(0.0, worker.kept_until_s - now_s))
        case "suspect":
            return "suspect", _suspicion(state, worker, now_s)
        case "expected" if worker.starts_by_s is not None:
            left_s = max(0.0, worker.starts_by_s - now_s, state.settings.lost_after_s - silent_s)
            return "enrolling", (
                f"enrolled, and not connected yet: it loads its programs first; it counts as lost in {left_s:.0f} s"
            )
        case "expected":
            return "enrolling", (
                f"known, but not connected for {silent_s:.0f} s; it counts as lost after "
                f"{state.settings.lost_after_s:.0f} s"
            )
        case "here":
            return _standing_here(state, worker, now_s)


def named(worker: WorkerRecord) -> str:
    """How people find the worker: its id, and the name of its machine."""
    return f"{worker.worker_id} ({worker.hostname})" if worker.hostname else worker.worker_id


def listed(said: Sequence[str]) -> str:
    """The first few, and how many more: messages have a limit, and so have readers."""
    n_more = len(said) - _MAX_LISTED
    return ", ".join(said[:_MAX_LISTED]) + (f" and {n_more} more" if n_more > 0 else "")


def _stopped(worker: WorkerRecord, left_s: float) -> tuple[WorkerState, str]:
    if is_starting(worker):
        return "enrolling", (
            "started again, and not connected yet: it loads its programs first; its blocks are kept for it for "
            f"{left_s:.0f} s, and others with room are given them as well meanwhile"
        )
    return "gone", (
        f"left: {worker.drain_reason}; its blocks are kept for it for {left_s:.0f} s, in case it is started again; "
        "meanwhile others with room are given them as well, and then they are taken from it"
    )


def _suspicion(state: ClusterState, worker: WorkerRecord, now_s: float) -> str:
    what = "silent" if worker.is_connected else "its control socket closed; not heard of"
    silent_s = max(0.0, now_s - worker.seen_s)
    left_s = max(0.0, state.settings.lost_after_s - silent_s, (worker.starts_by_s or now_s) - now_s)
    return (
        f"{what} for {silent_s:.0f} s: no new sessions go there; others with room are given its blocks as well "
        f"after {state.settings.failover_after_s:g} s, and in {left_s:.0f} s it counts as lost"
    )


def _standing_here(state: ClusterState, worker: WorkerRecord, now_s: float) -> tuple[WorkerState, _Reason]:
    if worker.trust.level == "quarantined":
        return "quarantined", partial(why_quarantined, state, worker)
    if worker.departure is not None:
        return "draining", partial(waits_for, state, worker, now_s)
    if worker.drain_reason is not None:
        n_sessions = worker.heartbeat.n_sessions if worker.heartbeat is not None else 0
        return "draining", f"{worker.drain_reason}; it leaves once its sessions are over (now: {n_sessions})"
    if not worker.assignment.spans:
        return "idle", f"waiting for an assignment: {_why_idle(state, worker)}"
    spans = [(span, worker.status_of(span)) for span in worker.assignment.spans]
    # what is worst comes first
    for wanted in ("failed", None, "downloading", "loading"):
        for span, status in spans:
            if (status.state if status is not None else None) == wanted:
                return _word(status), span_words(span, status)
    return "ready", ""


def _why_idle(state: ClusterState, worker: WorkerRecord) -> str:
    if state.changed_s is not None or not worker.assignment.reason:
        return f"blocks are given out once nothing has changed for {state.settings.settle_s:g} s"
    return worker.assignment.reason


def _word(status: SpanStatus | None) -> WorkerState:
    if status is None:
        return "loading"
    return "idle" if status.state == "failed" else status.state


def span_words(span: SpanAssignment, status: SpanStatus | None) -> str:
    """How a span that isn't ready stands, in words."""
    what = f"blocks {span.blocks} of {span.model}"
    if status is None:
        return f"{what} were assigned; the worker has said nothing of them yet"
    how = {
        "downloading": f"are being downloaded, {status.progress:.0%} done",
        "loading": f"are being loaded, {status.progress:.0%} done",
        "failed": "failed",
        "ready": "are ready",
    }[status.state]
    return f"{what} {how}: {status.reason}" if status.reason else f"{what} {how}"
