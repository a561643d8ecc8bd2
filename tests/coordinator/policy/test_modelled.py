from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.placement import ours, petals, random_fleet, speed
from coordinator.policy.laying_out import segments_of
from coordinator.policy.modelled import speed_of
from coordinator.policy.pipelines import Objective, rank
from coordinator.policy.segments import Segment
from protocol.ids import BlockRange, WorkerId


def segment(name: str, start: int, end: int, seconds: float, **links: float) -> Segment:
    link_s = {WorkerId(to): s for to, s in links.items()}
    return Segment(
        worker_id=WorkerId(name), blocks=BlockRange(start, end), seconds_per_block=seconds, link_s=link_s
    )


def test_one_stream_goes_round_and_many_are_as_fast_as_the_block_that_is_held_worst() -> None:
    pair = [segment("a", 0, 2, 1.0, b=0.1), segment("b", 2, 4, 2.0, a=0.2)]
    speed = speed_of(pair, 4)
    assert speed is not None
    assert speed.step_s == pytest.approx(2.0 + 4.0 + 0.1 + 0.2)
    assert speed.tokens_per_s == pytest.approx(1 / 4)
    assert speed.stages == (("a", BlockRange(0, 2)), ("b", BlockRange(2, 4)))

    alone = speed_of([*pair, segment("c", 0, 4, 1.0)], 4)
    assert alone is not None
    assert alone.step_s == pytest.approx(4.0)
    assert alone.tokens_per_s == pytest.approx(1 / 4 + 1 / 4)


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_one_more_worker_never_makes_it_slower(seed: int) -> None:
    task = random_fleet(random.Random(seed), 2 + seed % 9, 12)
    ranges = petals(task)
    segments = segments_of(task, ranges)
    for n in range(1, len(segments)):
        fewer, more = speed_of(segments[:n], 12), speed_of(segments[: n + 1], 12)
        if fewer is not None:
            assert more is not None
            assert more.step_s <= fewer.step_s * (1 + 1e-9)
            assert more.tokens_per_s >= fewer.tokens_per_s


@pytest.mark.parametrize("placement", ["balance", "one-stream", "many-streams"])
def test_what_is_placed_is_never_slower_than_by_petals_rule(placement: Objective) -> None:
    rng = random.Random(7)
    for _ in range(60):
        task = random_fleet(rng, rng.randint(2, 12), rng.choice((12, 24)), objective=placement)
        mine, theirs = speed(task, ours(task)), speed(task, petals(task))
        if mine is not None and theirs is not None:
            better = rank(placement, mine.step_s, mine.tokens_per_s)[0]
            assert better <= rank(placement, theirs.step_s, theirs.tokens_per_s)[0] * (1 + 1e-9)


def test_what_leaves_blocks_out_has_no_speed() -> None:
    assert speed_of([segment("a", 0, 2, 1.0)], 4) is None
