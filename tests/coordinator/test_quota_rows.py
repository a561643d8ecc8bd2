"""Reservations in a real database: atomic, given back when they end, and as their limits are then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import select

from coordinator import transactions
from coordinator.database import opened
from coordinator.quota_rows import GOES_ON_WITHIN, LONGEST_GENERATION
from coordinator.repository import Repository
from coordinator.stored_rows import ReportedEnd
from coordinator.tables import GenerationRow, QuotaRow, ReservationRow
from protocol.control_messages import GenerationReport
from protocol.errors import QuotaExceededError
from protocol.ids import KeyId, SessionId
from protocol.key_limits import KeyLimits, LimitsChange
from tests.support.quota_ledger import KEY, NOW, TAIL, add_key, begin, end, used


@pytest.fixture
async def repository(database_url: str) -> AsyncIterator[Repository]:
    async with opened(database_url) as engine:
        yield Repository(engine)


# ------------------------------------------------------------------ many at once


async def test_of_a_hundred_at_once_for_the_last_unit_exactly_one_passes(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "BUSY_TIMEOUT_MS", 120_000)  # a hundred take their turns on a slow machine
    for name, limits in {
        "requests": KeyLimits(requests_per_min=1),
        "tokens": KeyLimits(tokens_per_min=15, tokens_per_day=10**6),
        "running": KeyLimits(max_concurrent=1),
    }.items():
        key_id = KeyId(name)
        await add_key(repository, limits, key_id)
        results = await asyncio.gather(
            *(begin(repository, f"{name}{i}", 10, 5, key_id=key_id) for i in range(100)), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, QuotaExceededError)]
        assert (len(refused), results.count(None)) == (99, 1), [r for r in results if r is not None][:3]
        recorded = [await repository.generation(SessionId(f"{name}{i}")) for i in range(100)]
        assert sum(generation is not None for generation in recorded) == 1


# ------------------------------------------------------------------ one after the other


async def test_what_is_not_used_comes_back_and_one_that_failed_goes_on_for_the_same(repository: Repository) -> None:
    await add_key(
        repository, KeyLimits(requests_per_min=5, tokens_per_min=1000, tokens_per_day=2000, max_concurrent=1)
    )
    await begin(repository, "s1", 10, 90)
    assert await used(repository) == ([1, 100, 100], 1)
    with pytest.raises(QuotaExceededError, match="concurrent"):
        await begin(repository, "s2", 10, 90)
    assert await end(repository, "s1", 10, 4, "failed")
    assert await used(repository) == ([1, 100, 100], 1)
    await begin(repository, "s3", 14, 86, continues="s1")
    assert await used(repository) == ([1, 100, 100], 1)
    assert await end(repository, "s3", 14, 6)
    assert await end(repository, "s3", 14, 6), "the same again, since its answer was lost, counts once"
    assert not await end(repository, "s3", 14, 7)
    assert await used(repository) == ([1, 20, 20], 0)
    (day,) = await repository.usage.usage(NOW.date(), NOW.date())
    assert (day.n_generations, day.n_prompt_tokens, day.n_completion_tokens) == (1, 10, 10)
    given = await repository.usage.contributions(NOW.date(), NOW.date())
    assert [(c.worker_id, c.n_token_blocks) for c in given] == [("w-a", (14 + 20) * 3), ("w-b", 14 + 20)]


async def test_what_nobody_reports_comes_back_in_time_and_is_counted_if_it_is_reported_after_all(
    repository: Repository,
) -> None:
    await add_key(repository, KeyLimits(tokens_per_day=10**9))
    await begin(repository, "leaks", 10, 90)
    await begin(repository, "fails", 10, 90)
    await end(repository, "fails", 10, 0, "failed")
    assert await repository.quotas.expire(NOW + GOES_ON_WITHIN - timedelta(seconds=1)) == 0
    assert await repository.quotas.expire(NOW + GOES_ON_WITHIN) == 1
    assert (await used(repository))[1] == 1
    late = NOW + LONGEST_GENERATION
    assert await repository.quotas.expire(late) == 1
    assert await used(repository, late) == ([0], 0)
    await end(repository, "leaks", 10, 5, now=late)
    assert await used(repository, late) == ([15], 0)
    assert await repository.quotas.expire(late + LONGEST_GENERATION) == 2
    assert await repository.quotas.expire(late + LONGEST_GENERATION) == 0


async def test_what_is_over_and_goes_on_is_a_new_request(repository: Repository) -> None:
    await add_key(repository, KeyLimits(tokens_per_day=1000))
    await begin(repository, "s1", 10, 90)
    await begin(repository, "s2", 10, 90)
    await end(repository, "s1", 10, 4, "failed")
    await repository.quotas.expire(NOW + GOES_ON_WITHIN)
    await begin(repository, "s3", 14, 186, continues="s1")
    assert await used(repository) == ([14 + 100 + 200], 2)
    await end(repository, "s2", 10, 90)
    await end(repository, "s3", 14, 6)
    assert await used(repository) == ([14 + 100 + 20], 0)


async def test_reports_and_routes_that_waited_for_the_database_go_by_the_time_when_they_have_it(
    repository: Repository,
) -> None:
    await add_key(repository, KeyLimits(tokens_per_min=600))
    await begin(repository, "s1", 100, 200)
    await begin(repository, "s2", 100, 200, now=NOW + timedelta(seconds=30))
    await end(repository, "s1", 100, 200, now=NOW - timedelta(minutes=5))
    assert await used(repository, NOW + timedelta(seconds=30)) == ([300], 1)
    report = GenerationReport(
        session_id=SessionId("s2"), n_prompt_tokens=100, n_completion_tokens=200, outcome="stop"
    )
    clock = iter([(NOW + timedelta(seconds=40)).timestamp()])
    await repository.finish_generations([ReportedEnd(report=report, at=NOW)], lambda: next(clock))
    async with repository.transactions.reading() as session:
        row = await session.get_one(QuotaRow, KEY)
        assert (row.updated_at, row.minute_used) == (NOW + timedelta(seconds=40), 200)


async def test_a_clock_that_went_back_delays_no_longer_than_the_rate_takes(repository: Repository) -> None:
    await add_key(repository, KeyLimits(tokens_per_min=100))
    await begin(repository, "s1", 10, 90)
    back = NOW - timedelta(days=1)
    with pytest.raises(QuotaExceededError, match="60 s until"):
        await begin(repository, "s2", 10, 90, now=back)
    await begin(repository, "s3", 10, 90, now=back + timedelta(seconds=60))


async def test_owners_are_those_of_the_day_when_it_was_given(repository: Repository) -> None:
    await add_key(repository, KeyLimits())
    for session, owner in (("s1", "ann"), ("s2", "bob")):
        await repository.usage.set_owner(TAIL, owner, NOW)
        await begin(repository, session, 1, 9)
        await end(repository, session, 1, 9)
    given = await repository.usage.contributions(NOW.date(), NOW.date())
    assert {(c.owner, c.worker_id): c.n_token_blocks for c in given} == {
        ("", "w-a"): 60,
        ("ann", TAIL): 10,
        ("bob", TAIL): 10,
    }


async def test_limits_that_change_keep_what_was_used_and_go_away_with_all_that_is_held(
    repository: Repository,
) -> None:
    await add_key(repository, KeyLimits(tokens_per_min=1000))
    await begin(repository, "s1", 10, 690)
    lowered = await repository.quotas.change(KEY, LimitsChange(tokens_per_min=200, priority="low"), NOW)
    assert lowered == KeyLimits(tokens_per_min=200, priority="low")
    with pytest.raises(QuotaExceededError, match="tokens/min: 701 of 200") as caught:
        await begin(repository, "s2", 1, 0)
    assert caught.value.retry_after_s == pytest.approx(501 / 200 * 60)
    unlimited = await repository.quotas.change(KEY, LimitsChange(tokens_per_min=None, priority=None), NOW)
    assert unlimited == KeyLimits()
    assert await end(repository, "s1", 10, 5)
    assert await used(repository) == ([], 0)
    assert [line.action for line in await repository.audit_lines(2)] == ["key_limits_changed"] * 2


async def test_limits_that_change_leave_what_came_back_by_then_and_forget_what_was_unlimited(
    repository: Repository,
) -> None:
    await add_key(repository, KeyLimits(tokens_per_min=1000, priority="low"))
    await begin(repository, "s1", 10, 990)
    later = NOW + timedelta(seconds=60)
    await repository.quotas.change(KEY, LimitsChange(tokens_per_min=100), later)
    assert await used(repository, later) == ([0], 1)
    await begin(repository, "s2", 10, 90, now=later)
    await repository.quotas.change(KEY, LimitsChange(tokens_per_min=None), later)
    await repository.quotas.change(KEY, LimitsChange(tokens_per_min=10), later + timedelta(seconds=1))
    assert await used(repository, later + timedelta(seconds=1)) == ([0], 2)


async def test_a_report_and_the_route_by_which_its_generation_goes_on_dont_wait_for_each_other(
    repository: Repository,
) -> None:
    """On PostgreSQL, where both run at once: who locked the other way round was refused after a second."""
    await add_key(repository, KeyLimits(tokens_per_day=1000))
    await begin(repository, "s1", 10, 20)
    if repository.transactions.database == "sqlite":
        return
    async with asyncio.TaskGroup() as tasks:
        async with repository.transactions.writing() as session:
            await session.get(GenerationRow, "s1", with_for_update=True)  # as a report begins
            going_on = tasks.create_task(begin(repository, "s2", 10, 20, continues="s1"), name="goes on")
            await asyncio.wait([going_on], timeout=0.3)
            await session.get(QuotaRow, KEY, with_for_update=True)  # as it goes on
        await going_on


async def test_many_reported_at_once_leave_what_they_leave_one_by_one(repository: Repository) -> None:
    """Whatever the rate has forgotten by then, and however many stand behind them in the queue."""
    keys = [KeyId("k1"), KeyId("k2")]
    for key_id in keys:
        await add_key(repository, KeyLimits(tokens_per_min=400, tokens_per_day=86_400), key_id)
        for i in range(9):
            at = NOW + timedelta(seconds=8 * i)
            await begin(repository, f"{key_id}-{i}", 10, 40 + i, now=at, key_id=key_id)
    ended = [0, 2, 3, 7, 8]
    late = NOW + timedelta(seconds=75)

    def report(key_id: KeyId, i: int) -> ReportedEnd:
        session = SessionId(f"{key_id}-{i}")
        said = GenerationReport(session_id=session, n_prompt_tokens=10, n_completion_tokens=i, outcome="stop")
        return ReportedEnd(report=said, at=late, reported_by=TAIL)

    together = [report(keys[0], i) for i in ended]
    again = replace(together[0], at=late + timedelta(seconds=1))
    finished = await repository.finish_generations([*together, again], late.timestamp)
    assert finished[5] == finished[0] != None, "the first report counts"  # noqa: E711 - a chain
    for i in ended:
        assert await repository.finish_generations([report(keys[1], i)], late.timestamp) != [None]
    (one_by_one, has_moved), (at_once, _) = await left(repository, keys[1]), await left(repository, keys[0])
    assert at_once == pytest.approx(one_by_one)
    assert has_moved, "else nothing stood behind"


async def left(repository: Repository, key_id: KeyId) -> tuple[list[float], bool]:
    """All numbers that are kept of a key, and whether what is open moved up."""
    async with repository.transactions.reading() as session:
        quota = await session.get_one(QuotaRow, key_id)
        query = select(ReservationRow).where(ReservationRow.key_id == key_id).order_by(ReservationRow.id)
        rows = (await session.scalars(query)).all()
    numbers = [[row.n_reserved, row.minute_mark, row.day_mark] for row in rows]
    meters = [quota.minute_used, quota.minute_entered, quota.day_used, quota.day_entered]
    starts = [sum(50 + k for k in range(i + 1)) for i in range(len(rows))]
    moved = any(row.day_mark < start for row, start in zip(rows, starts, strict=True) if row.is_open)
    return [*meters, *(number for some in numbers for number in some)], moved
