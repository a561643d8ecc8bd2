from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.policy.effects import (
    DeleteModel,
    SaveAssignment,
    SaveModel,
    SaveWorker,
    SendToWorker,
    WriteAudit,
)
from coordinator.policy.events import (
    AssignmentPinned,
    AssignmentUnpinned,
    DrainAsked,
    DrainWithdrawn,
    Event,
    FilesChanged,
    ModelRemoved,
    SocketLost,
    SpansReported,
    TimePassed,
    WorkerBeat,
    WorkerConnected,
    WorkerJoined,
    WorkerLeft,
    WorkerRemoved,
)
from coordinator.policy.missing import MissingBlocks
from coordinator.policy.pins import Pin
from coordinator.policy.routing import cheapest_route
from coordinator.policy.state import ClusterState, ModelRecord, PolicySettings
from coordinator.policy.stored import StoredState, StoredWorker, restored
from coordinator.policy.trust import Evidence
from coordinator.policy.trust_events import (
    AuditEnded,
    EvidenceSeen,
    Seen,
    TrustPinned,
    TrustUnpinned,
    WorkerBanned,
    WorkerPardoned,
)
from coordinator.policy.trust_words import unbacked
from coordinator.policy.views import file_sources, model_info, worker_info
from protocol.control_messages import Assign, Drain, SpanAssignment, SpanReport, SpanStatus
from protocol.ids import BlockRange, ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, announce, file_hash, heartbeat, memory_for, ready_pair

A, B = WorkerId("a"), WorkerId("b")
M = ModelName("m")


def statuses(spans: tuple[SpanAssignment, ...], state: str = "ready") -> tuple[SpanStatus, ...]:
    return tuple(
        SpanStatus(model=s.model, revision=s.revision, blocks=s.blocks, state=state, reason="")  # type: ignore[arg-type]
        for s in spans
    )


# ------------------------------------------------------------------ arriving


def test_joining_saves_the_worker_and_leaves_a_line_in_the_audit_log() -> None:
    fleet = Fleet()

    saved, audit = fleet.do(WorkerJoined(worker_id=A))

    assert isinstance(saved, SaveWorker)
    assert saved.status == "enrolled"
    assert isinstance(audit, WriteAudit)
    assert fleet.do(WorkerJoined(worker_id=A)) == (), "renewed credentials"


def test_a_worker_that_connects_is_told_its_assignment_again() -> None:
    fleet = ready_pair()
    spans = fleet.state.workers[A].assignment.spans

    fleet.do(SocketLost(worker_id=A))
    effects = fleet.do(WorkerConnected(worker_id=A, announce=announce("a", epoch=1, spans=statuses(spans))))

    sent = [e.message for e in effects if isinstance(e, SendToWorker)]
    assert sent == [Assign(epoch=1, spans=spans, reason=fleet.state.workers[A].assignment.reason)]
    assert worker_info(fleet.state, A, fleet.now_s).state == "ready"


def test_a_worker_that_was_started_again_has_to_load_its_blocks_again() -> None:
    fleet = ready_pair()

    fleet.do(SocketLost(worker_id=A))
    fleet.do(WorkerConnected(worker_id=A, announce=announce("a")))

    assert worker_info(fleet.state, A, fleet.now_s).state == "loading"
    assert fleet.last_assign[A].epoch == 1


def test_what_a_worker_holds_under_a_newer_epoch_than_known_is_taken_over() -> None:
    fleet = Fleet()
    model = added()
    fleet.do(model)
    spans = (SpanAssignment(model=M, revision=model.revision, blocks=BlockRange(0, 8)),)

    fleet.do(WorkerConnected(worker_id=A, announce=announce("a", epoch=7, spans=statuses(spans))))
    fleet.wait(2)

    assert fleet.state.workers[A].assignment.epoch == 7
    assert model_info(fleet.state, M, fleet.now_s).state == "ready"


def test_what_a_worker_claims_to_hold_of_an_unknown_model_is_dropped_under_the_next_epoch() -> None:
    fleet = Fleet()
    spans = (SpanAssignment(model=M, revision=added().revision, blocks=BlockRange(0, 8)),)

    fleet.do(WorkerConnected(worker_id=A, announce=announce("a", epoch=7, spans=statuses(spans))))

    assert fleet.last_assign[A].epoch == 8
    assert fleet.last_assign[A].spans == ()


def test_an_absurd_epoch_is_not_believed() -> None:
    fleet = Fleet()

    fleet.do(WorkerConnected(worker_id=A, announce=announce("a", epoch=2**60)))

    assert fleet.state.workers[A].assignment.epoch == 0


# ------------------------------------------------------------------ reporting


def test_reports_of_another_epoch_are_ignored() -> None:
    fleet = ready_pair()
    spans = fleet.state.workers[A].assignment.spans

    fleet.do(SpansReported(worker_id=A, report=SpanReport(epoch=0, spans=statuses(spans, "failed"))))

    assert worker_info(fleet.state, A, fleet.now_s).state == "ready"


def test_a_report_of_spans_that_are_not_assigned_is_left_out() -> None:
    fleet = ready_pair()
    spans = fleet.state.workers[B].assignment.spans

    fleet.do(SpansReported(worker_id=A, report=SpanReport(epoch=1, spans=statuses(spans))))

    assert fleet.state.workers[A].reported == ()


def test_heartbeats_and_time_write_nothing() -> None:
    fleet = ready_pair()

    assert fleet.do(WorkerBeat(worker_id=A, heartbeat=heartbeat(n_sessions=3))) == ()
    fleet.now_s += 1
    assert fleet.do(TimePassed()) == ()
    assert worker_info(fleet.state, A, fleet.now_s).n_sessions == 3


def test_others_are_offered_as_sources_of_files_while_they_are_heard_of() -> None:
    fleet = ready_pair()
    wanted, other = file_hash("x"), file_hash("y")
    fleet.do(FilesChanged(worker_id=A, files=(wanted,)))

    assert [s.worker_id for s in file_sources(fleet.state, (wanted, other), B)[wanted]] == [A]
    assert other not in file_sources(fleet.state, (wanted, other), B)
    assert file_sources(fleet.state, (wanted,), A) == {}
    fleet.wait(7, silent=("a",))
    assert file_sources(fleet.state, (wanted,), B) == {}


# ------------------------------------------------------------------ silence, leaving


def test_silence_makes_a_worker_suspect_then_lost_and_a_word_brings_it_back() -> None:
    fleet = ready_pair()
    fleet.wait(6, silent=("a",))
    assert worker_info(fleet.state, A, fleet.now_s).state == "suspect"
    assert "in 9 s it counts as lost" in worker_info(fleet.state, A, fleet.now_s).reason

    fleet.wait(10, silent=("a",))
    info = worker_info(fleet.state, A, fleet.now_s)
    assert (info.state, "silent for 16 s" in info.reason) == ("lost", True)
    fleet.wait(2, silent=("a",))
    assert fleet.blocks() == {"a": "0:4", "b": "0:8"}

    fleet.wait(1)
    assert worker_info(fleet.state, A, fleet.now_s).state == "ready"
    assert fleet.blocks() == {"a": "0:4", "b": "0:8"}


def test_a_lost_worker_is_gone_in_the_end_and_then_forgotten() -> None:
    fleet = ready_pair()
    fleet.do(SocketLost(worker_id=A))
    fleet.pass_time(20)
    effects = fleet.pass_time(3600)
    assert any(isinstance(e, SaveWorker) and e.status == "gone" for e in effects)
    assert any(isinstance(e, SaveAssignment) and e.epoch == 2 and not e.spans for e in effects)

    fleet.pass_time(3600)
    assert A not in fleet.state.workers


def test_leaving_is_draining_while_the_socket_is_open_and_gone_after() -> None:
    fleet = ready_pair()
    fleet.do(WorkerLeft(worker_id=A, reason="interrupted"))
    assert worker_info(fleet.state, A, fleet.now_s).state == "draining"

    fleet.do(SocketLost(worker_id=A))
    assert worker_info(fleet.state, A, fleet.now_s).state == "gone"
    assert "interrupted" in worker_info(fleet.state, A, fleet.now_s).reason

    fleet.join("a")
    fleet.wait(2)
    assert worker_info(fleet.state, A, fleet.now_s).state == "loading"


def test_a_drain_is_told_saved_and_told_again_to_the_same_process() -> None:
    fleet = ready_pair()
    fleet.do(DrainAsked(worker_id=A, reason="maintenance"))
    fleet.report("b")
    assert SendToWorker(worker_id=A, message=Drain(reason="maintenance")) in fleet.effects

    fleet.do(SocketLost(worker_id=A))
    again = fleet.do(WorkerConnected(worker_id=A, announce=announce("a", epoch=1)))
    assert SendToWorker(worker_id=A, message=Drain(reason="maintenance")) in again
    fleet.do(SocketLost(worker_id=A))
    fleet.wait(17)
    assert fleet.state.workers[A].presence == "gone"


def test_draining_a_lost_worker_ends_it() -> None:
    fleet = ready_pair()
    fleet.do(SocketLost(worker_id=A))
    fleet.wait(17)
    fleet.do(DrainAsked(worker_id=A, reason="broken"))

    assert fleet.state.workers[A].presence == "gone"
    assert fleet.do(DrainAsked(worker_id=A, reason="broken")) == ()
    assert fleet.do(WorkerLeft(worker_id=A, reason="late")) == ()


def test_events_of_unknown_workers_change_nothing() -> None:
    fleet = Fleet()

    assert fleet.do(SocketLost(worker_id=A)) == ()
    assert fleet.state == Fleet().state


# ------------------------------------------------------------------ models


def test_models_are_saved_before_and_deleted_after_what_names_them() -> None:
    fleet = ready_pair()
    other = added(n_blocks=4)
    effects = fleet.do(other)
    kinds = [type(e) for e in effects if not isinstance(e, SendToWorker)]
    assert kinds == [SaveAssignment, SaveAssignment, SaveModel, WriteAudit]
    assert fleet.do(other) == ()

    fleet.wait(2)
    kinds = [type(e) for e in fleet.do(ModelRemoved(name=M)) if not isinstance(e, SendToWorker)]
    assert kinds == [SaveAssignment, SaveAssignment, DeleteModel, WriteAudit]
    assert fleet.do(ModelRemoved(name=M)) == ()
    assert fleet.blocks() == {}


# ------------------------------------------------------------------ restart


def stored(fleet: Fleet) -> StoredState:
    return StoredState(
        workers=tuple(
            StoredWorker(
                worker_id=w.worker_id,
                status="present",
                hostname=w.hostname,
                url=w.url,
                device=w.device,
                seen_s=w.seen_s,
                epoch=w.assignment.epoch,
                spans=w.assignment.spans,
                reason=w.assignment.reason,
            )
            for w in fleet.state.workers.values()
        ),
        models=tuple(fleet.state.models.values()),
    )


def test_after_a_restart_workers_have_time_to_come_back_and_keep_their_blocks() -> None:
    before = ready_pair()
    fleet = Fleet(restored(stored(before), PolicySettings(), 5000.0), 5000.0)
    assert isinstance(cheapest_route(fleet.state, M), MissingBlocks)
    fleet.join("c", memory=100)
    fleet.wait(8)
    spans = before.state.workers[A].assignment.spans
    fleet.do(WorkerConnected(worker_id=A, announce=announce("a", epoch=1, spans=statuses(spans))))
    fleet.wait(5)
    assert fleet.blocks() == before.blocks(), "b may be back any moment"
    assert worker_info(fleet.state, B, fleet.now_s).state == "enrolling"

    fleet.wait(5)
    assert fleet.blocks() == {"a": "0:8", "b": "4:8"}


def test_workers_that_were_gone_stay_gone() -> None:
    gone = StoredWorker(worker_id=A, status="gone", hostname="", url="", device=None, seen_s=1.0, epoch=3)
    model = added()
    record = ModelRecord(name=M, revision=model.revision, manifest=model.manifest)
    state = restored(StoredState(workers=(gone,), models=(record,)), PolicySettings(), 2.0)

    assert state.workers[A].presence == "gone"
    assert state.workers[A].assignment.epoch == 3


# ------------------------------------------------------------------ words


def test_every_worker_and_model_that_is_not_ready_says_why() -> None:
    fleet = Fleet()
    fleet.do(added())
    assert "no worker is connected" in model_info(fleet.state, M, fleet.now_s).reason
    fleet.do(WorkerJoined(worker_id=A))
    assert "not connected yet" in worker_info(fleet.state, A, fleet.now_s).reason
    fleet.join("a", memory=memory_for(3, ends=1))
    assert "once nothing has changed for 1 s" in worker_info(fleet.state, A, fleet.now_s).reason
    assert "once nothing has changed for 1 s" in model_info(fleet.state, M, fleet.now_s).reason
    fleet.wait(2)
    info = model_info(fleet.state, M, fleet.now_s)
    assert info.state == "incomplete"
    assert "blocks 3:8 of m are held by nobody; 0.00 GB of memory more are needed" in info.reason

    fleet.join("b")
    fleet.wait(2)
    fleet.report("b", "downloading", "from a")
    info = model_info(fleet.state, M, fleet.now_s)
    assert info.state == "waiting"
    assert "on b (host-b), blocks 3:8 of m are being downloaded, 0% done: from a" in info.reason
    fleet.report("b", "failed", "disk full")
    assert worker_info(fleet.state, B, fleet.now_s).state == "idle"
    assert "disk full" in worker_info(fleet.state, B, fleet.now_s).reason
    fleet.all_ready()
    assert model_info(fleet.state, M, fleet.now_s).reason == ""
    assert [(str(c.blocks), c.n_workers) for c in model_info(fleet.state, M, 0).coverage] == [("0:8", 1)]


# ------------------------------------------------------------------ anything at all

names = st.sampled_from(["a", "b", "c", "d"])
ids = names.map(WorkerId)
ranges = st.sampled_from([BlockRange(0, 2), BlockRange(2, 4), BlockRange(1, 9)])
steps = st.one_of(
    st.builds(WorkerJoined, worker_id=ids),
    st.builds(WorkerLeft, worker_id=ids, reason=st.just("r")),
    st.builds(SocketLost, worker_id=ids),
    st.builds(DrainAsked, worker_id=ids, reason=st.just("r")),
    st.builds(DrainWithdrawn, worker_id=ids),
    st.builds(FilesChanged, worker_id=ids, files=st.just((file_hash("x"),))),
    st.builds(WorkerBeat, worker_id=ids, heartbeat=st.builds(heartbeat, decode_s_per_block=st.floats(-1, 2))),
    st.sampled_from([added(n_blocks=4), added(n_blocks=7), added("n", 3), ModelRemoved(name=M)]),
    st.just(TimePassed()),
    st.tuples(
        st.just("connect"),
        names,
        st.sampled_from([10, memory_for(2, ends=1), memory_for(5, ends=2), 10**9]),
        st.one_of(st.none(), st.none(), ranges),
        st.integers(0, 4),
        st.booleans(),
    ),
    st.tuples(st.just("report"), ids, st.sampled_from(["downloading", "loading", "ready", "ready", "failed"])),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 1.0, 3.0, 6.0, 16.0, 70.0])),
    st.tuples(st.just("jump"), st.sampled_from([-3600.0, 3600.0, 30 * 86400.0])),
    st.builds(
        lambda worker_id, kind, reporters: EvidenceSeen(
            items=tuple(
                Seen(
                    worker_id=worker_id, evidence=Evidence(kind=kind, reporter=f"key:{key}", weight=4.0), reason=""
                )
                for key in reporters
            )
        ),
        ids,
        st.sampled_from(["work", "hop_failed", "audit_failed"]),
        st.sampled_from(["a", "abc"]),
    ),
    st.builds(
        lambda compared, is_accused: AuditEnded(
            items=(), compared=(compared,), accused=compared if is_accused else None
        ),
        ids,
        st.booleans(),
    ),
    st.builds(
        TrustPinned, worker_id=ids, score=st.sampled_from([0.1, 0.3, 0.9]), by=st.just("k"), reason=st.just("r")
    ),
    *(
        st.builds(decided, worker_id=ids, by=st.just("k"), reason=st.just("r"))
        for decided in (TrustUnpinned, WorkerBanned, WorkerPardoned)
    ),
    st.builds(
        AssignmentPinned,
        worker_id=ids,
        pin=st.builds(
            Pin,
            model=st.sampled_from([ModelName("m"), ModelName("n")]),
            blocks=st.sampled_from([BlockRange(0, 2), BlockRange(1, 4), BlockRange(3, 9)]),
            by=st.just("k"),
            takes_from=st.none() | ids,
            taken=st.none() | st.just(BlockRange(1, 2)),
            is_forced=st.booleans(),
        ),
    ),
    st.builds(AssignmentUnpinned, worker_id=ids, by=st.just("k")),
    st.builds(WorkerRemoved, worker_id=ids),
)


def take(fleet: Fleet, step: object) -> None:
    match step:
        case ("connect", name, memory, pin, epoch, holds):
            worker = fleet.state.workers.get(WorkerId(name))
            spans = statuses(worker.assignment.spans) if worker is not None and holds else ()
            message = announce(name, memory=memory, epoch=epoch, spans=spans, pinned_blocks=pin)
            fleet.do(WorkerConnected(worker_id=WorkerId(name), announce=message))
        case ("report", worker_id, state):
            if worker_id in fleet.state.workers:
                fleet.report(worker_id, state)
        case ("wait", seconds):
            fleet.pass_time(seconds)
        case ("jump", seconds):
            fleet.now_s += seconds
        case _:
            fleet.do(step)  # type: ignore[arg-type]


@settings(max_examples=200)
@given(steps=st.lists(steps, max_size=40))
def test_no_sequence_of_events_breaks_an_invariant(steps: list[object | Event]) -> None:
    fleet = Fleet(ClusterState(settings=PolicySettings(forget_after_s=60.0)))
    for step in steps:
        take(fleet, step)
        for worker_id in fleet.state.workers:
            info = worker_info(fleet.state, worker_id, fleet.now_s)
            assert (info.state == "ready") == (info.reason == "")
        for name in fleet.state.models:
            shown = model_info(fleet.state, name, fleet.now_s)
            leans = unbacked(fleet.state, fleet.state.models[name])
            assert (shown.state == "ready") == (shown.reason == leans)
            route = cheapest_route(fleet.state, name)
            assert isinstance(route, MissingBlocks) == (shown.state != "ready")
            if not isinstance(route, MissingBlocks):
                assert len({hop.worker_id for hop in route.hops}) == len(route.hops)
