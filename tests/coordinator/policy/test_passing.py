"""Silence, and what follows: blocks of workers that are away, for a moment or for good, and clocks that are set."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.policy.events import (
    DrainAsked,
    SocketLost,
    TimePassed,
    WorkerBeat,
    WorkerConnected,
    WorkerJoined,
    WorkerLeft,
)
from coordinator.policy.views import model_info, worker_info
from protocol.control_messages import SpanStatus
from protocol.ids import ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, announce, heartbeat, memory_for, ready_pair

A, B = WorkerId("a"), WorkerId("b")
M = ModelName("m")


def stopped_pair() -> Fleet:
    """A pair whose first worker was stopped where it runs (SIGTERM)."""
    fleet = ready_pair()
    fleet.do(WorkerLeft(worker_id=A, reason="interrupted"))
    fleet.do(SocketLost(worker_id=A))
    return fleet


def test_a_restarted_worker_gets_its_blocks_back_and_is_a_replica_more() -> None:
    fleet = stopped_pair()
    fleet.wait(12)
    assert "kept for it for 3 s" in worker_info(fleet.state, A, fleet.now_s).reason
    assert model_info(fleet.state, M, fleet.now_s).state == "waiting", "others needn't be bought for it"
    fleet.do(WorkerJoined(worker_id=A))
    fleet.wait(12)
    fleet.do(WorkerConnected(worker_id=A, announce=announce("a")))
    fleet.wait(20)

    assert fleet.blocks() == {"a": "0:4", "b": "0:8"}
    assert fleet.state.workers[A].assignment.epoch == 1
    assert fleet.state.workers[B].assignment.epoch == 2
    fleet.all_ready()
    assert model_info(fleet.state, M, fleet.now_s).state == "ready"


def restarted_pair() -> Fleet:
    """A pair whose coordinator was started again, as after a power cut: nobody is connected yet."""
    before = ready_pair().state
    workers = {w: replace(worker, presence="expected", is_connected=False) for w, worker in before.workers.items()}
    return Fleet(replace(before, workers=workers), now_s=1002.0)


def test_a_worker_that_has_enrolled_has_two_minutes_to_load_its_programs() -> None:
    fleet = restarted_pair()
    fleet.wait(10)
    fleet.do(WorkerJoined(worker_id=A))
    assert (
        "it loads its programs first; it counts as lost in 120 s" in worker_info(fleet.state, A, fleet.now_s).reason
    )
    fleet.wait(20)
    assert worker_info(fleet.state, A, fleet.now_s).state == "enrolling"
    assert worker_info(fleet.state, B, fleet.now_s).state == "lost", "it said nothing"
    fleet.join("c")
    fleet.wait(2)
    assert fleet.blocks() == {"a": "0:4", "b": "4:8", "c": "4:8"}

    fleet.do(WorkerConnected(worker_id=A, announce=announce("a")))
    assert fleet.state.workers[A].starts_by_s is None
    fleet.wait(20, silent=("a",))
    assert worker_info(fleet.state, A, fleet.now_s).state == "lost", "what it was given was for its start"


def test_a_worker_that_enrols_again_and_again_and_never_connects_is_lost_all_the_same() -> None:
    fleet = restarted_pair()
    for _ in range(25):
        fleet.do(WorkerJoined(worker_id=A))
        fleet.wait(5)
    assert worker_info(fleet.state, A, fleet.now_s).state == "lost"
    fleet.do(WorkerJoined(worker_id=A))
    assert worker_info(fleet.state, A, fleet.now_s).state == "lost"


def test_a_killed_worker_that_starts_again_is_waited_for_while_others_hold_its_blocks_too() -> None:
    fleet = ready_pair()
    fleet.do(SocketLost(worker_id=A))
    fleet.wait(3)
    assert fleet.blocks() == {"a": "0:4", "b": "0:8"}
    fleet.do(WorkerJoined(worker_id=A))
    fleet.wait(40)
    assert "in 80 s it counts as lost" in worker_info(fleet.state, A, fleet.now_s).reason
    fleet.wait(81)
    assert worker_info(fleet.state, A, fleet.now_s).state == "lost"


@pytest.mark.parametrize("step_s", [-5000.0, 5000.0])
def test_a_clock_that_is_set_neither_shortens_nor_lengthens_a_start(step_s: float) -> None:
    fleet = restarted_pair()
    fleet.do(WorkerJoined(worker_id=A))
    fleet.wait(10)
    fleet.now_s += step_s
    fleet.wait(1)
    assert worker_info(fleet.state, A, fleet.now_s).state == "enrolling"
    fleet.wait(122)
    assert worker_info(fleet.state, A, fleet.now_s).state == "lost"


def test_a_stopped_worker_that_stays_away_loses_its_blocks_as_one_that_fell_silent() -> None:
    fleet = stopped_pair()
    fleet.wait(15)
    assert fleet.blocks() == {"a": "0:4", "b": "0:8"}

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
    fleet.wait(18)

    assert fleet.blocks() == {"b": "0:8"}


def test_leaving_that_is_said_after_the_socket_closed_counts_the_same() -> None:
    fleet = ready_pair()
    fleet.do(SocketLost(worker_id=A))
    fleet.do(WorkerLeft(worker_id=A, reason="interrupted"))
    assert fleet.blocks() == {"a": "0:4", "b": "4:8"}

    fleet.wait(18)
    assert fleet.state.workers[A].presence == "gone"


# ------------------------------------------------------------------ away for a moment


def test_blocks_of_a_killed_worker_are_given_to_others_within_seconds_and_it_keeps_them() -> None:
    fleet = ready_pair()
    fleet.do(SocketLost(worker_id=A))
    fleet.wait(1)
    assert fleet.blocks() == {"a": "0:4", "b": "4:8"}

    fleet.wait(1)
    assert fleet.blocks() == {"a": "0:4", "b": "0:8"}
    fleet.do(WorkerConnected(worker_id=A, announce=announce("a")))
    fleet.all_ready()
    fleet.wait(20)
    assert fleet.blocks() == {"a": "0:4", "b": "0:8"}
    assert [(str(c.blocks), c.n_workers) for c in model_info(fleet.state, M, fleet.now_s).coverage] == [
        ("0:4", 2),
        ("4:8", 1),
    ]


def test_blocks_of_a_silent_worker_are_given_to_others_once_it_is_suspect() -> None:
    fleet = ready_pair()
    fleet.wait(3, silent=("a",))
    assert fleet.blocks() == {"a": "0:4", "b": "4:8"}

    fleet.wait(1, silent=("a",))
    assert fleet.blocks() == {"a": "0:4", "b": "0:8"}


def test_a_spare_takes_over_before_anybody_grows() -> None:
    fleet = ready_pair()
    fleet.join("spare", memory=memory_for(4, ends=1))
    fleet.wait(2)
    fleet.all_ready()
    fleet.do(SocketLost(worker_id=B))
    fleet.join("empty", memory=memory_for(4, ends=1))
    fleet.do(WorkerBeat(worker_id=A, heartbeat=heartbeat()))
    fleet.wait(3)

    assert fleet.blocks()["empty"] == "4:8"
    assert fleet.blocks()["a"] == "0:4"


def test_what_doesnt_fit_beside_what_is_served_waits_until_the_worker_is_lost() -> None:
    """It may be back in a moment, and then everything that was there is needed."""
    fleet = Fleet()
    fleet.do(added())
    fleet.join("a", memory=memory_for(9, ends=2))
    fleet.join("b", memory=memory_for(9, ends=2))
    fleet.wait(2)
    fleet.all_ready()
    assert fleet.blocks() == {"a": "0:4", "b": "4:8"}
    fleet.do(SocketLost(worker_id=A))
    fleet.wait(14)
    assert fleet.blocks() == {"a": "0:4", "b": "4:8"}

    fleet.wait(4)
    assert fleet.blocks() == {"a": "0:4", "b": "0:8"}
    assert fleet.state.workers[B].assignment.leaving == ()


def test_after_a_restart_nobody_is_in_doubt_before_it_had_time_to_come_back() -> None:
    fleet = Fleet()
    fleet.do(added())
    fleet.do(WorkerJoined(worker_id=A))
    fleet.wait(10)

    assert not fleet.state.workers[A].is_doubted


@settings(max_examples=10)
@given(away_s=st.integers(2, 5), here_s=st.integers(1, 4))
def test_a_worker_that_flaps_causes_one_more_assignment_and_no_others(away_s: int, here_s: int) -> None:
    fleet = ready_pair()
    for _ in range(20):
        epoch, spans = fleet.state.workers[A].assignment.epoch, fleet.state.workers[A].assignment.spans
        fleet.do(SocketLost(worker_id=A))
        fleet.wait(away_s)
        held = tuple(
            SpanStatus(model=s.model, revision=s.revision, blocks=s.blocks, state="ready", reason="") for s in spans
        )
        fleet.do(WorkerConnected(worker_id=A, announce=announce("a", epoch=epoch, spans=held)))
        fleet.wait(here_s)
        fleet.report("b")

    assert fleet.state.workers[A].assignment.epoch == 1
    assert fleet.state.workers[B].assignment.epoch == 2


# ------------------------------------------------------------------ the clock


@pytest.mark.parametrize("step_s", [-3600.0, -20.0, 20.0, 3600.0])
def test_nobody_is_silent_because_the_clock_was_set(step_s: float) -> None:
    fleet = ready_pair()
    fleet.now_s += step_s
    fleet.do(TimePassed())
    for worker_id in (A, B):
        assert worker_info(fleet.state, worker_id, fleet.now_s).state == "ready"
    fleet.wait(20)

    assert fleet.blocks() == {"a": "0:4", "b": "4:8"}
    assert [w.assignment.epoch for w in fleet.state.workers.values()] == [1, 1]


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
def test_silence_goes_on_counting_when_the_clock_was_set(step_s: float) -> None:
    fleet = ready_pair()
    fleet.wait(10, silent=("a",))
    fleet.now_s += step_s
    fleet.wait(17, silent=("a",))

    assert fleet.state.workers[A].presence == "lost"
    assert fleet.state.workers[B].presence == "here"


def test_placement_goes_on_when_the_clock_was_set_back() -> None:
    fleet = Fleet()
    fleet.do(added())
    fleet.do(TimePassed())
    fleet.join("a")
    fleet.now_s -= 3600
    fleet.wait(2)

    assert fleet.blocks() == {"a": "0:8"}
