from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.filling import Stage
from coordinator.policy.shares import evenest, quickest, worthwhile

stages = st.lists(
    st.builds(
        Stage,
        seconds_per_block=st.sampled_from([0.5, 1.0, 1.7, 7.0]),
        cap=st.integers(0, 7),
        fixed_s=st.sampled_from([0.0, 0.3, 4.0]),
    ),
    min_size=1,
    max_size=4,
)


@given(n_blocks=st.integers(1, 9), stages=stages)
def test_no_other_shares_are_better_for_one_stream_for_many_or_for_both(n_blocks: int, stages: list[Stage]) -> None:
    every = [
        [s.fixed_s + n * s.seconds_per_block for n, s in zip(given_blocks, stages, strict=True)]
        for given_blocks in product(*(range(1, s.cap + 1) for s in stages))
        if sum(given_blocks) == n_blocks
    ]
    even, quick = evenest(n_blocks, stages), quickest(n_blocks, stages)
    if not every:
        assert even is None
        assert quick is None
        return
    found = list(worthwhile(n_blocks, stages))
    assert even is not None
    assert quick is not None
    assert all(sum(shares.given) == n_blocks for shares in found)
    assert even.slowest_s == pytest.approx(min(max(times) for times in every))
    assert quick.sum_s == pytest.approx(min(sum(times) for times in every))
    best = min(max(times) * sum(times) for times in every)
    assert min(shares.slowest_s * shares.sum_s for shares in found) == pytest.approx(best)
