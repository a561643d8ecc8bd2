from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from client.pace import (
    FIRST_TOKEN_S,
    LONGEST_STALL_S,
    SHORTEST_STALL_S,
    Pace,
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
