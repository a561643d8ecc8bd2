from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from coordinator.policy.events import ModelRemoved, SocketLost, TimePassed, WorkerBeat, WorkerLeft
from coordinator.policy.missing import MissingBlocks, missing_blocks
from coordinator.policy.routing import Route, cheapest_route
from coordinator.policy.state import NO_TICKETS_FROM_S, TICKET_LIFE_S, WorkerRecord
from coordinator.policy.under_way import Moving
from coordinator.policy.views import explained_worker
from coordinator.policy.worker_clocks import STEADY_S, clock_note
from protocol.handshake import MAX_CLOCK_SKEW_S
from protocol.ids import ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, heartbeat, memory_for, ready_pair

A, B = WorkerId("a"), WorkerId("b")
M = ModelName("m")


def beat(fleet: Fleet, worker: WorkerId, offset_s: float) -> None:
    fleet.do(WorkerBeat(worker_id=worker, heartbeat=heartbeat(time_s=fleet.now_s + offset_s)))


def said(fleet: Fleet, worker: WorkerId = A) -> str:
    return explained_worker(fleet.state, worker, fleet.now_s, "").reason


def small_pair() -> Fleet:
    """Two workers that share a model, neither with room for more of it."""
    fleet = Fleet()
    fleet.do(added())
    for name in (A, B):
        fleet.join(name, memory=memory_for(4, ends=1))
    fleet.wait(3)
    fleet.all_ready()
    return fleet


@pytest.mark.parametrize("offset_s", [0.0, 299.0, -299.0, math.nan, math.inf, -math.inf])
def test_a_clock_that_is_right_enough_to_join_is_nobodys_concern(offset_s: float) -> None:
    fleet = ready_pair()
    beat(fleet, A, offset_s)
    assert (fleet.state.workers[A].clock_offset_s, said(fleet)) == (0.0, "")


def test_older_workers_say_no_time() -> None:
    fleet = ready_pair()
    fleet.do(WorkerBeat(worker_id=A, heartbeat=heartbeat()))
    assert (fleet.state.workers[A].clock_offset_s, said(fleet)) == (0.0, "")


@pytest.mark.parametrize(
    ("offset_s", "words"),
    [
        (-7200.0, "7,200 s behind the coordinator's: tickets are good there for so much longer"),
        (-301.0, "300 s behind"),
        (1800.0, "1,800 s ahead of the coordinator's: its sessions end after 1,800 s"),
    ],
)
def test_a_wrong_clock_is_named_while_tickets_are_good_there(offset_s: float, words: str) -> None:
    fleet = ready_pair()
    beat(fleet, A, offset_s)
    worker = fleet.state.workers[A]
    assert worker.clock_offset_s == pytest.approx(offset_s, abs=5)
    assert words in said(fleet)
    assert f"it can't join again ({MAX_CLOCK_SKEW_S:.0f} s are allowed)" in said(fleet)
    assert "NTP" in said(fleet)
    assert explained_worker(fleet.state, A, fleet.now_s, "").clock_offset_s == worker.clock_offset_s
    assert isinstance(cheapest_route(fleet.state, M), Route)
    beat(fleet, A, 0.0)
    assert said(fleet) == ""


def test_who_lets_nobody_in_is_on_no_route_until_its_clock_is_right() -> None:
    fleet = small_pair()
    beat(fleet, A, TICKET_LIFE_S)
    assert "no new sessions go there" in said(fleet)
    missing = cheapest_route(fleet.state, M)
    assert isinstance(missing, MissingBlocks)
    assert not missing.is_on_its_way, "waiting for a clock doesn't help"
    assert "its clock is 3,600 s ahead of the coordinator's" in missing.message
    fleet.wait(5, silent=(A,))
    beat(fleet, A, NO_TICKETS_FROM_S - MAX_CLOCK_SKEW_S)
    assert isinstance(cheapest_route(fleet.state, M), Route)


def test_others_with_room_are_given_its_blocks_and_it_keeps_them() -> None:
    fleet = small_pair()
    fleet.join("c", memory=memory_for(4, ends=1))
    fleet.wait(3)
    before = fleet.state.workers[A].assignment
    beat(fleet, A, 7200.0)
    for _ in range(3):
        fleet.now_s += 1.0
        for worker in (B, WorkerId("c")):
            beat(fleet, worker, 0.0)
        beat(fleet, A, 7201.0)
    fleet.all_ready()
    assert missing_blocks(fleet.state, fleet.state.models[M]) is None
    assert {hop.worker_id for hop in routed(fleet).hops} == {B, "c"}
    assert fleet.state.workers[A].assignment == before
    assert fleet.state.workers[A].is_doubted
    set_right(fleet)
    assert not fleet.state.workers[A].is_doubted


def set_right(fleet: Fleet) -> None:
    """The clock of A is right for as long as is asked for, to the second."""
    for _ in range(int(STEADY_S) + 1):
        assert fleet.state.workers[A].is_doubted
        assert not fleet.state.workers[A].can_be_assigned
        beat(fleet, A, 1.0)
        fleet.now_s += 1.0


def test_a_clock_that_goes_wrong_or_is_right_for_good_ends_a_move_and_is_news_to_placement() -> None:
    for is_set_right in (False, True):
        fleet = small_pair()
        if is_set_right:
            beat(fleet, A, 7200.0)
        moving = Moving(target={}, reason="better", step_s=fleet.now_s)
        fleet.state = replace(fleet.state, moving=moving)
        n_changes = fleet.state.n_changes
        if is_set_right:
            set_right(fleet)
        else:
            beat(fleet, A, 7200.0)
        assert fleet.state.moving is None
        assert fleet.state.n_changes - n_changes == is_set_right, "what others can have they have got already"


def test_a_clock_that_goes_wrong_again_ends_a_move_too() -> None:
    """The next step waits until all are here and let sessions in: for an hour, where it stays wrong."""
    fleet = small_pair()
    beat(fleet, A, 7200.0)
    beat(fleet, A, 0.0)
    fleet.state = replace(fleet.state, moving=Moving(target={}, reason="better", step_s=fleet.now_s))
    n_changes = fleet.state.n_changes
    beat(fleet, A, 7200.0)
    assert fleet.state.moving is None
    assert fleet.state.n_changes == n_changes


def test_a_clock_that_is_right_and_wrong_by_turns_puts_nothing_off() -> None:
    """Each turn was news, so that placement waited for a quiet that never came."""
    fleet = small_pair()
    fleet.do(added("other", n_blocks=2))
    fleet.join("c", memory=memory_for(8, ends=2))
    assert fleet.state.changed_s is not None
    for index in range(3 * int(STEADY_S)):
        fleet.now_s += 0.5
        beat(fleet, A, 7200.0 if index % 2 else 0.0)
        for other in (B, "c"):
            beat(fleet, WorkerId(other), 0.0)
        fleet.do(TimePassed())
        fleet.all_ready()
    assert fleet.state.changed_s is None
    assert "c" in fleet.blocks("other")
    assert (fleet.state.workers[A].is_doubted, fleet.state.workers[A].can_be_assigned) == (True, False)


def test_routes_go_by_what_a_clock_says_now() -> None:
    fleet = small_pair()
    beat(fleet, A, 7200.0)
    assert isinstance(cheapest_route(fleet.state, M), MissingBlocks)
    beat(fleet, A, 0.0)
    assert isinstance(cheapest_route(fleet.state, M), Route)
    assert "its clock was wrong a moment ago: it is given new blocks once that has been right for 30 s" in said(
        fleet
    )
    fleet.do(ModelRemoved(name=M))
    beat(fleet, B, 7200.0)
    fleet.do(added("next"))
    fleet.now_s += 3.0
    beat(fleet, A, 0.0)
    fleet.do(TimePassed())
    missing = cheapest_route(fleet.state, ModelName("next"))
    assert isinstance(missing, MissingBlocks)
    assert "the clocks of workers are wrong, or were a moment ago (`coord status`" in missing.message


def test_a_clock_of_ours_that_is_set_back_shuts_nobody_out_for_longer() -> None:
    fleet = small_pair()
    beat(fleet, A, 7200.0)
    beat(fleet, A, 0.0)
    fleet.now_s -= 3600.0
    beat(fleet, A, 0.0)
    assert not fleet.state.workers[A].is_shut_out


def test_who_was_stopped_is_on_its_way_out_whatever_its_clock_says() -> None:
    fleet = small_pair()
    beat(fleet, A, 7200.0)
    fleet.do(WorkerLeft(worker_id=A, reason="stopped"))
    beat(fleet, A, 0.0)
    worker = fleet.state.workers[A]
    assert worker.kept_until_s is not None
    assert worker.is_doubted


def routed(fleet: Fleet) -> Route:
    found = cheapest_route(fleet.state, M)
    assert isinstance(found, Route)
    return found


def test_where_all_say_so_it_is_the_coordinators_clock() -> None:
    fleet = ready_pair()
    beat(fleet, A, -1000.0)
    assert "coordinator's clock that is wrong" not in said(fleet)
    beat(fleet, B, -1000.0)
    assert "all 2 workers say so, so it is probably the coordinator's clock that is wrong" in said(fleet)


def test_what_all_clocks_say_is_counted_once_a_state() -> None:
    """It was for each worker, so that `coord status` took the square of their number."""
    fleet = ready_pair()
    for worker in (A, B):
        beat(fleet, worker, -1000.0)

    class Counted(dict[WorkerId, WorkerRecord]):
        n_walks = 0

        def values(self) -> Any:
            type(self).n_walks += 1
            return super().values()

    state = replace(fleet.state, workers=Counted(fleet.state.workers))
    for worker in (A, B, A, B):
        assert "all 2 workers say so" in clock_note(state, state.workers[worker])
    assert Counted.n_walks == 1
    assert "all 2" not in clock_note(replace(state, workers={A: state.workers[A]}), state.workers[A])


def test_who_connects_again_with_a_wrong_clock_is_still_gone_round() -> None:
    """Its blocks aren't taken for held until it says the time again."""
    fleet = small_pair()
    beat(fleet, A, 7200.0)
    epoch = fleet.state.workers[A].assignment.epoch
    fleet.do(SocketLost(worker_id=A))
    fleet.join(A, memory=memory_for(4, ends=1), epoch=epoch)
    worker = fleet.state.workers[A]
    assert (worker.takes_no_tickets, worker.is_doubted) == (True, True)


def test_who_was_started_again_has_shown_at_the_door_that_its_clock_is_right() -> None:
    fleet = small_pair()
    beat(fleet, A, 7200.0)
    fleet.do(SocketLost(worker_id=A))
    fleet.join(A, memory=memory_for(4, ends=1))
    worker = fleet.state.workers[A]
    assert (worker.takes_no_tickets, worker.is_doubted) == (False, False)
    assert "clock" not in said(fleet)
    missing = cheapest_route(fleet.state, M)
    assert isinstance(missing, MissingBlocks)
    assert missing.is_on_its_way, "it loads its blocks again"


def test_who_is_away_with_a_wrong_clock_is_told_as_away() -> None:
    fleet = ready_pair()
    beat(fleet, A, 7200.0)
    fleet.do(SocketLost(worker_id=A))
    fleet.wait(20)
    assert "clock" not in said(fleet)
    assert fleet.state.workers[A].presence == "lost"
