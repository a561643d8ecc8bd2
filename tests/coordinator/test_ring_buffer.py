from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.ring_buffer import RingBuffer

N_STEPS = 6


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(-5, 5) | st.none()), max_size=30))
def test_it_keeps_the_means_of_the_newest_steps(taken: list[tuple[int, int | None]]) -> None:
    ring = RingBuffer(["a"], step_s=10.0, n_steps=N_STEPS)
    by_step: dict[int, list[int]] = {}
    newest = -1
    for step, value in taken:
        ring.put(10.0 * step + 3.0, {"a": value})
        newest = max(newest, step)
        if step == newest and value is not None:
            by_step.setdefault(step, []).append(value)
    expected = [
        None if not (values := by_step.get(step)) else pytest.approx(sum(values) / len(values), abs=1e-4)
        for step in range(newest - N_STEPS + 1, newest + 1)
    ]
    assert ring.series() == {"a": expected if newest >= 0 else []}
    assert ring.end_s == max(0.0, 10.0 * newest)
