from __future__ import annotations

import math
from dataclasses import replace

import pytest

from coordinator.policy.events import SocketLost, WorkerBeat, WorkerLeft
from coordinator.policy.missing import MissingBlocks, missing_blocks
from coordinator.policy.routing import Route, cheapest_route
from coordinator.policy.state import NO_TICKETS_FROM_S, TICKET_LIFE_S
from coordinator.policy.under_way import Moving
from coordinator.policy.views import explained_worker
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
    beat(fleet, A, 1.0)
    assert not fleet.state.workers[A].is_doubted


def test_a_clock_that_goes_wrong_or_right_ends_a_move_and_is_news_to_placement() -> None:
    for offsets_s in ((7200.0,), (7200.0, 0.0)):
        fleet = small_pair()
        for offset_s in offsets_s[:-1]:
            beat(fleet, A, offset_s)
        moving = Moving(target={}, reason="better", step_s=fleet.now_s)
        fleet.state = replace(fleet.state, moving=moving)
        n_changes = fleet.state.n_changes
        beat(fleet, A, offsets_s[-1])
        assert fleet.state.moving is None
        assert fleet.state.n_changes - n_changes == len(offsets_s) - 1, "what others can have they have got already"


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
