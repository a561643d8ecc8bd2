from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.filling import Stage, water_filled

stages = st.lists(
    st.builds(
        Stage,
        seconds_per_block=st.sampled_from([0.5, 1.0, 1.5, 2.0, 7.0]),
        cap=st.integers(0, 8),
        fixed_s=st.sampled_from([0.0, 0.5, 2.0, 7.5]),
        must_take_part=st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


def bottleneck(stages: list[Stage], given: tuple[int, ...]) -> float:
    return max((s.fixed_s + n * s.seconds_per_block for s, n in zip(stages, given, strict=True) if n), default=0.0)


@given(n_blocks=st.integers(1, 8), stages=stages)
def test_no_other_split_has_a_faster_slowest_stage(n_blocks: int, stages: list[Stage]) -> None:
    given_blocks = water_filled(n_blocks, stages)

    n_wanted = min(n_blocks, sum(s.cap for s in stages))
    assert sum(given_blocks) == n_wanted
    assert all(0 <= n <= s.cap for n, s in zip(given_blocks, stages, strict=True))
    takers = [i for i, s in enumerate(stages) if s.must_take_part and s.cap > 0]
    n_taking_part = sum(given_blocks[i] > 0 for i in takers)
    assert n_taking_part == min(len(takers), n_blocks)
    best = min(
        bottleneck(stages, other)
        for other in product(*(range(s.cap + 1) for s in stages))
        if sum(other) == n_wanted and sum(other[i] > 0 for i in takers) == n_taking_part
    )
    assert bottleneck(stages, given_blocks) == best


def test_equal_stages_share_equally() -> None:
    stage = Stage(seconds_per_block=1.0, cap=30)

    assert water_filled(30, [stage, stage, stage]) == (10, 10, 10)


def test_a_stage_with_the_models_head_gets_fewer_blocks() -> None:
    stages = [Stage(seconds_per_block=1.0, cap=30), Stage(seconds_per_block=1.0, cap=30, fixed_s=8.0)]

    assert water_filled(30, stages) == (19, 11)


def test_a_slow_stage_still_takes_part() -> None:
    stages = [Stage(seconds_per_block=1.0, cap=30), Stage(seconds_per_block=1000.0, cap=30)]

    assert water_filled(30, stages) == (29, 1)


def test_of_more_stages_than_blocks_the_fastest_take_part() -> None:
    stages = [Stage(seconds_per_block=s, cap=9) for s in (3.0, 1.0, 2.0)]

    assert water_filled(2, stages) == (0, 1, 1)
