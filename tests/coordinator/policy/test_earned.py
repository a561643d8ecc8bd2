"""Earned priority: more is never less, a class at most, gone with time, and nobody else's loss."""

from __future__ import annotations

from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.earned import LEAST_TOKEN_BLOCKS, given_lately, raised, raised_owners
from protocol.ids import WorkerId
from protocol.key_limits import PRIORITY_WEIGHTS
from protocol.quota_rest import Contribution

TODAY = date(2026, 11, 21)
GIVEN = st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 1e12), max_size=6)


@given(given=GIVEN, owner=st.sampled_from("abcdef"), more=st.floats(0, 1e12))
def test_who_gives_more_never_loses_by_it(given: dict[str, float], owner: str, more: float) -> None:
    before = owner in raised_owners(given)
    assert (owner in raised_owners({**given, owner: given.get(owner, 0.0) + more})) >= before


@given(given=GIVEN)
def test_the_most_generous_is_raised_and_who_gave_nothing_is_not(given: dict[str, float]) -> None:
    found = raised_owners(given)
    assert all(given[owner] >= LEAST_TOKEN_BLOCKS for owner in found)
    most = max(given, key=given.__getitem__, default=None)
    assert most is None or (most in found) == (given[most] >= LEAST_TOKEN_BLOCKS)


@given(n_token_blocks=st.integers(0, 10**12), age_days=st.integers(0, 400), later=st.integers(0, 400))
def test_what_was_given_counts_for_less_with_time(n_token_blocks: int, age_days: int, later: int) -> None:
    day = TODAY - timedelta(days=age_days)
    gift = Contribution(worker_id=WorkerId("w"), owner="a", day=day.isoformat(), n_token_blocks=n_token_blocks)
    nobodys = Contribution(worker_id=WorkerId("v"), owner="", day=day.isoformat(), n_token_blocks=n_token_blocks)
    now, then = given_lately([gift, nobodys], TODAY), given_lately([gift], TODAY + timedelta(days=later))
    assert now.keys() == {"a"}
    assert 0 <= then["a"] <= now["a"] <= n_token_blocks
    if later >= 7:
        assert then["a"] <= now["a"] / 2


def test_it_is_one_class_and_no_more() -> None:
    assert [raised(priority) for priority in ("low", "normal", "high")] == ["normal", "high", "high"]
    assert PRIORITY_WEIGHTS[raised("normal")] == max(PRIORITY_WEIGHTS.values())
