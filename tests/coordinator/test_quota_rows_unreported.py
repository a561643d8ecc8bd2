"""Reservations of which nobody hears any more: given back once, counted if they are reported after all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest

from coordinator.database import opened
from coordinator.quota_rows import LONGEST_GENERATION, OPENS_WITHIN, REPORTED_WITHIN
from coordinator.repository import Repository
from protocol.ids import KeyId, SessionId, WorkerId
from protocol.key_limits import KeyLimits
from tests.support.quota_ledger import NOW, add_key, begin, end, used


@pytest.fixture
async def repository(database_url: str) -> AsyncIterator[Repository]:
    async with opened(database_url) as engine:
        yield Repository(engine)


async def test_a_late_report_of_who_was_thought_dead_counts_what_nobody_counted(repository: Repository) -> None:
    await add_key(repository, KeyLimits(tokens_per_min=1000, tokens_per_day=10**6))
    await begin(repository, "s1", 10, 20)
    await begin(repository, "s2", 15, 15, continues="s1")
    assert await end(repository, "s2", 15, 15)
    assert (await used(repository))[0] == [30, 30]
    assert await end(repository, "s1", 10, 7, "failed")
    assert (await used(repository))[0] == [32, 32], "two tokens that never reached the client"
    (day,) = await repository.usage.usage(NOW.date(), NOW.date())
    assert (day.n_generations, day.n_prompt_tokens, day.n_completion_tokens) == (1, 15, 17)


async def test_a_clock_that_was_ahead_holds_nothing_for_longer_than_a_generation_may_take(
    repository: Repository,
) -> None:
    await add_key(repository, KeyLimits(max_concurrent=1))
    await begin(repository, "s1", 10, 20, now=NOW + timedelta(days=30))
    await repository.quotas.begin_anew(NOW)
    assert await repository.quotas.expire(NOW + LONGEST_GENERATION - timedelta(seconds=1)) == 0
    assert await repository.quotas.expire(NOW + LONGEST_GENERATION) == 1


async def test_what_nobody_opens_is_given_back_after_a_minute_and_what_its_head_says_is_open_is_not(
    repository: Repository,
) -> None:
    await add_key(repository, KeyLimits(max_concurrent=1, tokens_per_day=1000))
    await begin(repository, "s1", 10, 20, is_opening_told=True)
    in_time, late = NOW + OPENS_WITHIN - timedelta(seconds=1), NOW + OPENS_WITHIN
    assert await repository.quotas.expire(in_time) == 0
    assert await opened_at(repository, {"s1": "w-b"}, in_time) == [], "not the head"
    assert await repository.quotas.expire(late) == 1
    assert (await used(repository, late))[1] == 0
    assert await opened_at(repository, {"s1": "w-a", "unknown": "w-a"}, late) == ["s1"]
    await begin(repository, "s2", 10, 20, now=late, is_opening_told=True)
    assert await opened_at(repository, {"s2": "w-a"}, late) == []
    assert await repository.quotas.expire(late + LONGEST_GENERATION - timedelta(seconds=1)) == 0
    assert await end(repository, "s2", 10, 5, now=late)
    assert await opened_at(repository, {"s2": "w-a"}, late) == [], "it is over, as it should be"
    assert await end(repository, "s1", 10, 5, now=late), "its tokens count all the same"
    (day,) = await repository.usage.usage(NOW.date(), NOW.date())
    assert (day.n_generations, day.n_prompt_tokens, day.n_completion_tokens) == (2, 20, 10)


async def test_what_is_over_at_its_head_and_never_reached_its_tail_is_given_back_soon(
    repository: Repository,
) -> None:
    await add_key(repository, KeyLimits(max_concurrent=3))
    for session in ("s1", "s2", "s3"):
        await begin(repository, session, 10, 20, is_opening_told=True)
    assert await opened_at(repository, {"s1": "w-a", "s2": "w-a", "s3": "w-a"}, NOW) == []
    await begin(repository, "s4", 10, 20, continues="s3")
    assert await opened_at(repository, dict.fromkeys(("s1", "s3"), "w-a"), NOW, is_over=True) == []
    assert await opened_at(repository, {"s2": "w-b"}, NOW, is_over=True) == [], "not the head"
    late = NOW + REPORTED_WITHIN
    assert await repository.quotas.expire(late - timedelta(seconds=1)) == 0
    assert await repository.quotas.expire(late) == 1
    assert (await used(repository, late))[1] == 2
    assert await end(repository, "s1", 10, 5, now=late), "a tail that was away reports it all the same"


async def opened_at(
    repository: Repository, heads: dict[str, str], now: datetime, *, is_over: bool = False
) -> list[str]:
    """Have these heads say so; the sessions for which it is too late."""
    told = {SessionId(session): WorkerId(head) for session, head in heads.items()}
    late = await repository.hold_begun(told, now.timestamp, told if is_over else ())
    return [one.session_id for one in late]


async def test_a_start_gives_workers_a_minute_to_say_again_what_is_open(repository: Repository) -> None:
    await add_key(repository, KeyLimits(max_concurrent=1))
    await begin(repository, "s1", 10, 20, is_opening_told=True)
    back = NOW + timedelta(minutes=10)
    await repository.quotas.begin_anew(back)
    assert await repository.quotas.expire(back + OPENS_WITHIN - timedelta(seconds=1)) == 0
    assert await opened_at(repository, {"s1": "w-a"}, back) == []
    assert await repository.quotas.expire(back + OPENS_WITHIN) == 0


async def test_a_session_and_attempts_after_it_of_which_nobody_hears_hold_and_give_back_once(
    repository: Repository,
) -> None:
    await add_key(
        repository, KeyLimits(requests_per_min=5, tokens_per_min=1000, tokens_per_day=2000, max_concurrent=1)
    )
    await begin(repository, "heard", 10, 90, is_opening_told=True)
    for before, session in ((None, "s2"), ("s2", "s3"), ("s3", "s4")):
        await begin(repository, session, 14, 86, continues="heard", replaces=before, is_opening_told=True)
        assert await used(repository) == ([1, 100, 100], 1)
    assert await end(repository, "heard", 10, 4, "failed"), "its tail reports late"
    assert await used(repository) == ([1, 100, 100], 1)
    assert await end(repository, "s4", 14, 6)
    later = NOW + OPENS_WITHIN + timedelta(seconds=1)
    before = await used(repository, later)
    await repository.quotas.expire(later)
    assert await used(repository) == ([1, 20, 20], 0)
    assert await used(repository, later) == before, "nothing of the attempts is left to be given back"
    replaced = [await repository.generation(SessionId(session)) for session in ("heard", "s2", "s3", "s4")]
    assert [one.continued_by for one in replaced if one is not None] == ["s4", "s3", "s4", None]


async def test_only_an_attempt_from_the_same_session_and_of_the_same_key_is_replaced(
    repository: Repository,
) -> None:
    other = KeyId("k2")
    await add_key(repository, KeyLimits())
    await add_key(repository, KeyLimits(), other)
    await begin(repository, "theirs", 10, 90, key_id=other)
    await begin(repository, "mine", 10, 90)
    await begin(repository, "beside", 10, 90)
    for replaced in ("theirs", "beside"):
        await begin(repository, f"after {replaced}", 14, 86, continues="mine", replaces=replaced)
        found = await repository.generation(SessionId(replaced))
        assert found is not None
        assert found.continued_by is None
