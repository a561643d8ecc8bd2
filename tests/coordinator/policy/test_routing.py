from __future__ import annotations

import math
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.policy.events import DrainAsked, WorkerBeat
from coordinator.policy.missing import MissingBlocks
from coordinator.policy.routing import LINK_S, Route, Segment, cheapest_legs, cheapest_route
from protocol.ids import BlockRange, ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added, heartbeat

M = ModelName("m")
N_BLOCKS = 6


@st.composite
def segment_lists(draw: st.DrawFn) -> list[Segment]:
    segments = []
    names = [WorkerId(f"w{i}") for i in range(draw(st.integers(1, 4)))]
    for name in names:
        start = draw(st.integers(0, N_BLOCKS - 1))
        end = draw(st.integers(start + 1, N_BLOCKS))
        links = draw(st.dictionaries(st.sampled_from(names), st.sampled_from([0.0, 0.001, 5.0]), max_size=3))
        speed = draw(st.sampled_from([0.001, 0.002, 0.01, 1.0]))
        segments.append(
            Segment(worker_id=name, blocks=BlockRange(start, end), seconds_per_block=speed, link_s=links)
        )
    return segments


def brute_force(segments: list[Segment]) -> float:
    """The least cost over all orders of workers and all places to change, each worker once."""
    best = math.inf

    def go(order: tuple[Segment, ...], i: int, at: int, cost: float) -> None:
        nonlocal best
        if at == N_BLOCKS:
            best = min(best, cost)
            return
        if i == len(order) or not order[i].blocks.start <= at < order[i].blocks.end:
            return
        link = LINK_S if i == 0 else order[i - 1].link_s.get(order[i].worker_id, LINK_S)
        for end in range(at + 1, order[i].blocks.end + 1):
            go(order, i + 1, end, cost + link + (end - at) * order[i].seconds_per_block)

    for order in permutations(segments):
        go(order, 0, 0, 0.0)
    return best


@settings(max_examples=300)
@given(segments=segment_lists())
def test_no_way_is_cheaper_than_the_one_found(segments: list[Segment]) -> None:
    best = brute_force(segments)
    if math.isinf(best):
        return  # not covered: missing_blocks says so before this is asked
    cost, legs = cheapest_legs(segments, N_BLOCKS)

    assert cost == pytest.approx(best)
    assert [start for _, start, _ in legs] == [0, *(end for _, _, end in legs[:-1])]
    assert legs[-1][2] == N_BLOCKS
    assert all(segments[i].blocks.contains(BlockRange(start, end)) for i, start, end in legs)
    assert len({i for i, _, _ in legs}) == len(legs)


def test_a_worker_comes_twice_only_if_there_is_no_other_way() -> None:
    twice = [
        Segment(worker_id=WorkerId(w), blocks=BlockRange(a, b), seconds_per_block=1.0, link_s={})
        for w, a, b in (("a", 0, 2), ("b", 2, 4), ("a", 4, 6))
    ]
    dear = Segment(worker_id=WorkerId("c"), blocks=BlockRange(4, 6), seconds_per_block=9.0, link_s={})

    assert [i for i, _, _ in cheapest_legs(twice, 6)[1]] == [0, 1, 2]
    assert [i for i, _, _ in cheapest_legs([*twice, dear], 6)[1]] == [0, 1, 3]


def two_of_each() -> Fleet:
    fleet = Fleet()
    fleet.do(added(n_blocks=4))
    for name in "abcd":
        start, end = (0, 2) if name in "ab" else (2, 4)
        fleet.join(name, pinned_blocks=BlockRange(start, end))
    fleet.wait(2)
    fleet.all_ready()
    return fleet


def hops(found: Route | MissingBlocks) -> list[tuple[str, str]]:
    assert isinstance(found, Route), found
    return [(hop.worker_id, str(hop.blocks)) for hop in found.hops]


def test_ties_are_settled_the_same_way_every_time() -> None:
    fleet = two_of_each()

    assert hops(cheapest_route(fleet.state, M)) == [("a", "0:2"), ("c", "2:4")]
    hop = cheapest_route(fleet.state, M)
    assert isinstance(hop, Route)
    assert hop.hops[0].url == "https://a:1"
    assert hop.hops[0].epoch == fleet.state.workers[WorkerId("a")].assignment.epoch


def test_busy_slow_far_and_excluded_workers_are_avoided() -> None:
    fleet = two_of_each()
    fleet.do(WorkerBeat(worker_id=WorkerId("a"), heartbeat=heartbeat(n_sessions=3)))
    fleet.do(WorkerBeat(worker_id=WorkerId("c"), heartbeat=heartbeat(decode_s_per_block=3.0)))
    assert hops(cheapest_route(fleet.state, M)) == [("b", "0:2"), ("d", "2:4")]

    far = heartbeat(round_trips_s={WorkerId("d"): 50.0, WorkerId("c"): float("nan")})
    fleet.do(WorkerBeat(worker_id=WorkerId("b"), heartbeat=far))
    assert [worker for worker, _ in hops(cheapest_route(fleet.state, M))] == ["b", "a", "d"], "not from b to d"
    assert hops(cheapest_route(fleet.state, M, frozenset({WorkerId("a")})))[1][0] == "c"
    assert hops(cheapest_route(fleet.state, M, frozenset({WorkerId("b")})))[0][0] == "a"


def test_suspect_and_draining_workers_get_no_sessions() -> None:
    fleet = two_of_each()
    fleet.wait(7, silent=("a",))
    fleet.do(DrainAsked(worker_id=WorkerId("c"), reason="test"))

    assert hops(cheapest_route(fleet.state, M)) == [("b", "0:2"), ("d", "2:4")]


def test_what_is_missing_is_said_with_its_reason() -> None:
    fleet = two_of_each()
    fleet.report("c", "loading", "60 MB/s")

    found = cheapest_route(fleet.state, M, frozenset({WorkerId("d"), WorkerId("a")}))
    assert isinstance(found, MissingBlocks)
    assert found.blocks == (BlockRange(2, 4),)
    assert found.is_assigned
    assert "blocks 2:4 of m are being loaded, 0% done: 60 MB/s" in found.message
    assert "which the request excludes" in found.message


def test_an_unknown_model_has_no_route() -> None:
    found = cheapest_route(Fleet().state, ModelName("nope"))

    assert isinstance(found, MissingBlocks)
    assert "nope" in found.message


def test_in_a_large_fleet_workers_change_where_ranges_start_or_end() -> None:
    names = [WorkerId(f"w{i}") for i in range(40)]
    segments = [
        Segment(worker_id=name, blocks=BlockRange(i, i + 40), seconds_per_block=0.001, link_s={})
        for i, name in enumerate(names)
    ]

    cost, legs = cheapest_legs(segments, 79)

    assert [i for i, _, _ in legs] == [0, 39]
    assert cost == pytest.approx(0.079 + 2 * LINK_S)
