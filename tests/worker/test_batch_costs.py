from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.batch_costs import BatchCosts


def learned(*measured: tuple[int, float]) -> BatchCosts:
    costs = BatchCosts()
    for n_tokens, seconds in measured:
        costs = costs.with_batch(n_tokens, seconds)
    return costs


def test_nothing_costs_anything_before_it_was_measured() -> None:
    assert BatchCosts().seconds(5) == 0.0


def test_what_was_not_measured_lies_on_a_line_between_what_was() -> None:
    costs = learned((1, 1.0), (8, 2.4), (128, 26.4))
    assert [costs.seconds(n) for n in (1, 8, 128)] == pytest.approx([1.0, 2.4, 26.4])
    assert [costs.seconds(n) for n in (4, 68, 256)] == pytest.approx([1.6, 14.4, 52.0])


def test_less_than_was_ever_measured_counts_in_proportion() -> None:
    assert learned((50, 10.0)).seconds(1) == pytest.approx(0.2)
    assert learned((50, 10.0)).seconds(100) == pytest.approx(20.0)


def test_new_measurements_replace_old_ones_little_by_little() -> None:
    costs = learned((1, 1.0), *[(1, 2.0)] * 30)
    assert 1.9 < costs.seconds(1) < 2.0


def test_a_batch_that_something_else_made_slow_is_soon_forgotten() -> None:
    assert learned((1, 50.0), *[(1, 1.0)] * 10).seconds(1) < 1.5
    assert learned(*[(1, 1.0)] * 10, (1, 2.0)).seconds(1) < 1.2


@given(st.lists(st.tuples(st.integers(1, 4096), st.floats(0, 100)), max_size=20), st.integers(1, 10_000))
def test_no_cost_is_negative(measured: list[tuple[int, float]], n_tokens: int) -> None:
    assert learned(*measured).seconds(n_tokens) >= 0
