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


def test_of_less_than_was_ever_measured_the_least_that_was_is_the_most() -> None:
    assert BatchCosts().seconds_at_most(1) == 0.0
    assert learned((50, 10.0), (100, 12.0)).seconds_at_most(1) == 10.0
    assert learned((1, 1.0), (3, 2.0)).seconds_at_most(2) == pytest.approx(1.5)


@given(st.floats(0, 60), st.integers(1, 300))
def test_the_largest_batch_within_a_time_takes_no_longer_and_one_more_would(longest_s: float, most: int) -> None:
    costs = learned((1, 1.0), (8, 2.4), (128, 26.4))
    n_tokens = costs.n_within(longest_s, most)
    assert 1 <= n_tokens <= most
    assert n_tokens == 1 or costs.seconds(n_tokens) <= longest_s
    assert n_tokens == most or costs.seconds(n_tokens + 1) > longest_s


@given(st.lists(st.tuples(st.integers(1, 4096), st.floats(0, 100)), max_size=20), st.integers(1, 10_000))
def test_no_cost_is_negative(measured: list[tuple[int, float]], n_tokens: int) -> None:
    assert learned(*measured).seconds(n_tokens) >= 0
