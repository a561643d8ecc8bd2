"""What a generation used is counted once for its key, by whichever of its sessions was reported first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from coordinator.database import opened
from coordinator.repository import Repository
from protocol.errors import QuotaExceededError
from protocol.key_limits import KeyLimits
from tests.support.quota_ledger import KEY, NOW, add_key, begin, end


@pytest.fixture
async def repository(database_url: str) -> AsyncIterator[Repository]:
    async with opened(database_url) as engine:
        yield Repository(engine)


async def counted(repository: Repository) -> tuple[int, int, int]:
    (day,) = await repository.usage.usage(NOW.date(), NOW.date())
    return day.n_generations, day.n_prompt_tokens, day.n_completion_tokens


async def test_what_goes_on_from_a_tail_that_died_counts_as_the_generation(repository: Repository) -> None:
    await add_key(repository, KeyLimits())
    await begin(repository, "dies", 10, 90)
    await begin(repository, "dies too", 12, 88, continues="dies")
    await begin(repository, "ends", 14, 86, continues="dies too")
    await end(repository, "ends", 14, 6)
    assert await counted(repository) == (1, 14, 6)


async def test_nothing_is_counted_twice_whoever_dies_in_between(repository: Repository) -> None:
    await add_key(repository, KeyLimits())
    await begin(repository, "reports", 10, 90)
    await end(repository, "reports", 10, 4, "failed")
    await begin(repository, "dies", 14, 86, continues="reports")
    await begin(repository, "ends", 16, 84, continues="dies")
    await end(repository, "ends", 16, 6)
    assert await counted(repository) == (1, 10, 10)


async def test_a_prompt_that_nobody_had_run_is_counted_by_who_goes_on(repository: Repository) -> None:
    await add_key(repository, KeyLimits())
    await begin(repository, "fails", 10, 90)
    await end(repository, "fails", 10, 0, "failed")
    await begin(repository, "ends", 10, 90, continues="fails")
    await end(repository, "ends", 10, 6)
    assert await counted(repository) == (1, 10, 6)


async def test_midnight_moves_no_token_to_another_day_and_gives_nothing_back(repository: Repository) -> None:
    """A day of the ledger is UTC's and that of the report; the rate of tokens a day knows no day's end."""
    before, after = datetime(2026, 11, 21, 23, 59, 59, tzinfo=UTC), datetime(2026, 11, 22, 0, 0, 1, tzinfo=UTC)
    await add_key(repository, KeyLimits(tokens_per_day=86_400))  # one comes back each second
    await begin(repository, "ends before", 10, 80_000, now=before)
    await end(repository, "ends before", 10, 80_000, now=before)
    await begin(repository, "runs over", 20, 6_000, now=before)
    with pytest.raises(QuotaExceededError, match="tokens/day"):
        await begin(repository, "has no room", 10, 6_000, now=after)
    await end(repository, "runs over", 20, 5_000, now=after)
    days = {
        day.day: (day.n_generations, day.n_prompt_tokens, day.n_completion_tokens)
        for day in await repository.usage.usage(before.date(), after.date())
    }
    assert days == {"2026-11-21": (1, 10, 80_000), "2026-11-22": (1, 20, 5_000)}
    (rate,) = (await repository.quotas.quota(KEY, after)).rates
    assert rate.used == 80_010 + 5_020 - 2
