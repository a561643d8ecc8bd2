"""Blocks of a worker that was stopped: kept for it while it may be a restart, then given to others."""

from __future__ import annotations

from coordinator.policy.events import DrainAsked, SocketLost, WorkerConnected, WorkerJoined, WorkerLeft
from coordinator.policy.views import model_info, worker_info
from protocol.ids import ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, announce

A, B = WorkerId("a"), WorkerId("b")
M = ModelName("m")


def ready_pair() -> Fleet:
    fleet = Fleet()
    fleet.do(added())
    fleet.join("a")
    fleet.join("b")
    fleet.wait(2)
    fleet.all_ready()
    return fleet


def stopped_pair() -> Fleet:
    """A pair whose first worker was stopped where it runs (SIGTERM)."""
    fleet = ready_pair()
    fleet.do(WorkerLeft(worker_id=A, reason="interrupted"))
    fleet.do(SocketLost(worker_id=A))
    return fleet


def test_a_restarted_worker_gets_its_blocks_back_and_nothing_else_moves() -> None:
    fleet = stopped_pair()
    before = fleet.blocks()
    fleet.wait(12)
    assert "kept for it for 3 s" in worker_info(fleet.state, A, fleet.now_s).reason
    assert model_info(fleet.state, M, fleet.now_s).state == "waiting", "others needn't be bought for it"
    fleet.do(WorkerJoined(worker_id=A))
    fleet.wait(12)
    fleet.do(WorkerConnected(worker_id=A, announce=announce("a")))
    fleet.wait(20)

    assert fleet.blocks() == before == {"a": "0:4", "b": "4:8"}
    assert fleet.state.workers[B].assignment.epoch == 1
    fleet.all_ready()
    assert model_info(fleet.state, M, fleet.now_s).state == "ready"


def test_a_stopped_worker_that_stays_away_loses_its_blocks_as_one_that_fell_silent() -> None:
    fleet = stopped_pair()
    fleet.wait(15)
    assert fleet.blocks() == {"a": "0:4", "b": "4:8"}

    fleet.wait(3)
    assert fleet.blocks() == {"b": "0:8"}
    assert "left: interrupted" in worker_info(fleet.state, A, fleet.now_s).reason


def test_a_stopped_worker_whose_sessions_run_on_is_replaced_before_it_goes() -> None:
    fleet = ready_pair()
    fleet.do(WorkerLeft(worker_id=A, reason="interrupted"))
    fleet.wait(18)

    assert fleet.blocks() == {"a": "0:4", "b": "0:8"}
    fleet.do(SocketLost(worker_id=A))
    assert fleet.state.workers[A].presence == "gone"


def test_a_drained_worker_that_says_it_leaves_keeps_nothing() -> None:
    fleet = ready_pair()
    fleet.do(DrainAsked(worker_id=A, reason="maintenance"))
    fleet.do(WorkerLeft(worker_id=A, reason="maintenance"))
    fleet.do(SocketLost(worker_id=A))

    assert fleet.state.workers[A].presence == "gone"


def test_draining_a_stopped_worker_gives_its_blocks_away_at_once() -> None:
    fleet = stopped_pair()
    fleet.do(DrainAsked(worker_id=A, reason="it won't be back"))

    assert fleet.state.workers[A].presence == "gone"
    fleet.wait(2)
    assert fleet.blocks() == {"b": "0:8"}


def test_a_clock_set_back_keeps_no_blocks_for_long() -> None:
    fleet = stopped_pair()
    fleet.now_s -= 3600
    fleet.wait(3)

    assert fleet.blocks() == {"b": "0:8"}


def test_leaving_that_is_said_after_the_socket_closed_counts_the_same() -> None:
    fleet = ready_pair()
    fleet.do(SocketLost(worker_id=A))
    fleet.do(WorkerLeft(worker_id=A, reason="interrupted"))
    assert fleet.blocks() == {"a": "0:4", "b": "4:8"}

    fleet.wait(18)
    assert fleet.state.workers[A].presence == "gone"
