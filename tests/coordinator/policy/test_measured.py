from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from coordinator.policy.events import SocketLost, WorkerBeat, WorkerConnected
from coordinator.policy.sizing import BLOCK_START_S
from coordinator.policy.state import Assignment
from protocol.ids import BlockRange, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, announce, heartbeat, memory_for

HEAD_IN_BLOCKS = 0.024 / (0.006 + BLOCK_START_S)
"""Of four blocks' weights, on a device as the fleet's are."""


def said(fleet: Fleet, worker: str, seconds: float) -> float:
    """What a token is taken to need in a block, once the worker says that it measured so much."""
    fleet.do(WorkerBeat(worker_id=WorkerId(worker), heartbeat=heartbeat(decode_s_per_block=seconds)))
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


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_what_cant_have_been_measured_is_nothing(seconds: float) -> None:
    fleet = pair()
    fleet.all_ready()

    assert said(fleet, "tail", seconds) == 0.0


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
