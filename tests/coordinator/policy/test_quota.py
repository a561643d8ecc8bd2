from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coordinator.policy.quota import (
    MAX_CONTINUATIONS,
    Account,
    Reservation,
    Wanted,
    at,
    begun,
    can_continue,
    continued,
    n_used,
    set_back,
    settled,
)
from coordinator.policy.quota_views import rate_uses, rates_left
from protocol.errors import OverLimitError, QuotaExceededError
from protocol.key_limits import KeyLimits

LIMITS = KeyLimits(tokens_per_min=600)
START_S = 1.8e9


def wanted(n_tokens: int) -> Wanted:
    return Wanted(n_prompt_tokens=1, max_tokens=n_tokens - 1)


@settings(max_examples=150)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.0, 0.5, 5.0, 30.0, 90.0, -20.0, -1e6]),
            st.one_of(
                st.integers(2, 600),
                st.tuples(st.integers(0, 9), st.floats(0, 1), st.sampled_from([0.0, 5.0, 50.0, 5000.0])),
            ),
        ),
        max_size=60,
    )
)
@example(steps=[(0.0, 600), (90.0, 600), (0.0, (0, 0.0, 0.0)), (0.0, 600)])
@example(steps=[(0.0, 600), (30.0, 300), (0.0, (0, 1.0, 50.0)), (0.0, 300)])
@example(steps=[(0.0, 300), (0.0, 300), (30.0, 300), (0.0, (0, 0.0, 0.0)), (0.0, (0, 0.0, 0.0)), (0.0, 600)])
def test_no_stretch_of_time_has_more_than_its_share_whenever_what_is_given_back(
    steps: list[tuple[float, int | tuple[int, float, float]]],
) -> None:
    """A step waits, then begins a generation of so many tokens, or ends one that used this share of its own.

    What ends one is a report, which may be as of a time before the last grant.
    """
    account, now_s, running_s = Account(updated_s=START_S), START_S, 0.0
    running: list[tuple[Reservation, float]] = []
    used: list[tuple[float, int]] = []
    for wait_s, what in steps:
        now_s += wait_s  # a clock that goes back is behind from then on
        running_s += max(0.0, wait_s)
        if isinstance(what, int):
            try:
                account, held = begun(set_back(account, now_s), LIMITS, wanted(what), 0, now_s)
            except QuotaExceededError:
                continue
            running.append((held, running_s))
        elif running:
            held, began_s = running.pop(what[0] % len(running))
            n_tokens = int(held.n_reserved * what[1])
            result = settled(account, LIMITS, held, n_tokens, now_s - what[2], is_over=True)
            account = result.account
            moved = result.given_back[0]
            running = [
                (_moved_up(other, moved) if other.marks[0] > held.marks[0] else other, began)
                for other, began in running
            ]
            used.append((began_s, n_tokens))
    used += [(began_s, held.n_reserved) for held, began_s in running]
    used.sort()
    for i, (first_s, _) in enumerate(used):
        n_tokens = 0
        for last_s, n in used[i:]:
            n_tokens += n
            assert n_tokens <= 600 + (last_s - first_s) * 10 + 1e-3


def _moved_up(held: Reservation, n: float) -> Reservation:
    minute, day = held.marks
    return Reservation(n_reserved=held.n_reserved, marks=(minute - n, day))


def test_the_wait_is_exact_and_names_the_limit_with_numbers() -> None:
    account, _ = begun(Account(updated_s=START_S), LIMITS, wanted(500), 0, START_S)
    with pytest.raises(QuotaExceededError) as caught:
        begun(account, LIMITS, wanted(200), 0, START_S + 1.0)
    assert caught.value.message == "tokens/min: 690 of 600 would be used; 9 s until there is room"
    assert caught.value.retry_after_s == pytest.approx(9.0)
    begun(account, LIMITS, wanted(200), 0, START_S + 10.0)
    assert [(rate.limit_name, rate.used) for rate in rate_uses(account, LIMITS, START_S + 10.0)] == [
        ("tokens/min", 400)
    ]


def test_what_is_left_is_rounded_down_and_comes_back_by_the_time_that_is_said() -> None:
    limits = KeyLimits(requests_per_min=3, tokens_per_day=864)
    account, _ = begun(Account(updated_s=START_S), limits, wanted(100), 0, START_S)
    assert [(rate.limit_name, rate.limit, rate.n_left) for rate in rates_left(account, limits)] == [
        ("requests/min", 3, 2),
        ("tokens/day", 864, 764),
    ]
    requests, tokens = (rate.full_in_s for rate in rates_left(account, limits))
    assert (requests, tokens) == (pytest.approx(20.0), pytest.approx(10_000.0))
    later = at(account, limits, START_S + 15.0)
    assert [rate.n_left for rate in rates_left(later, limits)] == [2, 765 - 1]
    assert [rate.full_in_s for rate in rates_left(at(account, limits, START_S + tokens), limits)] == [0.0, 0.0]


def test_of_several_limits_the_one_that_takes_longest_is_named_and_none_is_taken() -> None:
    limits = KeyLimits(requests_per_min=1, tokens_per_day=864)
    account, _ = begun(Account(updated_s=START_S), limits, wanted(864), 0, START_S)
    with pytest.raises(QuotaExceededError, match="tokens/day: 874 of 864") as caught:
        begun(account, limits, wanted(10), 0, START_S)
    assert caught.value.retry_after_s == pytest.approx(1000.0)
    with pytest.raises(QuotaExceededError, match="requests/min: 2 of 1") as caught:
        begun(at(account, limits, START_S), KeyLimits(requests_per_min=1), wanted(10), 0, START_S)
    assert caught.value.retry_after_s == pytest.approx(60.0)


def test_no_more_generations_run_than_may() -> None:
    with pytest.raises(QuotaExceededError, match="concurrent generations: 3 of 2 would run"):
        begun(Account(), KeyLimits(max_concurrent=2), wanted(2), 2, START_S)


def test_going_on_takes_only_what_goes_beyond() -> None:
    account, held = begun(Account(updated_s=START_S), LIMITS, wanted(500), 0, START_S)
    same, second = continued(account, LIMITS, held, Wanted(n_prompt_tokens=21, max_tokens=479), START_S)
    assert same == account
    more, third = continued(same, LIMITS, second, wanted(600), START_S)
    assert more.meters[1].used == 600
    assert (third.n_reserved, third.n_sessions) == (600, 3)
    with pytest.raises(OverLimitError, match="601 tokens more"):
        continued(account, LIMITS, held, wanted(1101), START_S)
    assert can_continue(Reservation(n_reserved=1, marks=(0, 0), n_sessions=MAX_CONTINUATIONS))
    assert not can_continue(Reservation(n_reserved=1, marks=(0, 0), n_sessions=MAX_CONTINUATIONS + 1))
    assert not can_continue(Reservation(n_reserved=1, marks=(0, 0), is_open=False))


def test_a_session_has_used_what_its_tail_says_within_what_was_allowed() -> None:
    asked = Wanted(n_prompt_tokens=10, max_tokens=5)
    assert n_used(asked, 10, 3, has_failed=False, n_before=0) == 13
    assert n_used(asked, 10, 99, has_failed=False, n_before=0) == 15
    assert n_used(asked, 0, 0, has_failed=False, n_before=0) == 10
    assert n_used(asked, 10, 0, has_failed=True, n_before=0) == 0
    assert n_used(asked, 10, 2, has_failed=True, n_before=8) == 4


def test_a_clock_that_went_back_gives_nothing_and_blocks_nobody_for_longer_than_the_rate_takes() -> None:
    account, _ = begun(Account(updated_s=START_S), LIMITS, wanted(600), 0, START_S)
    back_s = START_S - 1e6
    account = set_back(account, back_s)
    with pytest.raises(QuotaExceededError) as caught:
        begun(account, LIMITS, wanted(600), 0, back_s)
    assert caught.value.retry_after_s == pytest.approx(60.0)
    begun(set_back(account, back_s + 60.0), LIMITS, wanted(600), 0, back_s + 60.0)


def test_a_time_a_little_earlier_than_the_last_waits_for_that_one() -> None:
    account, _ = begun(Account(updated_s=START_S), LIMITS, wanted(600), 0, START_S)
    with pytest.raises(QuotaExceededError) as caught:
        begun(account, LIMITS, wanted(600), 0, START_S - 30.0)
    assert caught.value.retry_after_s == pytest.approx(90.0)
    assert at(account, LIMITS, START_S - 30.0) == set_back(account, START_S - 30.0) == account
