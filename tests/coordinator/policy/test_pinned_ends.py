from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.policy.coverage import counts, gaps
from coordinator.policy.events import PinnedEndsAsked
from coordinator.policy.missing import MissingBlocks
from coordinator.policy.pinned_ends import without_ends
from coordinator.policy.routing import Route, cheapest_route
from coordinator.policy.segments import Segment
from coordinator.policy.shortest_path import cheapest_legs
from coordinator.policy.trust_events import TrustPinned, TrustUnpinned
from coordinator.policy.views import model_info
from protocol.ids import BlockRange, ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added
from tests.coordinator.policy.test_shortest_path import N_BLOCKS, brute_force, segment_lists

M = ModelName("m")


@settings(max_examples=300)
@given(segments=segment_lists(), data=st.data())
def test_ways_begin_and_end_on_pinned_workers_and_none_such_is_cheaper(
    segments: list[Segment], data: st.DataObject
) -> None:
    names = [segment.worker_id for segment in segments]
    pinned = data.draw(st.sets(st.sampled_from(names)))
    best = brute_force(segments, pinned)
    usable = [
        kept for one in segments for kept in ((one,) if one.worker_id in pinned else without_ends([one], N_BLOCKS))
    ]
    if gaps(counts((segment.blocks for segment in usable), N_BLOCKS)):
        assert math.isinf(best)
        return
    cost, legs = cheapest_legs(usable, N_BLOCKS)
    workers = [usable[i].worker_id for i, _, _ in legs]
    assert {workers[0], workers[-1]} <= pinned
    if len(set(workers)) == len(workers):
        assert cost == pytest.approx(best)
    else:
        assert math.isinf(best), "a worker comes twice only if there is no other way"


def shared_model() -> Fleet:
    """Four blocks: a and b hold the first half, c and d the second."""
    fleet = Fleet()
    fleet.do(added(n_blocks=4))
    for name in "abcd":
        start, end = (0, 2) if name in "ab" else (2, 4)
        fleet.join(name, pinned_blocks=BlockRange(start, end))
    fleet.wait(2)
    fleet.all_ready()
    return fleet


def pin(fleet: Fleet, worker: str, score: float = 1.0) -> None:
    fleet.do(TrustPinned(worker_id=WorkerId(worker), score=score, by="key", reason="mine"))


def route(fleet: Fleet, exclude: frozenset[WorkerId] = frozenset()) -> list[str] | MissingBlocks:
    found = cheapest_route(fleet.state, M, exclude, pinned_ends=True)
    return [hop.worker_id for hop in found.hops] if isinstance(found, Route) else found


def test_a_refusal_says_who_is_pinned_what_they_hold_and_what_to_do() -> None:
    fleet = shared_model()
    pin(fleet, "b")
    found = route(fleet)
    assert isinstance(found, MissingBlocks)
    assert found.blocks == (BlockRange(3, 4),)
    assert not found.is_on_its_way
    for words in (
        "the last (3:4)",
        "pinned are b (host-b) with blocks 0:2",
        "c (host-c) with blocks 2:4",
        "trust pin",
    ):
        assert words in found.message, found.message
    pin(fleet, "d")
    assert route(fleet) == ["b", "d"]
    assert isinstance(route(fleet, frozenset({WorkerId("d")})), MissingBlocks)
    pin(fleet, "d", 0.3)  # pinned, but not as somebody to trust
    assert isinstance(route(fleet), MissingBlocks)
    fleet.do(TrustUnpinned(worker_id=WorkerId("d"), by="key", reason=""))
    assert isinstance(route(fleet), MissingBlocks)


def test_a_pinned_worker_that_loads_is_worth_waiting_for() -> None:
    fleet = shared_model()
    pin(fleet, "a")
    pin(fleet, "c")
    fleet.report("c", "loading", "60 MB/s")
    found = route(fleet)
    assert isinstance(found, MissingBlocks)
    assert found.is_on_its_way


def test_who_is_not_pinned_may_hold_all_between() -> None:
    fleet = Fleet()
    fleet.do(added(n_blocks=4))
    for name, blocks in (("first", (0, 1)), ("whole", (0, 4)), ("last", (3, 4))):
        fleet.join(name, pinned_blocks=BlockRange(*blocks))
    fleet.wait(2)
    fleet.all_ready()
    pin(fleet, "first")
    pin(fleet, "last")
    found = cheapest_route(fleet.state, M, pinned_ends=True)
    assert isinstance(found, Route)
    assert [(hop.worker_id, str(hop.blocks)) for hop in found.hops] == [
        ("first", "0:1"),
        ("whole", "1:3"),
        ("last", "3:4"),
    ]
    pin(fleet, "whole")
    assert route(fleet) == ["whole"], "solo, as both ends are pinned"


def test_a_model_that_demands_it_says_so_where_operators_look() -> None:
    fleet = shared_model()
    fleet.do(PinnedEndsAsked(name=M, is_wanted=True))
    shown = model_info(fleet.state, M, fleet.now_s)
    assert (shown.state, shown.pinned_ends) == ("incomplete", True)
    assert "pinned are none" in shown.reason
    pin(fleet, "a")
    pin(fleet, "c")
    assert model_info(fleet.state, M, fleet.now_s).state == "ready"
