from __future__ import annotations

import math
import random
from collections.abc import Collection
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.policy import shortest_path
from coordinator.policy.links import LINK_S
from coordinator.policy.segments import Segment, cost_s
from coordinator.policy.shortest_path import cheapest_legs, cheapest_once
from protocol.ids import BlockRange, WorkerId

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
        after_s = draw(st.sampled_from([0.0, 0.003, 2.0]))
        blocks = BlockRange(start, end)
        segments.append(
            Segment(worker_id=name, blocks=blocks, seconds_per_block=speed, link_s=links, after_s=after_s)
        )
    return segments


def brute_force(segments: list[Segment], ends: Collection[WorkerId] | None = None) -> float:
    """The least cost over all orders of workers and all places to change, each worker once.

    `ends`: the only workers that may be first and last; None: all.
    """
    best = math.inf

    def go(order: tuple[Segment, ...], i: int, at: int, cost: float) -> None:
        nonlocal best
        if at == N_BLOCKS and ends is not None and not {order[0].worker_id, order[i - 1].worker_id} <= set(ends):
            return
        if at == N_BLOCKS:
            back = order[i - 1].link_s.get(order[0].worker_id, LINK_S) if i > 1 else 0.0
            best = min(best, cost + back + order[i - 1].after_s)
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
    detour = Segment(worker_id=WorkerId("d"), blocks=BlockRange(2, 3), seconds_per_block=1.0, link_s={})
    assert [i for i, _, _ in cheapest_legs([*twice, dear, detour], 6)[1]] == [0, 1, 3]


def test_looking_for_a_way_with_each_worker_once_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortest_path, "MAX_STEPS", 0)
    segments = [Segment(worker_id=WorkerId("a"), blocks=BlockRange(0, 6), seconds_per_block=1.0, link_s={})]

    assert cheapest_legs(segments, N_BLOCKS) == (pytest.approx(6.0 + LINK_S), [(0, 0, 6)])


def test_what_a_worker_costs_in_trust_is_paid_at_each_entry() -> None:
    segments = [
        Segment(
            worker_id=WorkerId(name), blocks=BlockRange(0, 6), seconds_per_block=speed, link_s={}, entry_s=entry_s
        )
        for name, speed, entry_s in (("fast", 0.1, 9.0), ("slow", 1.0, 0.0))
    ]

    assert cheapest_legs(segments, N_BLOCKS)[1] == [(1, 0, 6)]


def test_in_a_large_fleet_workers_change_where_ranges_start_or_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortest_path, "MAX_BLOCKS_HELD", 1000)
    names = [WorkerId(f"w{i}") for i in range(40)]
    segments = [
        Segment(worker_id=name, blocks=BlockRange(i, i + 40), seconds_per_block=0.001, link_s={})
        for i, name in enumerate(names)
    ]

    cost, legs = cheapest_legs(segments, 79)

    assert [i for i, _, _ in legs] == [0, 39]
    assert cost == pytest.approx(0.079 + 3 * LINK_S)


def one_with_both_ends(seed: int) -> list[Segment]:
    """Of 40 workers only the first has the first block, and all differ much in speed: hard to search."""
    rng = random.Random(seed)
    segments = []
    for i in range(40):
        start = rng.randrange(80) if i else 0
        segments.append(
            Segment(
                worker_id=WorkerId(f"w{i:02}"),
                blocks=BlockRange(start, rng.randint(start + 1, 80) if i else 80),
                seconds_per_block=0.001 * rng.uniform(1.0, 10.0) * (1 if i else 3),
                link_s={},
            )
        )
    return segments


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("max_steps", [0, 100])
def test_a_search_that_is_cut_off_leads_what_it_began_on_to_the_end(seed: int, max_steps: int) -> None:
    segments = one_with_both_ends(seed)
    best_s, _ = cheapest_legs(segments, 80)

    found = cheapest_once(segments, 80, max_steps)
    assert found is not None
    found_s, legs = found
    assert found_s == pytest.approx(cost_s(segments, legs))
    assert best_s - 1e-9 <= found_s <= 1.12 * best_s
