from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from client.pace import (
    FIRST_TOKEN_S,
    LEAST_SLOW_S,
    LONGEST_STALL_S,
    SHORTEST_STALL_S,
    SLOWED_FACTOR,
    Pace,
    Slowed,
    first_token_limit_s,
    token_limit_s,
)

WAITS = st.lists(st.floats(0.0, 1e4), min_size=1, max_size=100)


@given(WAITS)
def test_the_limit_is_within_bounds_and_above_nearly_all_waits(waits_s: list[float]) -> None:
    limit_s = token_limit_s(waits_s)
    assert SHORTEST_STALL_S <= limit_s <= LONGEST_STALL_S
    n_slower = sum(wait_s > limit_s for wait_s in waits_s)
    assert n_slower <= 0.01 * len(waits_s) or limit_s == LONGEST_STALL_S


@given(WAITS, st.floats(1.0, 100.0))
def test_slower_tokens_never_make_it_shorter(waits_s: list[float], factor: float) -> None:
    assert token_limit_s([wait_s * factor for wait_s in waits_s]) >= token_limit_s(waits_s)


@given(st.integers(1, 10**6), st.integers(0, 1000))
def test_a_first_token_has_longer_with_the_prompt_and_with_each_stall(n_prompt: int, n_stalls: int) -> None:
    limit_s = first_token_limit_s(n_prompt, n_stalls)
    assert FIRST_TOKEN_S < limit_s <= first_token_limit_s(n_prompt + 1, n_stalls + 1)


def test_one_slow_token_in_a_hundred_does_not_count() -> None:
    pace = Pace()
    for wait_s in [1.0] * 111 + [50.0]:
        pace.add(wait_s, is_first=False)
    assert pace.limit_s(n_prompt_tokens=None, n_stalls=0) == 20.0
    for _ in range(16):
        pace.add(50.0, is_first=False)
    assert pace.limit_s(n_prompt_tokens=None, n_stalls=0) == LONGEST_STALL_S


def test_only_the_last_hundred_count() -> None:
    pace = Pace()
    for wait_s in [50.0] * 112 + [0.1] * 112:
        pace.add(wait_s, is_first=False)
    assert pace.limit_s(n_prompt_tokens=None, n_stalls=0) == SHORTEST_STALL_S


def test_the_second_token_is_measured_by_the_first() -> None:
    pace = Pace()
    assert pace.limit_s(n_prompt_tokens=100, n_stalls=0) == 25.0
    pace.add(2.0, is_first=True)
    assert pace.limit_s(n_prompt_tokens=None, n_stalls=0) == 40.0
    assert pace.limit_s(n_prompt_tokens=100, n_stalls=2) == 100.0


def paced(*waits_s: float) -> Pace:
    pace = Pace()
    for wait_s in waits_s:
        pace.add(wait_s, is_first=False)
    return pace


def test_a_route_that_stays_many_times_slower_is_noticed_when_a_stall_would_be() -> None:
    before = [0.01] * 20
    assert paced(*before, *[2.0] * 4).slowed is None
    assert paced(*before, *[2.0] * 5).slowed == Slowed(0.01, 2.0)
    # three of a round: two guesses were right
    assert paced(*before, *[4.0, 0.0, 0.0] * 2).slowed is None
    assert paced(*before, *[4.0, 0.0, 0.0] * 2, 4.0).slowed is not None


@given(
    st.lists(st.floats(0.001, LEAST_SLOW_S), min_size=16, max_size=100),
    st.floats(0.0, SHORTEST_STALL_S),
    st.floats(0.0, SHORTEST_STALL_S),
)
def test_two_hiccups_make_no_route_slow(waits_s: list[float], first_s: float, second_s: float) -> None:
    assert paced(*waits_s, first_s, *waits_s, second_s, *waits_s).slowed is None


@given(st.floats(0.001, 100.0), st.floats(1.0, 0.9 * SLOWED_FACTOR))
def test_a_few_times_slower_is_not_slow(wait_s: float, factor: float) -> None:
    assert paced(*[wait_s] * 20, *[wait_s * factor] * 20).slowed is None
