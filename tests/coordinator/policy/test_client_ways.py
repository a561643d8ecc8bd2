from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.policy import shortest_path
from coordinator.policy.client_ways import MAX_TRIED, ClientWays, cheapest_for, client_ways, rounded_way_s
from coordinator.policy.links import LINK_S
from coordinator.policy.segments import Leg, Segment, back_s, cost_s
from protocol.client_legs import ClientLeg
from protocol.ids import BlockRange, WorkerId
from tests.coordinator.policy.test_shortlist import N_BLOCKS as N_BLOCKS_OF_MANY
from tests.coordinator.policy.test_shortlist import large_fleet

N_BLOCKS = 5
ONLY_TWICE = (("a", 0, 2), ("b", 2, 4), ("a", 4, 5))
NAMES = [WorkerId(f"w{i}") for i in range(5)]
LINKS_S = st.sampled_from([0.0, 0.001, 0.03])


@st.composite
def fleets(draw: st.DrawFn) -> list[Segment]:
    segments = []
    for name in NAMES[: draw(st.integers(1, 5))]:
        start, is_whole = draw(st.integers(0, N_BLOCKS - 1)), draw(st.sampled_from([False, False, True]))
        segments.append(
            Segment(
                worker_id=name,
                blocks=BlockRange(start, draw(st.integers(start + 1, N_BLOCKS))),
                seconds_per_block=draw(st.sampled_from([0.001, 0.0011, 0.01])),
                link_s=draw(st.dictionaries(st.sampled_from(NAMES), LINKS_S, max_size=4)),
                entry_s=-0.003 if is_whole else draw(st.sampled_from([0.0, 0.002])),
                is_whole=is_whole,
            )
        )
    return segments


@st.composite
def some_ways(draw: st.DrawFn) -> ClientWays:
    known = draw(
        st.dictionaries(
            st.sampled_from(NAMES), st.tuples(st.sampled_from([LINK_S, 0.004, 0.05, 1.0]), st.booleans())
        )
    )
    return ClientWays(
        known=tuple((name, way_s, connected) for name, (way_s, connected) in sorted(known.items())),
        n_tokens=draw(st.sampled_from([None, 1, 16, 128])),
    )


def ways_s(ways: ClientWays, head: WorkerId, tail: WorkerId) -> float:
    """What the client's ways add to a token, written out once more."""
    known = {worker_id: (way_s, connected) for worker_id, way_s, connected in ways.known}
    to_head_s, is_head_there = known.get(head, (LINK_S, False))
    to_tail_s, is_tail_there = known.get(tail, (LINK_S, False))
    if ways.n_tokens is None:
        return to_head_s + to_tail_s
    added_s = to_head_s * (1 if is_head_there else 7) + to_tail_s
    if not is_tail_there and to_tail_s > LINK_S and head != tail:
        added_s += 6 * to_tail_s
    return added_s / ways.n_tokens


def round_s(hops: list[tuple[Segment, int, int]], ways: ClientWays) -> float:
    """What a token costs over these, in the model."""
    first, last = hops[0][0], hops[-1][0]
    links_s = sum(a.link_s.get(b.worker_id, LINK_S) for (a, _, _), (b, _, _) in pairwise(hops))
    if ways.n_tokens is not None and first is not last:
        links_s += last.link_s.get(first.worker_id, LINK_S)
    run_s = sum(one.entry_s + (end - start) * one.seconds_per_block for one, start, end in hops)
    return links_s + run_s + ways_s(ways, first.worker_id, last.worker_id)


def least_s(segments: list[Segment], ways: ClientWays) -> float:
    """The least over all orders of workers and all places to change, each worker once."""
    best = math.inf

    def go(order: tuple[Segment, ...], hops: list[tuple[Segment, int, int]], at: int) -> None:
        nonlocal best
        if at == N_BLOCKS:
            best = min(best, round_s(hops, ways))
            return
        if len(hops) < len(order) and (one := order[len(hops)]).can_be_entered(at):
            for end in range(at + 1, one.blocks.end + 1):
                if one.can_be_left(end):
                    go(order, [*hops, (one, at, end)], end)

    for order in permutations(segments):
        go(order, [], 0)
    return best


def found_s(segments: list[Segment], ways: ClientWays, asked: ClientWays | None) -> float:
    """What a token costs a client that is so far, over the route for what it `asked`."""
    parted, legs = cheapest_for(segments, N_BLOCKS, asked)
    by_name = {segment.worker_id: segment for segment in segments}
    check_legs(legs, N_BLOCKS)
    return round_s([(by_name[parted[i].worker_id], start, end) for i, start, end in legs], ways)


def check_legs(legs: list[Leg], n_blocks: int) -> None:
    assert [start for _, start, _ in legs] == [0, *(end for _, _, end in legs[:-1])]
    assert legs[-1][2] == n_blocks


@settings(max_examples=300, deadline=None)
@given(segments=fleets(), ways=some_ways())
def test_no_way_is_cheaper_for_the_client_than_the_one_found_for_it(
    segments: list[Segment], ways: ClientWays
) -> None:
    best_s = least_s(segments, ways)
    if math.isinf(best_s):
        return  # not covered, or only by who comes twice
    assert found_s(segments, ways, ways) == pytest.approx(best_s)
    assert found_s(segments, ways, ways) <= found_s(segments, ways, None) + 1e-12


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("n_tokens", [8, 128, None])
def test_in_a_large_fleet_the_way_over_the_shortlist_is_as_cheap_as_one_over_all(
    seed: int, n_tokens: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, segments = random.Random(seed), large_fleet(seed)
    named = rng.sample(segments, rng.choice([3, 12]))
    known = ((s.worker_id, rng.choice([LINK_S, 0.004, 0.03]), rng.random() < 0.5) for s in named)
    ways = ClientWays(known=tuple(sorted(known)), n_tokens=n_tokens)

    def found_s() -> float:
        parted, legs = cheapest_for(segments, N_BLOCKS_OF_MANY, ways)
        check_legs(legs, N_BLOCKS_OF_MANY)
        first, last = parted[legs[0][0]], parted[legs[-1][0]]
        return cost_s(parted, legs) - (back_s(last, first) if n_tokens is None else 0.0)

    listed_s = found_s()
    monkeypatch.setattr(shortest_path, "MAX_SHORTLIST", 10**6)
    all_s = found_s()
    assert listed_s <= all_s + 0.03 * abs(all_s)


def test_a_way_that_enters_or_leaves_a_worker_where_it_cant_is_none() -> None:
    (one,) = whole("a")
    parts = [replace(one, is_head=True), replace(one, is_tail=True)]
    assert cost_s(parts, [(0, 0, 5)]) == cost_s(parts, [(1, 0, 5)]) == cost_s([one], [(0, 0, 5)])
    assert cost_s(parts, [(0, 1, 5)]) == cost_s(parts, [(1, 0, 4)]) == math.inf


def whole(*names: str, seconds_per_block: float = 0.001) -> list[Segment]:
    return [
        Segment(worker_id=WorkerId(n), blocks=BlockRange(0, 5), seconds_per_block=seconds_per_block, link_s={})
        for n in names
    ]


def chosen(segments: list[Segment], ways: ClientWays | None) -> list[str]:
    parted, legs = cheapest_for(segments, N_BLOCKS, ways)
    return [parted[i].worker_id for i, _, _ in legs]


def ways_of(n_tokens: int | None = 128, **round_trips_s: float) -> ClientWays | None:
    legs = [ClientLeg(worker_id=WorkerId(n), round_trip_s=s, is_connected=True) for n, s in round_trips_s.items()]
    return client_ways(legs, set(round_trips_s), max_tokens=n_tokens or 1, is_private=n_tokens is None)


@pytest.mark.parametrize("n_tokens", [4, 16, None])
@pytest.mark.parametrize("slower", [2, 20])
def test_the_one_that_is_near_is_not_taken_for_both_ends_of_others_ways(
    n_tokens: int | None, slower: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, far = random.Random(3), [f"w{i:02}" for i in range(24)]
    links_s = {WorkerId(name): 0.0002 for name in far}
    segments = [
        replace(whole(name, seconds_per_block=0.001 * rng.uniform(0.9, 1.1))[0], link_s=links_s) for name in far
    ]
    segments += whole("near", seconds_per_block=0.001 * slower)
    ways = ways_of(n_tokens, near=0.001, **dict.fromkeys(far, 0.1))
    assert ways is not None
    for module in ("client_ways", "shortest_path"):
        monkeypatch.setattr(f"coordinator.policy.{module}.MAX_STEPS", 800)
    found = chosen(segments, ways)
    assert len(set(found)) == len(found)
    few = sorted(segments[:-1], key=lambda segment: segment.seconds_per_block)[:2] + segments[-1:]
    assert found_s(segments, ways, ways) == pytest.approx(least_s(few, ways))


def test_who_takes_too_many_steps_is_given_the_most_promising_way(monkeypatch: pytest.MonkeyPatch) -> None:
    office = whole("a", "b")
    monkeypatch.setattr("coordinator.policy.client_ways.MAX_STEPS", 0)
    for n_tokens in (4, None):
        assert chosen(office, ways_of(n_tokens, a=0.04)) == ["b"]


def test_who_has_only_ways_on_which_a_worker_comes_twice_is_routed_as_anybody() -> None:
    (one,) = whole("a")
    parts = [replace(one, worker_id=WorkerId(n), blocks=BlockRange(a, b)) for n, a, b in ONLY_TWICE]
    for n_tokens in (4, None):
        assert chosen(parts, ways_of(n_tokens, a=0.04)) == chosen(parts, None) == ["a", "b", "a"]


@pytest.mark.parametrize("seed", range(4))
def test_a_private_client_in_a_large_fleet_finds_a_prefix_on_the_only_worker_with_both_ends(seed: int) -> None:
    rng = random.Random(seed)
    slow = replace(whole("both", seconds_per_block=0.03)[0], blocks=BlockRange(0, N_BLOCKS_OF_MANY))
    between = [
        replace(one, blocks=BlockRange(rng.randint(1, 8), rng.randint(9, N_BLOCKS_OF_MANY - 1)))
        for one in whole(*(f"w{i:02}" for i in range(80)))
    ]
    kept = replace(slow, entry_s=-0.003, is_whole=True)
    parted, legs = cheapest_for([slow, *between, kept], N_BLOCKS_OF_MANY, ways_of(None, w07=0.1))
    assert [parted[i] for i, _, _ in legs] == [kept]


@pytest.mark.parametrize("n_tokens", [1, 128, None])
def test_who_is_far_gives_way_to_who_was_never_tried_and_that_one_is_kept_if_near(n_tokens: int | None) -> None:
    office = whole("a", "b", "c")
    assert chosen(office, ways_of(n_tokens, a=0.04)) == ["b"]
    assert chosen(office, ways_of(n_tokens, a=0.04, b=0.04)) == ["c"]
    assert chosen(office, ways_of(n_tokens, a=0.04, b=0.04, c=0.04)) == ["a"]
    assert chosen(office, ways_of(n_tokens, a=0.04, c=0.001))[0] in ("b", "c")
    assert chosen(office, ways_of(n_tokens, a=0.04, b=0.04, c=0.001)) == ["c"]


def test_of_those_as_far_the_one_with_a_connection_is_kept() -> None:
    legs = [
        ClientLeg(worker_id=WorkerId(name), round_trip_s=s, is_connected=name == "b")
        for name, s in (("a", 0.030), ("b", 0.031), ("c", 0.0305))
    ]
    ways = client_ways(legs, {"a", "b", "c"}, max_tokens=100, is_private=False)
    assert chosen(whole("a", "b", "c"), ways) == ["b"]


def test_a_client_that_many_were_far_from_takes_the_rest_to_be_as_far() -> None:
    far = {f"a{i}": 0.04 for i in range(MAX_TRIED)}
    fleet = whole(*far, "z")
    assert chosen(fleet, ways_of(**dict(list(far.items())[1:]))) == ["a0"], "there is one more try"
    # those with a connection are now as good as any, and needn't be dialled
    assert chosen(fleet, ways_of(**far)) == ["a0"]
    assert chosen([*whole(*far), *whole("z", seconds_per_block=0.0001)], ways_of(**far)) == ["z"]
    assert chosen(fleet, ways_of(None, **{**far, "a5": 0.001})) == ["a5"]


def test_ways_are_of_few_classes_and_near_ones_none_at_all() -> None:
    rng = random.Random(1)
    assert {rounded_way_s(s) for s in (0.0, 0.001, 0.004)} == {LINK_S}
    trips_s = [10 ** rng.uniform(-2.3, 1.78) for _ in range(1000)]
    for round_trip_s in trips_s:
        assert rounded_way_s(round_trip_s) == pytest.approx(round_trip_s / 2, rel=0.19)
    assert len({rounded_way_s(s) for s in trips_s}) <= 30
    assert ways_of(a=0.002, b=0.0) is None
    assert (
        client_ways([ClientLeg(worker_id=WorkerId("x"), round_trip_s=1.0)], {}, max_tokens=1, is_private=False)
        is None
    )
    assert ways_of(100, a=0.041) == ways_of(128, a=0.04) == ways_of(10**6, a=0.039)
