from __future__ import annotations

from dataclasses import replace

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.cache_room import without_room
from coordinator.policy.events import SpansReported, WorkerBeat
from coordinator.policy.routing import Route, cheapest_route
from coordinator.policy.statuses import status_as
from protocol.control_messages import SpanReport
from protocol.ids import BlockRange, ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, heartbeat

A = WorkerId("a")
M = ModelName("m")
HYBRID = (9, 1, 1, 1, 9, 1, 1, 1)
"""Bytes of cache that a position takes: a block of full attention, then three that keep next to nothing."""


def holder(by_block: tuple[int, ...], room: int) -> Fleet:
    """A worker that holds all of a model and says so, with room for so many positions of it."""
    fleet = Fleet()
    fleet.do(added())
    fleet.join("a")
    fleet.wait(3)
    assignment = fleet.state.workers[A].assignment
    (span,) = assignment.spans
    status = msgspec.structs.replace(status_as(span, "ready", ""), kv_bytes_by_block=by_block)
    fleet.do(SpansReported(worker_id=A, report=SpanReport(epoch=assignment.epoch, spans=(status,))))
    fleet.do(WorkerBeat(worker_id=A, heartbeat=heartbeat(longest_sessions={M: room})))
    return fleet


def fits(fleet: Fleet, start: int, end: int, n_positions: int) -> bool:
    """Whether a session over these blocks of the worker's alone has room there."""
    found = cheapest_route(fleet.state, M)
    assert isinstance(found, Route)
    hop = replace(found.hops[0], blocks=BlockRange(start, end))
    return not without_room(fleet.state, replace(found, hops=(hop,)), n_positions)


def test_blocks_that_keep_little_have_room_for_longer_sessions() -> None:
    """A thousand positions of all blocks take 24,000 bytes: in blocks 1 to 4, at 3 bytes, these are 8,000."""
    fleet = holder(HYBRID, room=1000)
    assert fits(fleet, 1, 4, 8000)
    assert not fits(fleet, 1, 4, 8001)
    assert fits(fleet, 0, 1, 2666), "and a block that keeps much for as few as it is"
    assert not fits(fleet, 0, 1, 2667)


def test_workers_that_say_nothing_of_single_blocks_have_blocks_of_one_size() -> None:
    fleet = holder((), room=1000)
    assert fits(fleet, 0, 1, 8000)
    assert not fits(fleet, 0, 1, 8001)


@given(
    by_block=st.lists(st.integers(0, 1000), min_size=8, max_size=8).filter(any),
    ends=st.lists(st.integers(0, 8), min_size=2, max_size=2, unique=True).map(sorted),
    budget=st.integers(0, 10**7),
    n_positions=st.integers(1, 10**5),
)
def test_nobody_is_refused_what_fits(by_block: list[int], ends: list[int], budget: int, n_positions: int) -> None:
    """The worker's room is what its budget holds, rounded down to whole positions of all of its blocks."""
    start, end = ends
    room = budget // sum(by_block)
    needed = n_positions * sum(by_block[start:end])
    assert fits(holder(tuple(by_block), room), start, end, n_positions) == (needed <= room * sum(by_block))
