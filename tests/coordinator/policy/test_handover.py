"""Make before break: a worker serves what it has until it has what it is to have, if it has room for both."""

from __future__ import annotations

from coordinator.policy.changes import Change
from coordinator.policy.events import ModelRemoved, ReplicasAsked, SocketLost, SpansReported, WorkerConnected
from coordinator.policy.handover import breaks_a_route
from coordinator.policy.routing import Route, cheapest_route
from coordinator.policy.sizing import spans_bytes
from coordinator.policy.state import Assignment, PolicySettings
from coordinator.policy.stored import StoredState, StoredWorker, restored
from coordinator.policy.views import model_info, worker_info
from protocol.control_messages import SpanAssignment, SpanReport, SpanState, SpanStatus
from protocol.ids import BlockRange, ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, announce, memory_for

A, B = WorkerId("a"), WorkerId("b")
M, N = ModelName("m"), ModelName("n")


def pair(memory: int = 10**9) -> Fleet:
    fleet = Fleet()
    fleet.do(added())
    fleet.join("a", memory=memory)
    fleet.join("b", memory=memory)
    fleet.wait(2)
    fleet.all_ready()
    fleet.wait(2)
    return fleet


def growing_pair() -> Fleet:
    """A pair of which each has half of the model, and was told to have all of it."""
    fleet = pair()
    fleet.do(ReplicasAsked(name=M, n_replicas=2))
    fleet.wait(1)
    assert fleet.blocks() == {"a": "0:8", "b": "0:8"}
    return fleet


def status(span: SpanAssignment, state: SpanState) -> SpanStatus:
    return SpanStatus(model=span.model, revision=span.revision, blocks=span.blocks, state=state, reason="")


def leaving(fleet: Fleet, worker_id: WorkerId = A) -> list[str]:
    return [f"{span.model} {span.blocks}" for span in fleet.state.workers[worker_id].assignment.leaving]


def hops(fleet: Fleet, model: ModelName = M) -> list[tuple[str, str]]:
    route = cheapest_route(fleet.state, model)
    assert isinstance(route, Route), route
    return [(hop.worker_id, str(hop.blocks)) for hop in route.hops]


def test_while_a_worker_loads_more_it_is_routed_to_for_what_it_has() -> None:
    fleet = growing_pair()
    assert hops(fleet) == [("a", "0:4"), ("b", "4:8")]
    info = worker_info(fleet.state, A, fleet.now_s)
    assert info.state == "loading"
    assert [(str(s.blocks), s.state) for s in info.spans] == [("0:8", "downloading"), ("0:4", "ready")]

    fleet.report("a", "loading")
    assert hops(fleet) == [("a", "0:4"), ("b", "4:8")]
    fleet.report("a")
    assert leaving(fleet) == []
    assert hops(fleet) == [("a", "0:8")]


def test_a_worker_that_fails_to_load_more_is_routed_to_for_what_it_has() -> None:
    fleet = growing_pair()
    fleet.report("a", "failed", "disk full")
    fleet.wait(3)

    assert hops(fleet) == [("a", "0:4"), ("b", "4:8")]


def test_of_several_models_each_is_served_until_its_own_replacement_is_ready() -> None:
    fleet = pair()
    fleet.do(added("n", 8))
    fleet.wait(2)
    fleet.all_ready()
    fleet.do(ReplicasAsked(name=M, n_replicas=2))
    fleet.do(ReplicasAsked(name=N, n_replicas=2))
    fleet.wait(1)
    assert leaving(fleet) == ["m 0:4", "n 0:4"]
    assignment = fleet.state.workers[A].assignment
    states: dict[ModelName, SpanState] = {M: "ready", N: "loading"}
    report = SpanReport(epoch=assignment.epoch, spans=tuple(status(s, states[s.model]) for s in assignment.spans))
    fleet.do(SpansReported(worker_id=A, report=report))

    assert leaving(fleet) == ["n 0:4"]
    assert hops(fleet, M) == [("a", "0:8")]
    assert hops(fleet, N) == [("a", "0:4"), ("b", "4:8")]


def test_what_is_wanted_again_before_it_was_dropped_is_ready() -> None:
    fleet = growing_pair()
    model = added("n", 4)
    fleet.do(model)
    other = SpanAssignment(model=N, revision=model.revision, blocks=BlockRange(0, 4))
    again, grown = other_range(fleet, 0, 4), fleet.state.workers[A].assignment.spans
    change = Change(state=fleet.state, now_s=fleet.now_s)
    worker = change.assigned(A, Assignment(epoch=3, spans=(*again, other))).state.workers[A]

    assert worker.ready == again
    assert worker.assignment.leaving == ()
    assert worker.assignment.unwanted_bytes == spans_bytes(fleet.state, grown, "float32", 0), "it may be loading"


def test_a_removed_model_is_served_no_longer_even_where_another_goes_on() -> None:
    fleet = pair()
    fleet.do(added("n", 8))
    fleet.wait(2)
    fleet.all_ready()
    fleet.do(ReplicasAsked(name=M, n_replicas=2))
    fleet.do(ReplicasAsked(name=N, n_replicas=2))
    fleet.wait(1)
    fleet.do(ModelRemoved(name=M))

    assert leaving(fleet) == ["n 0:4"]
    assert hops(fleet, N) == [("a", "0:4"), ("b", "4:8")]


def test_a_worker_that_was_started_again_serves_nothing_of_before() -> None:
    fleet = growing_pair()
    fleet.do(SocketLost(worker_id=A))
    fleet.do(WorkerConnected(worker_id=A, announce=announce("a")))

    assert leaving(fleet) == []


def test_a_worker_whose_socket_broke_serves_on() -> None:
    fleet = growing_pair()
    assignment = fleet.state.workers[A].assignment
    fleet.do(SocketLost(worker_id=A))
    spans = tuple(status(span, "loading") for span in assignment.spans)
    fleet.do(WorkerConnected(worker_id=A, announce=announce("a", epoch=assignment.epoch, spans=spans)))

    assert hops(fleet) == [("a", "0:4"), ("b", "4:8")]


def test_a_worker_that_missed_its_assignment_serves_on_what_it_says_it_has() -> None:
    fleet = growing_pair()
    old = fleet.state.workers[A].assignment.leaving
    fleet.do(SocketLost(worker_id=A))
    spans = tuple(status(span, "ready") for span in old)
    fleet.do(WorkerConnected(worker_id=A, announce=announce("a", epoch=1, spans=spans)))

    assert hops(fleet) == [("a", "0:4"), ("b", "4:8")]


def restarted(before: Fleet) -> Fleet:
    """The coordinator anew, from what it had saved: it knows of nobody."""
    rows = tuple(
        StoredWorker(
            worker_id=w.worker_id,
            status="present",
            hostname="",
            url="",
            device=w.device,
            seen_s=1.0,
            epoch=w.assignment.epoch,
            spans=w.assignment.spans,
        )
        for w in before.state.workers.values()
    )
    stored = StoredState(workers=rows, models=tuple(before.state.models.values()))
    return Fleet(restored(stored, PolicySettings(), before.now_s), before.now_s)


def back(fleet: Fleet, worker_id: WorkerId, state: SpanState, **options: object) -> None:
    """The worker finds the coordinator that was started again; its spans are in this state."""
    assignment = fleet.state.workers[worker_id].assignment
    spans = tuple(status(span, state) for span in assignment.spans)
    said = announce(worker_id, epoch=assignment.epoch, spans=spans, **options)  # type: ignore[arg-type]
    fleet.do(WorkerConnected(worker_id=worker_id, announce=said))


def test_after_a_restart_of_the_coordinator_workers_serve_on_what_they_say_they_do() -> None:
    before = growing_pair()
    fleet = restarted(before)
    for worker_id in (A, B):
        back(fleet, worker_id, "loading", leaving=before.state.workers[worker_id].assignment.leaving)
    assert hops(fleet) == [("a", "0:4"), ("b", "4:8")]

    fleet.all_ready()
    assert leaving(fleet) == []


def test_after_a_restart_of_the_coordinator_who_cant_load_beside_what_it_serves_isnt_believed_to() -> None:
    before = growing_pair()
    fleet = restarted(before)
    old = before.state.workers[A].assignment.leaving
    back(fleet, A, "loading", leaving=old, memory=memory_for(8, ends=2))
    assert leaving(fleet) == []


def test_after_a_restart_of_the_coordinator_no_more_is_given_than_surely_fits_beside_what_may_be_there() -> None:
    fleet = restarted(growing_pair())
    back(fleet, A, "loading")
    back(fleet, B, "ready")
    assert fleet.state.workers[A].assignment.unwanted_bytes is None
    assert fleet.state.workers[B].assignment.unwanted_bytes == 0
    fleet.do(added("n", 4))
    fleet.wait(2)
    assert fleet.state.workers[A].assignment.unwanted_bytes is None
    fleet.all_ready()

    assert fleet.state.workers[A].assignment.unwanted_bytes == 0


# ------------------------------------------------------------------ changes that break routes


def other_range(fleet: Fleet, start: int, end: int) -> tuple[SpanAssignment, ...]:
    return (SpanAssignment(model=M, revision=fleet.state.models[M].revision, blocks=BlockRange(start, end)),)


def test_a_change_for_which_there_is_room_breaks_no_route() -> None:
    fleet = pair()

    assert not breaks_a_route(fleet.state, {A: other_range(fleet, 2, 6)})


def test_taking_the_last_ready_range_away_breaks_a_route() -> None:
    fleet = pair(memory_for(5, ends=2))

    assert breaks_a_route(fleet.state, {A: other_range(fleet, 2, 6)})
    assert breaks_a_route(fleet.state, {A: other_range(fleet, 4, 8), B: other_range(fleet, 0, 4)})


def test_a_range_that_others_have_ready_may_be_taken_away_from_one_but_not_from_all() -> None:
    fleet = pair(memory_for(5, ends=2))
    fleet.join("c", memory=memory_for(5, ends=2))
    fleet.wait(2)
    assert fleet.blocks()["c"] == "0:5"
    assert breaks_a_route(fleet.state, {A: other_range(fleet, 2, 6)}), "c isn't ready yet"
    fleet.all_ready()

    assert not breaks_a_route(fleet.state, {A: other_range(fleet, 2, 6)})
    assert breaks_a_route(fleet.state, {A: other_range(fleet, 2, 6), WorkerId("c"): other_range(fleet, 2, 6)})


def test_where_there_is_no_route_none_can_be_broken() -> None:
    fleet = pair(memory_for(5, ends=2))
    fleet.do(SocketLost(worker_id=B))

    assert model_info(fleet.state, M, fleet.now_s).state != "ready"
    assert not breaks_a_route(fleet.state, {A: other_range(fleet, 2, 6)})
