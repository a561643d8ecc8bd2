"""What follows from trust: quarantine and release, blocks that move, bans, what operators decide, what is kept."""

from __future__ import annotations

from coordinator.policy.effects import (
    DeleteTrust,
    SaveTrust,
    SendToWorker,
    SumUpTrustEvents,
    WriteAudit,
    WriteTrustEvent,
)
from coordinator.policy.events import SocketLost, TimePassed, WorkerLeft, WorkerRemoved
from coordinator.policy.evidence_weights import DAY_S, WEIGHINGS, EvidenceKind
from coordinator.policy.routing import Route, cheapest_route
from coordinator.policy.stored import StoredState, StoredWorker, restored
from coordinator.policy.trust import Evidence, TrustRecord
from coordinator.policy.trust_changes import MAX_EVENTS, N_EVENTS_KEPT
from coordinator.policy.trust_events import (
    EvidenceSeen,
    Seen,
    TrustPinned,
    TrustUnpinned,
    WorkerBanned,
    WorkerPardoned,
)
from coordinator.policy.trust_words import below, too_little_trust, unbacked
from coordinator.policy.views import model_info, worker_info
from protocol.control_messages import Dismiss
from protocol.ids import BlockRange, ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, memory_for, ready_pair

M = ModelName("m")
A, B = WorkerId("a"), WorkerId("b")


def seen(worker: str, kind: EvidenceKind, reporter: str, weight: float | None = None) -> Seen:
    evidence = Evidence(kind=kind, reporter=reporter, weight=weight or WEIGHINGS[kind].weight)
    return Seen(worker_id=WorkerId(worker), evidence=evidence, reason="said so")


def tell(fleet: Fleet, worker: str, kind: EvidenceKind, *reporters: str, n_times: int = 1) -> None:
    for _ in range(n_times):
        fleet.do(EvidenceSeen(items=tuple(seen(worker, kind, reporter) for reporter in reporters)))


def quarantine(fleet: Fleet, worker: str) -> None:
    tell(fleet, worker, "hop_failed", "key:x", "key:y", n_times=8)
    assert fleet.state.workers[WorkerId(worker)].trust.level == "quarantined"


def whole_copies(*workers: str) -> Fleet:
    """Each of these serves the whole model."""
    fleet = Fleet()
    fleet.do(added())
    for worker in workers:
        fleet.join(worker, pinned_blocks=BlockRange(0, 8))
    fleet.wait(2)
    fleet.all_ready()
    return fleet


def route_of(fleet: Fleet, exclude: frozenset[WorkerId] = frozenset()) -> tuple[str, ...] | None:
    found = cheapest_route(fleet.state, M, exclude)
    return tuple(hop.worker_id for hop in found.hops) if isinstance(found, Route) else None


def test_failures_make_a_way_dear_and_then_no_way_at_all() -> None:
    fleet = whole_copies("a", "b")
    assert route_of(fleet) == (A,)
    tell(fleet, "a", "hop_failed", "key:x", n_times=2)
    assert route_of(fleet) == (B,)
    assert route_of(fleet, frozenset({B})) == (A,)
    quarantine(fleet, "a")
    assert route_of(fleet, frozenset({B})) is None


def test_a_quarantined_workers_blocks_go_to_others_and_then_from_it() -> None:
    fleet = ready_pair()
    held = fleet.blocks()
    quarantine(fleet, "b")
    tell(fleet, "b", "hop_failed", "key:x")
    assert not [e for e in fleet.effects if isinstance(e, WriteAudit)], "it was quarantined before"
    shown = worker_info(fleet.state, B, fleet.now_s)
    assert (shown.state, shown.trust_level) == ("quarantined", "quarantined")
    assert "hop_failed" in shown.reason
    assert "coord trust pardon" in shown.reason
    fleet.wait(2)
    assert fleet.blocks() == {"a": "0:8", "b": held["b"]}
    fleet.report("a")
    fleet.wait(1)
    assert fleet.blocks() == {"a": "0:8"}
    assert route_of(fleet) == (A,)
    assert "given to others" in worker_info(fleet.state, B, fleet.now_s).reason


def test_a_weak_worker_does_not_hold_the_last_copy_while_a_trusted_one_could() -> None:
    fleet = ready_pair()
    held = fleet.blocks()
    tell(fleet, "a", "work", "key:x", "key:y", n_times=12)
    assert fleet.blocks() == held
    tell(fleet, "b", "hop_failed", "key:x", n_times=2)
    assert fleet.state.workers[B].trust.level == "weak"
    assert "b (weak)" in model_info(fleet.state, M, fleet.now_s).reason
    fleet.wait(2)
    assert fleet.blocks() == {"a": "0:8", "b": held["b"]}
    assert fleet.state.workers[A].ready == ()
    assert fleet.state.workers[A].assignment.leaving != ()
    fleet.all_ready()
    assert model_info(fleet.state, M, fleet.now_s).reason == ""


def test_a_weak_worker_holds_it_when_nobody_else_has_room_and_the_status_says_so() -> None:
    fleet = Fleet()
    fleet.do(added())
    for worker in ("a", "b"):
        fleet.join(worker, memory=memory_for(4, ends=1))
    fleet.wait(2)
    fleet.all_ready()
    held = fleet.blocks()
    assert model_info(fleet.state, M, fleet.now_s).reason == ""
    tell(fleet, "a", "work", "key:x", "key:y", n_times=12)
    tell(fleet, "b", "hop_failed", "key:x", n_times=2)
    fleet.wait(5)
    assert fleet.blocks() == held
    assert route_of(fleet) is not None
    assert "b (weak)" in model_info(fleet.state, M, fleet.now_s).reason


def test_time_releases_and_in_the_end_forgets() -> None:
    fleet = whole_copies("a", "b")
    quarantine(fleet, "a")
    fleet.now_s += DAY_S
    effects = fleet.do(TimePassed())
    assert [e.kind for e in effects if isinstance(e, WriteTrustEvent)] == ["forgiven", "released"]
    assert fleet.state.workers[A].trust.level == "weak", "as it was before, until it is clearly above"
    fleet.now_s += DAY_S
    fleet.do(TimePassed())
    assert fleet.state.workers[A].trust.level == "probation"
    fleet.now_s += 100 * DAY_S
    fleet.do(SocketLost(worker_id=A))
    effects = fleet.pass_time(fleet.state.settings.lost_after_s + fleet.state.settings.forget_after_s + 3)
    assert DeleteTrust(worker_id=A) in effects
    assert A not in fleet.state.trust


def test_a_pardoned_newcomer_keeps_its_history_as_long_as_it_is_known() -> None:
    fleet = whole_copies("a", "b")
    quarantine(fleet, "a")
    fleet.do(WorkerPardoned(worker_id=A, by="k1", reason="a bad cable"))
    fleet.wait(10)
    assert fleet.state.trust[A].n_events > 1
    fleet.do(WorkerLeft(worker_id=A, reason="stopped"))
    fleet.do(SocketLost(worker_id=A))
    fleet.pass_time(fleet.state.settings.lost_after_s + 1)
    fleet.do(WorkerRemoved(worker_id=A))
    fleet.pass_time(2)
    assert A not in fleet.state.trust


def test_a_banned_worker_is_put_out_and_may_come_back_once_pardoned() -> None:
    fleet = ready_pair()
    effects = fleet.do(WorkerBanned(worker_id=B, by="k1", reason="it lies"))
    (sent,) = [e.message for e in effects if isinstance(e, SendToWorker)]
    assert isinstance(sent, Dismiss)
    assert (sent.error.code, "it lies" in sent.error.message) == ("forbidden", True)
    assert fleet.state.workers[B].presence == "gone"
    assert [e.action for e in effects if isinstance(e, WriteAudit)] == ["worker_banned", "worker_gone"]
    fleet.wait(2)
    assert fleet.blocks() == {"a": "0:8"}
    fleet.join("b")
    assert [e for e in fleet.effects if isinstance(e, SendToWorker) and isinstance(e.message, Dismiss)]
    assert fleet.state.workers[B].presence == "gone"
    fleet.do(WorkerBanned(worker_id=B, by="k1", reason="it lies again"))
    banned = "banned: it lies again; it can't join until `coord trust pardon`"
    assert worker_info(fleet.state, B, fleet.now_s).reason == banned
    fleet.do(WorkerPardoned(worker_id=B, by="k1", reason="it doesn't"))
    said = worker_info(fleet.state, B, fleet.now_s).reason
    assert said == "it was banned, and is pardoned; start it with `worker join` to have it back"
    fleet.join("b")
    assert fleet.state.workers[B].presence == "here"
    assert fleet.state.workers[B].trust.level == "probation"


def test_after_a_restart_it_is_still_said_why_a_worker_is_banned() -> None:
    gone = StoredWorker(worker_id=B, status="gone", hostname="", url="", device=None, seen_s=0.0)
    record = TrustRecord(banned_reason="it lies")
    again = restored(StoredState(workers=(gone,), trust={B: record}), Fleet().state.settings, 1.0)
    assert worker_info(again, B, 1.0).reason == "banned: it lies; it can't join until `coord trust pardon`"


def test_leaving_and_coming_back_changes_no_score() -> None:
    fleet = whole_copies("a", "b")
    quarantine(fleet, "a")
    score = fleet.state.workers[A].trust.score
    fleet.do(WorkerLeft(worker_id=A, reason="shedding"))
    fleet.do(SocketLost(worker_id=A))
    fleet.pass_time(fleet.state.settings.lost_after_s + fleet.state.settings.forget_after_s + 3)
    assert A not in fleet.state.workers
    fleet.join("a")
    assert fleet.state.workers[A].trust.level == "quarantined"
    # an hour has gone by, and counts as it does for everybody
    assert fleet.state.workers[A].trust.score < score + 0.06


def test_only_workers_that_are_trusted_are_heard() -> None:
    fleet = whole_copies("a", "b")
    tell(fleet, "a", "bad_bytes", "worker:b")
    assert A not in fleet.state.trust
    tell(fleet, "b", "work", "key:x", n_times=12)
    tell(fleet, "a", "bad_bytes", "worker:b")
    assert fleet.state.workers[A].trust.score < 0.5
    tell(fleet, "nobody", "hop_failed", "key:x")
    assert WorkerId("nobody") not in fleet.state.trust


def test_every_change_is_kept_with_its_reason_and_the_score_before_and_after() -> None:
    fleet = whole_copies("a")
    tell(fleet, "a", "hop_failed", "key:x")
    saved, event = fleet.effects
    assert isinstance(saved, SaveTrust)
    assert saved.record == fleet.state.trust[A]
    assert isinstance(event, WriteTrustEvent)
    assert (event.kind, event.reporter, event.reason) == ("hop_failed", "key:x", "said so")
    assert (event.score_before, event.score_after) == (0.5, fleet.state.workers[A].trust.score)
    fleet.do(TrustPinned(worker_id=A, score=0.9, by="k1", reason="mine"))
    assert fleet.state.workers[A].trust.level == "trusted"
    fleet.do(TrustUnpinned(worker_id=A, by="k1", reason="not any more"))
    assert fleet.state.workers[A].trust.score < 0.5
    summed = []
    for _ in range(MAX_EVENTS):
        tell(fleet, "a", "hop_failed", "key:x")
        summed += [e for e in fleet.effects if isinstance(e, SumUpTrustEvents)]
    assert summed == [SumUpTrustEvents(worker_id=A, n_kept=N_EVENTS_KEPT)]


def test_the_audit_log_says_what_a_decision_does_to_a_quarantine() -> None:
    fleet, said = whole_copies("a"), []
    for score in (0.1, 0.3):
        effects = fleet.do(TrustPinned(worker_id=A, score=score, by="k1", reason="mine"))
        said += [e for e in effects if isinstance(e, WriteAudit) and e.action == "trust_pinned"]
    was = [(line.before or {})["is_quarantined"] for line in said]
    became = [(line.after or {})["is_quarantined"] for line in said]
    assert (was, became) == ([False, True], [True, False])


def test_a_restart_changes_no_score() -> None:
    fleet = whole_copies("a")
    quarantine(fleet, "a")
    again = restored(StoredState(trust=fleet.state.trust), fleet.state.settings, fleet.now_s)
    assert again.trust == fleet.state.trust
    other = Fleet(again, fleet.now_s)
    other.join("a")
    assert other.state.workers[A].trust == fleet.state.workers[A].trust


def test_a_request_leaves_out_who_is_below_its_own_floor() -> None:
    fleet = whole_copies("a", "b")
    tell(fleet, "b", "work", "key:x", "key:y", n_times=12)
    assert below(fleet.state, 0.0) == frozenset()
    assert below(fleet.state, 0.6) == {A}
    assert "0.60" in too_little_trust(fleet.state, M, 0.6, frozenset({A}))
    assert unbacked(fleet.state, fleet.state.models[M]) == ""
