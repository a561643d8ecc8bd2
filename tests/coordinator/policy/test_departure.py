"""Draining by an operator: others have the blocks before the worker takes nothing more; or it goes at once."""

from __future__ import annotations

from coordinator.policy.effects import SendToWorker
from coordinator.policy.events import DrainAsked, DrainWithdrawn, SocketLost, WorkerConnected, WorkerLeft
from coordinator.policy.state import ClusterState, PolicySettings
from coordinator.policy.stored import restored
from coordinator.policy.views import worker_info
from protocol.control_messages import Drain, SpanStatus
from protocol.ids import WorkerId
from tests.coordinator.policy.fleet import Fleet, added, announce, memory_for, ready_pair
from tests.coordinator.policy.simulated_store import SimulatedStore

A, B = WorkerId("a"), WorkerId("b")


def departing_pair() -> Fleet:
    """A pair whose first worker is to leave and whose second has room for it all, and is told to load it."""
    fleet = ready_pair()
    fleet.do(DrainAsked(worker_id=A, reason="maintenance"))
    return fleet


def is_told(fleet: Fleet) -> bool:
    """Whether the last event had the worker told to drain."""
    return any(
        isinstance(effect, SendToWorker) and effect.worker_id == A and isinstance(effect.message, Drain)
        for effect in fleet.effects
    )


def test_a_drained_worker_serves_until_others_hold_its_blocks() -> None:
    fleet = departing_pair()
    assert fleet.blocks() == {"a": "0:4", "b": "0:8"}
    fleet.wait(8)
    assert fleet.state.workers[A].is_routable
    info = worker_info(fleet.state, A, fleet.now_s)
    assert (info.state, info.reason) == (
        "draining",
        "maintenance; it serves on until blocks 0:4 of m are ready on b, 52 s at most; "
        "then it finishes what runs and leaves",
    )

    fleet.report("b")
    assert is_told(fleet)
    assert not fleet.state.workers[A].is_routable
    assert fleet.state.workers[A].drain_reason == "maintenance"


def test_a_worker_that_is_to_stay_after_all_does_until_it_was_told_to_go() -> None:
    fleet = departing_pair()
    fleet.do(DrainWithdrawn(worker_id=A))
    fleet.report("b")
    fleet.wait(70)
    fleet.all_ready()
    assert fleet.state.workers[A].is_routable
    assert fleet.state.workers[A].departure is None
    assert fleet.do(DrainWithdrawn(worker_id=A)) == ()

    told = departing_pair()
    told.report("b")
    assert told.do(DrainWithdrawn(worker_id=A)) == ()
    assert told.state.workers[A].drain_reason == "maintenance"


def test_a_worker_whose_blocks_others_serve_drains_at_once() -> None:
    fleet = departing_pair()
    fleet.report("b")
    fleet.join("c")
    fleet.wait(2)
    fleet.all_ready()
    fleet.do(DrainAsked(worker_id=WorkerId("c"), reason="maintenance"))
    assert not fleet.state.workers[WorkerId("c")].is_routable


def test_a_worker_whose_blocks_nobody_has_room_for_drains_at_once_and_says_so() -> None:
    fleet = Fleet()
    fleet.do(added())
    fleet.join("a", memory=memory_for(4, ends=1))
    fleet.join("b", memory=memory_for(4, ends=1))
    fleet.wait(2)
    fleet.all_ready()
    fleet.do(DrainAsked(worker_id=A, reason="maintenance"))
    assert is_told(fleet)
    assert (
        "maintenance, and nobody else has room for blocks 0:4 of m"
        in worker_info(fleet.state, A, fleet.now_s).reason
    )


def test_who_fails_to_load_or_takes_too_long_is_waited_for_no_longer() -> None:
    failing = departing_pair()
    failing.report("b", "failed", "disk full")
    failing.wait(2)
    assert "nobody else has room" in str(failing.state.workers[A].drain_reason)

    slow = departing_pair()
    slow.wait(59)
    assert slow.state.workers[A].is_routable
    slow.wait(1)
    assert slow.state.workers[A].drain_reason == (
        "maintenance, and blocks 0:4 of m weren't ready elsewhere within 60 s"
    )


def test_a_worker_that_goes_by_itself_meanwhile_leaves_nothing_behind() -> None:
    lost = departing_pair()
    lost.do(SocketLost(worker_id=A))
    lost.wait(17)
    assert lost.state.workers[A].presence == "gone"

    stopped = departing_pair()
    stopped.do(WorkerLeft(worker_id=A, reason="interrupted"))
    stopped.do(SocketLost(worker_id=A))
    assert stopped.state.workers[A].presence == "gone"


def stopped_pair() -> Fleet:
    """As `departing_pair`, but the first worker was stopped where it runs and serves on for a while."""
    fleet = ready_pair()
    fleet.do(WorkerLeft(worker_id=A, reason="interrupted", serves_on_s=10.0))
    return fleet


def test_a_stopped_worker_serves_on_until_others_can_and_keeps_its_blocks_for_its_return() -> None:
    fleet = stopped_pair()
    assert fleet.state.workers[A].is_routable
    assert fleet.blocks() == {"a": "0:4", "b": "0:8"}
    fleet.report("b")
    assert is_told(fleet)
    assert not fleet.state.workers[A].is_routable
    fleet.do(SocketLost(worker_id=A))
    fleet.wait(10)
    assert fleet.blocks() == {"a": "0:4", "b": "0:8"}
    fleet.do(WorkerConnected(worker_id=A, announce=announce("a")))
    assert fleet.state.workers[A].is_routable


def test_a_stopped_worker_is_not_waited_for_longer_than_it_serves() -> None:
    slow = stopped_pair()
    slow.wait(10)
    assert is_told(slow)

    killed = stopped_pair()
    killed.do(SocketLost(worker_id=A))
    assert not killed.state.workers[A].is_routable
    killed.wait(10)
    assert killed.state.workers[A].presence == "suspect"
    killed.wait(8)
    assert killed.state.workers[A].presence == "gone"


def test_an_operator_who_drains_a_stopped_worker_gives_its_blocks_away() -> None:
    fleet = stopped_pair()
    fleet.do(DrainAsked(worker_id=A, reason="maintenance"))
    assert fleet.state.workers[A].is_routable
    fleet.do(SocketLost(worker_id=A))
    assert fleet.state.workers[A].presence == "gone"

    drained = departing_pair()
    drained.do(WorkerLeft(worker_id=A, reason="interrupted", serves_on_s=10.0))
    assert is_told(drained)
    assert drained.state.workers[A].kept_until_s is None


def test_a_restarted_coordinator_goes_on_with_it() -> None:
    fleet = Fleet()
    store = SimulatedStore()

    def do(event: object) -> None:
        store.save(fleet.do(event))  # type: ignore[arg-type]

    do(added())
    for name in ("a", "b"):
        store.save(fleet.do(WorkerConnected(worker_id=WorkerId(name), announce=announce(name))))
    fleet.wait(1)
    store.save(fleet.effects)
    fleet.all_ready()
    do(DrainAsked(worker_id=A, reason="maintenance"))

    again = Fleet(restored(store.stored(), PolicySettings(), fleet.now_s), fleet.now_s)
    assert isinstance(again.state, ClusterState)
    for worker in (A, B):
        assignment = again.state.workers[worker].assignment
        spans = tuple(
            SpanStatus(model=s.model, revision=s.revision, blocks=s.blocks, state="ready", reason="")
            for s in assignment.spans
            if worker == A
        )
        again.do(WorkerConnected(worker_id=worker, announce=announce(worker, epoch=assignment.epoch, spans=spans)))
    again.wait(2)
    assert again.state.workers[A].is_routable
    again.report("b")
    assert is_told(again)
