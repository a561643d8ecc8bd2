from __future__ import annotations

from dataclasses import replace
from typing import get_args

import msgspec
import pytest

from coordinator.policy.events import ModelRemoved, SocketLost, WorkerBeat, WorkerConnected
from coordinator.policy.improvement import improvement
from coordinator.policy.looking import still_holds
from coordinator.policy.plan import planned_spans
from coordinator.policy.sizing import BLOCK_START_S
from coordinator.policy.state import NO_TICKETS_FROM_S, Assignment, ClusterState, Placement
from coordinator.policy.transition import apply
from protocol.ids import BlockRange, ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, announce, heartbeat, memory_for

HEAD_IN_BLOCKS = 0.024 / (0.006 + BLOCK_START_S)
"""Of four blocks' weights, on a device as the fleet's are."""


def said(fleet: Fleet, worker: str, seconds: float, **more: object) -> float:
    """What a token is taken to need in a block, once the worker says that it measured so much."""
    beat = heartbeat(decode_s_per_block=seconds, **more)
    fleet.do(WorkerBeat(worker_id=WorkerId(worker), heartbeat=beat))
    return fleet.state.workers[WorkerId(worker)].block_s


def pair() -> Fleet:
    fleet = Fleet()
    fleet.do(added(end_parameters=4000))
    for name, blocks in (("head", BlockRange(0, 4)), ("tail", BlockRange(4, 8))):
        fleet.join(name, pinned_blocks=blocks)
    fleet.wait(2)
    return fleet


def test_what_the_last_stage_measures_is_counted_without_the_models_end() -> None:
    fleet = pair()
    fleet.all_ready()

    assert said(fleet, "head", 0.01) == 0.01
    assert said(fleet, "tail", 0.01 * (4 + HEAD_IN_BLOCKS) / 4) == pytest.approx(0.01)


def test_what_was_measured_before_other_blocks_came_is_counted_as_it_was() -> None:
    fleet = pair()

    assert said(fleet, "tail", 0.01) == 0.01
    fleet.all_ready()
    assert said(fleet, "tail", 0.01) == 0.01, "nothing has run since"
    assert said(fleet, "tail", 0.02) == pytest.approx(0.02 * 4 / (4 + HEAD_IN_BLOCKS))


@pytest.mark.parametrize("ends", [0.0, 1 / 8, 1 / 4, 1.0])
def test_as_much_of_the_models_end_is_taken_out_as_the_worker_says_that_it_ran(ends: float) -> None:
    fleet = pair()
    fleet.all_ready()

    for worker in ("head", "tail"):  # one that ran the end until a moment ago, and one that ran parts of its span
        measured_s = 0.01 * (1 + ends * HEAD_IN_BLOCKS)
        assert said(fleet, worker, measured_s, ends_per_block=ends) == pytest.approx(0.01)


@pytest.mark.parametrize("ends", [-1.0, 1.5, float("nan"), float("inf")])
def test_more_ends_than_blocks_cant_have_been_run(ends: float) -> None:
    fleet = pair()
    fleet.all_ready()

    by_blocks = 0.01 * 4 / (4 + HEAD_IN_BLOCKS)
    assert said(fleet, "tail", 0.01, ends_per_block=ends) == pytest.approx(by_blocks), "as if nothing were said"


def test_who_begins_anew_since_its_blocks_changed_is_as_fast_as_before() -> None:
    fleet = pair()
    fleet.all_ready()
    said(fleet, "tail", 0.01, ends_per_block=0.0)

    assert said(fleet, "tail", 0.0) == 0.01
    assert said(fleet, "tail", 0.03, ends_per_block=0.0) == 0.03


def test_what_was_measured_of_two_models_together_says_nothing_of_the_one_that_stays() -> None:
    fleet = Fleet()
    for name in ("m", "n"):
        fleet.do(added(name, n_blocks=2))
    fleet.join("both", memory=memory_for(4, ends=4))
    fleet.wait(2)
    fleet.all_ready()
    assert len(fleet.state.workers[WorkerId("both")].ready) == 2
    said(fleet, "both", 0.01, ends_per_block=0.5)
    fleet.do(ModelRemoved(name=ModelName("n")))

    assert said(fleet, "both", 0.0, ends_per_block=0.0) == 0.0


def test_what_was_measured_of_other_weights_is_forgotten_once_the_worker_begins_anew() -> None:
    fleet = pair()
    fleet.all_ready()
    said(fleet, "tail", 0.01, ends_per_block=0.0)
    fleet.do(ModelRemoved(name=ModelName("m")))
    fleet.do(added("n", end_parameters=4000))
    fleet.wait(2)
    assert fleet.blocks("n")["tail"] == "4:8"

    assert said(fleet, "tail", 0.0) == 0.0


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e9, 5e-324, 1e-10])
def test_what_cant_have_been_measured_is_nothing(seconds: float) -> None:
    fleet = pair()
    fleet.all_ready()

    assert said(fleet, "tail", seconds) == 0.0


@pytest.mark.parametrize("liar", ["measures", "announces"])
def test_a_worker_that_says_it_takes_no_time_stops_no_planner(liar: str) -> None:
    """As 5e-324 s a block, or 1e308 bytes a second; what is divided by that overflowed."""
    fleet = Fleet()
    fleet.do(added())
    for name in ("honest", "liar", "slow"):
        speed = {"slow": 1e-9, "liar": 1e302 if liar == "announces" else 1.0}.get(name, 1.0)
        fleet.join(name, memory=memory_for(5, ends=2), speed=speed)
    fleet.wait(2)
    fleet.all_ready()
    if liar == "measures":
        said(fleet, "liar", 5e-324)
    for wanted in get_args(Placement):
        for counts_head in (True, False):
            assert planned_spans(fleet.state, wanted, counts_head=counts_head)
    assert improvement(fleet.state, is_asked=True).reason


def test_who_comes_back_has_measured_nothing_yet() -> None:
    fleet = pair()
    said(fleet, "head", 0.01)
    fleet.do(SocketLost(worker_id=WorkerId("head")))
    again = announce("head", pinned_blocks=BlockRange(0, 4))
    fleet.do(WorkerConnected(worker_id=WorkerId("head"), announce=again))

    assert fleet.state.workers[WorkerId("head")].block_s == 0.0


def test_what_is_measured_while_other_blocks_are_on_their_way_is_of_those_that_are_served_still() -> None:
    fleet = Fleet()
    fleet.do(added(end_parameters=4000))
    fleet.join("tail", memory=memory_for(20, ends=12))
    fleet.wait(2)
    fleet.all_ready()
    tail = fleet.state.workers[WorkerId("tail")]
    (old,) = tail.assignment.spans
    half = msgspec.structs.replace(old, blocks=BlockRange(0, 4))
    moving = Assignment(epoch=tail.assignment.epoch + 1, spans=(half,), leaving=(old,))
    workers = {**fleet.state.workers, tail.worker_id: replace(tail, assignment=moving, reported=())}
    fleet.state = replace(fleet.state, workers=workers)

    assert said(fleet, "tail", 0.01 * (8 + HEAD_IN_BLOCKS) / 8) == pytest.approx(0.01)
    fleet.report("tail")
    mixed_s = 0.01 * (1 + HEAD_IN_BLOCKS / 16)
    assert said(fleet, "tail", mixed_s, ends_per_block=1 / 16) == pytest.approx(0.01), "both are served now"


def test_what_is_looked_for_holds_while_a_clock_drifts_but_not_once_it_takes_no_tickets() -> None:
    fleet = pair()
    fleet.all_ready()

    def with_clock(ahead_s: float) -> ClusterState:
        beat = heartbeat(time_s=fleet.now_s + ahead_s)
        state, _ = apply(fleet.state, WorkerBeat(worker_id=WorkerId("tail"), heartbeat=beat), fleet.now_s)
        return state

    drifted, further, wrong = (with_clock(s) for s in (400.0, 500.0, NO_TICKETS_FROM_S + 100))
    assert drifted.workers[WorkerId("tail")].clock_offset_s < further.workers[WorkerId("tail")].clock_offset_s
    assert still_holds(drifted, further, ())
    assert still_holds(fleet.state, further, ())
    assert not still_holds(drifted, wrong, ())
