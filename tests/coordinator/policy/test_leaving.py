"""Workers that start, and don't come: what they held, and for how long it is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.policy.events import SocketLost, WorkerConnected, WorkerJoined, WorkerLeft, WorkerNotComing
from coordinator.policy.state import PolicySettings
from coordinator.policy.stored import restored
from coordinator.policy.views import worker_info
from protocol.ids import WorkerId
from tests.coordinator.policy.fleet import Fleet, added, announce, memory_for, ready_pair
from tests.coordinator.policy.simulated_store import SimulatedStore

A, B = WorkerId("a"), WorkerId("b")
WRONG = WorkerNotComing(worker_id=A, reason="its start failed: port 9464 is taken")


def word_and_reason(fleet: Fleet, worker_id: WorkerId = A) -> tuple[str, str]:
    info = worker_info(fleet.state, worker_id, fleet.now_s)
    return info.state, info.reason


def test_a_new_worker_that_does_not_come_is_gone_at_once_and_says_why() -> None:
    fleet = Fleet()
    fleet.do(WorkerJoined(worker_id=A))
    fleet.do(WRONG)
    state, reason = word_and_reason(fleet)
    assert state == "gone"
    assert "its start failed: port 9464 is taken" in reason
    fleet.do(WorkerJoined(worker_id=A))
    assert word_and_reason(fleet)[0] == "enrolling"


def test_what_an_earlier_start_said_is_not_taken_for_the_next_ones_word() -> None:
    fleet = Fleet()
    fleet.do(WorkerJoined(worker_id=A, token_until_s=2000.0))
    fleet.do(WorkerJoined(worker_id=A, token_until_s=2001.0))
    fleet.do(replace(WRONG, token_until_s=2000.0))
    assert word_and_reason(fleet)[0] == "enrolling", "it was heard after the next start had enrolled"
    fleet.do(replace(WRONG, token_until_s=2001.0))
    assert word_and_reason(fleet)[0] == "gone"


def test_a_worker_that_is_started_again_at_once_reads_as_starting_and_not_as_gone() -> None:
    fleet = ready_pair()
    fleet.do(WorkerLeft(worker_id=A, reason="the worker was stopped"))
    fleet.do(SocketLost(worker_id=A))
    assert word_and_reason(fleet)[0] == "gone"
    fleet.do(WorkerJoined(worker_id=A))
    state, reason = word_and_reason(fleet)
    assert state == "enrolling"
    assert "started again, and not connected yet" in reason
    fleet.do(WRONG)
    assert word_and_reason(fleet)[0] == "gone"


def test_what_a_restarted_worker_held_is_kept_for_it_for_a_while_if_its_start_fails() -> None:
    fleet = ready_pair()
    fleet.do(SocketLost(worker_id=A))
    fleet.do(WorkerJoined(worker_id=A))
    fleet.wait(5)
    fleet.do(WRONG)
    state, reason = word_and_reason(fleet)
    assert state == "gone"
    assert "its blocks are kept for it for 15 s" in reason
    fleet.wait(10)
    assert fleet.blocks() == {"a": "0:4", "b": "0:8"}

    fleet.do(WorkerJoined(worker_id=A))
    fleet.wait(40)
    assert fleet.blocks() == {"a": "0:4", "b": "0:8"}, "it loads its programs"
    fleet.do(WorkerConnected(worker_id=A, announce=announce("a")))
    assert fleet.state.workers[A].presence == "here"


def test_a_worker_that_does_not_come_again_and_again_has_the_time_of_its_first_try_only() -> None:
    fleet = ready_pair()
    fleet.do(SocketLost(worker_id=A))
    for _ in range(25):
        fleet.do(WorkerJoined(worker_id=A))
        fleet.do(WRONG)
        fleet.wait(5)
    assert fleet.blocks() == {"b": "0:8"}


def test_a_worker_that_is_here_is_believed_by_its_socket() -> None:
    fleet = ready_pair()
    fleet.do(WRONG)
    assert word_and_reason(fleet)[0] == "ready"
    fleet.do(SocketLost(worker_id=A))
    fleet.do(WRONG)
    assert word_and_reason(fleet)[0] == "suspect", "it isn't starting either"


# ------------------------------------------------------------------ a socket of which nobody hears the end


def test_a_worker_whose_old_socket_is_half_open_has_two_minutes_to_start_too() -> None:
    fleet = ready_pair()
    fleet.wait(2, silent=("a",))
    fleet.do(WorkerJoined(worker_id=A))
    fleet.wait(5, silent=("a",))
    fleet.do(SocketLost(worker_id=A))
    fleet.wait(100)
    assert word_and_reason(fleet)[0] == "suspect"
    assert fleet.blocks() == {"a": "0:4", "b": "0:8"}
    fleet.wait(20)
    assert word_and_reason(fleet)[0] == "lost"


def test_it_is_not_lost_while_the_old_socket_stays_open_for_long() -> None:
    fleet = ready_pair()
    fleet.do(WorkerJoined(worker_id=A))
    fleet.wait(100, silent=("a",))
    assert word_and_reason(fleet)[0] == "suspect"
    fleet.wait(22, silent=("a",))
    assert word_and_reason(fleet)[0] == "lost"


def test_new_credentials_for_who_is_heard_on_its_socket_give_no_time() -> None:
    fleet = ready_pair()
    fleet.do(WorkerJoined(worker_id=A))
    fleet.wait(2)
    fleet.do(SocketLost(worker_id=A))
    fleet.wait(18)
    assert word_and_reason(fleet)[0] == "lost"


def test_one_that_was_stopped_and_whose_socket_stayed_open_has_its_blocks_kept_while_it_starts() -> None:
    fleet = ready_pair()
    fleet.do(WorkerLeft(worker_id=A, reason="interrupted"))
    fleet.wait(2, silent=("a",))
    fleet.do(WorkerJoined(worker_id=A))
    fleet.do(SocketLost(worker_id=A))
    fleet.wait(60)
    assert fleet.blocks() == {"a": "0:4", "b": "0:8"}
    fleet.do(WRONG)
    fleet.wait(20)
    assert fleet.blocks() == {"b": "0:8"}


# ------------------------------------------------------------------ a coordinator that was started again


def starting_fleet() -> tuple[Fleet, SimulatedStore]:
    """A worker enrolled 40 s ago, and has connected never."""
    fleet, store = Fleet(), SimulatedStore()
    store.save(fleet.do(added()))
    store.save(fleet.do(WorkerJoined(worker_id=A)))
    fleet.wait(40)
    return fleet, store


def start_anew(store: SimulatedStore, now_s: float) -> Fleet:
    return Fleet(restored(store.stored(), PolicySettings(), now_s), now_s)


def test_a_starting_worker_has_what_was_left_of_its_time_after_a_restart() -> None:
    before, store = starting_fleet()
    fleet = start_anew(store, before.now_s)
    assert "it counts as lost in 80 s" in word_and_reason(fleet)[1]
    fleet.do(WorkerJoined(worker_id=A))
    assert "it counts as lost in 80 s" in word_and_reason(fleet)[1]
    fleet.wait(78)
    assert word_and_reason(fleet)[0] == "enrolling"
    fleet.wait(4)
    assert word_and_reason(fleet)[0] == "lost"


@pytest.mark.parametrize(("away_s", "left_s"), [(75.0, 15), (5000.0, 15), (-5000.0, 120)])
def test_nobody_is_lost_for_the_time_of_a_restart_nor_gains_by_a_clock(away_s: float, left_s: int) -> None:
    before, store = starting_fleet()
    fleet = start_anew(store, before.now_s + away_s)
    assert f"it counts as lost in {left_s} s" in word_and_reason(fleet)[1]
    fleet.do(WorkerJoined(worker_id=A))
    fleet.wait(left_s + 3)
    assert word_and_reason(fleet)[0] == "lost"


def test_who_has_connected_or_does_not_come_is_not_stored_as_starting() -> None:
    fleet, store = starting_fleet()
    store.save(fleet.do(WorkerConnected(worker_id=A, announce=announce("a", memory=memory_for(8, ends=2)))))
    assert store.workers[A].starts_by_s is None
    fleet.wait(2)
    store.save(fleet.do(SocketLost(worker_id=A)))
    store.save(fleet.do(WorkerJoined(worker_id=A)))
    assert store.workers[A].starts_by_s == fleet.now_s + 120
    store.save(fleet.do(WRONG))
    assert store.workers[A].starts_by_s is None
