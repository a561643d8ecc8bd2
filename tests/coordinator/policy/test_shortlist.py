from __future__ import annotations

import random

import pytest

from coordinator.policy import shortest_path
from coordinator.policy.segments import Segment
from coordinator.policy.shortest_path import cheapest_legs
from coordinator.policy.shortlist import Found, cheapest_of_many
from protocol.ids import BlockRange, WorkerId

N_BLOCKS = 20


def large_fleet(seed: int) -> list[Segment]:
    rng = random.Random(seed)
    ids = [WorkerId(f"w{i:03}") for i in range(120)]
    spread = rng.choice([1.02, 8.0])
    segments = []
    for i, worker_id in enumerate(ids):
        start = rng.randrange(N_BLOCKS) if i else 0
        end = rng.randint(start + 1, N_BLOCKS) if i else N_BLOCKS
        segments.append(
            Segment(
                worker_id=worker_id,
                blocks=BlockRange(start, end),
                seconds_per_block=0.001 * rng.uniform(1.0, spread),
                link_s={other: rng.uniform(0.0001, 0.002) for other in rng.sample(ids, rng.choice([0, 8]))},
                entry_s=rng.choice([0.0] * 20 + [1e6]),
                after_s=0.001 * rng.uniform(1.0, spread) * (seed % 3),
            )
        )
    whole = [
        Segment(
            worker_id=segment.worker_id,
            blocks=segment.blocks,
            seconds_per_block=segment.seconds_per_block,
            link_s=segment.link_s,
            entry_s=-0.002,
            after_s=segment.after_s,
            is_whole=True,
        )
        for segment in segments[:3]
    ]
    return segments + whole


@pytest.mark.parametrize("seed", range(12))
def test_a_way_over_the_shortlist_is_as_cheap_as_one_over_all(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = large_fleet(seed)
    listed_s, legs = cheapest_legs(segments, N_BLOCKS)
    monkeypatch.setattr(shortest_path, "MAX_SHORTLIST", len(segments))
    all_s, _ = cheapest_legs(segments, N_BLOCKS)

    # where more are worth a look than are looked at, a little may be lost
    assert all_s - 1e-9 <= listed_s <= all_s + 0.03 * abs(all_s)
    assert [start for _, start, _ in legs] == [0, *(end for _, _, end in legs[:-1])]
    assert legs[-1][2] == N_BLOCKS
    assert all(segments[i].blocks.contains(BlockRange(start, end)) for i, start, end in legs)


def test_who_would_come_twice_over_the_shortest_links_doesnt() -> None:
    twice = [
        Segment(worker_id=WorkerId(f"{i:03}"), blocks=BlockRange(0, 12), seconds_per_block=2.0, link_s={})
        for i in range(50)
    ]
    middle = Segment(worker_id=WorkerId("m"), blocks=BlockRange(4, 8), seconds_per_block=1.0, link_s={})
    slow = Segment(worker_id=WorkerId("s"), blocks=BlockRange(0, 12), seconds_per_block=1.9, link_s={})

    _, legs = cheapest_legs([*twice, middle, slow], 12)
    assert [i for i, _, _ in legs] == [0, 50, 51] or [i for i, _, _ in legs] == [51, 50, 0]


def equals(*, n: int, link_s: dict[WorkerId, float]) -> list[Segment]:
    """Many that are equally fast, a quarter of the blocks each; the first of them has measured these links."""
    return [
        Segment(
            worker_id=WorkerId(f"{i:03}"),
            blocks=BlockRange(5 * (i % 4), 5 * (i % 4) + 5),
            seconds_per_block=0.001 * (1 + 0.0001 * i),
            link_s={} if i else link_s,
        )
        for i in range(n)
    ]


@pytest.mark.parametrize(("short", "way"), [({}, [0, 1, 2, 3]), ({WorkerId("101"): 0.00001}, [0, 101, 2, 3])])
def test_a_way_that_none_can_be_cheaper_than_needs_no_search(short: dict[WorkerId, float], way: list[int]) -> None:
    def search(numbers: list[int], limit_s: float, *, is_rough: bool) -> Found | None:
        raise AssertionError(f"{len(numbers)} of them were searched")

    found = cheapest_of_many(equals(n=200, link_s=short), N_BLOCKS, search)
    assert found is not None
    assert [i for i, _, _ in found[1]] == way
