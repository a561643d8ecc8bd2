"""The lease's row: taken by one, and whoever has lost it writes nothing any more. On both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from coordinator import transactions
from coordinator.database import opened
from coordinator.lease import LEASE_S, NOBODY, LeaseTable
from coordinator.repository import Repository
from protocol.coordinator_errors import LeaseError
from protocol.exit_codes import EXIT_STORAGE
from protocol.ids import KeyId

NOW = datetime(2026, 11, 21, tzinfo=UTC)


class Side:
    """One of several programs on a database."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.lease = LeaseTable(repository.transactions)

    async def take(self, holder: str) -> bool:
        return await self.lease.take(await self.lease.read(), holder, f"https://{holder}:1")

    async def write(self, key_id: str) -> None:
        await self.repository.add_api_key(KeyId(key_id), "n", "client", "h", NOW)


@asynccontextmanager
async def side(url: str) -> AsyncIterator[Side]:
    async with opened(url) as engine:
        yield Side(Repository(engine))


async def test_a_new_database_is_nobodys_and_the_first_gets_it(database_url: str) -> None:
    async with side(database_url) as a:
        before = await a.lease.read()
        assert (before.holder, before.is_running, before.epoch) == (NOBODY, False, 0)
        assert await a.take("a")
        lease = await a.lease.read()
        assert (lease.holder, lease.url, lease.epoch, lease.is_running) == ("a", "https://a:1", 1, True)
        assert LEASE_S - 5 < lease.expires_in_s <= LEASE_S
        await a.lease.renew("https://a:2")
        renewed = await a.lease.read()
        assert (renewed.url, renewed.n_renewals) == ("https://a:2", 1)
        assert not renewed.is_same(lease)
        await a.lease.release()
        assert not (await a.lease.read()).is_running


async def test_of_two_who_saw_the_same_one_gets_it(database_url: str) -> None:
    async with side(database_url) as a, side(database_url) as b:
        seen = await a.lease.read()
        taken = await asyncio.gather(a.lease.take(seen, "a", ""), b.lease.take(seen, "b", ""))
        assert sorted(taken) == [False, True]
        winner, loser = (a, b) if taken[0] else (b, a)
        await winner.write("k1")
        assert loser.repository.transactions.fence.epoch is None
        assert (await winner.lease.read()).holder == ("a" if taken[0] else "b")


async def test_whoever_lost_it_writes_nothing_any_more(database_url: str) -> None:
    async with side(database_url) as a, side(database_url) as b:
        assert await a.take("a")
        await a.write("before")
        assert await b.take("b")
        assert not a.lease.lost.is_set()
        for refused in (a.write("after"), a.lease.renew(""), a.lease.release()):
            with pytest.raises(LeaseError, match="another coordinator has taken") as caught:
                await refused
        assert caught.value.exit_code == EXIT_STORAGE
        assert a.lease.lost.is_set()
        assert {key.key_id for key in await b.repository.api_keys()} == {"before"}
        await b.write("bs")
        assert (await b.lease.read()).holder == "b"


async def test_many_writers_and_renewals_do_not_block_each_other(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "BUSY_TIMEOUT_MS", 120_000)  # they take their turns on a slow machine
    async with side(database_url) as a, asyncio.timeout(30):
        assert await a.take("a")
        await asyncio.gather(*(a.write(f"k{i}") for i in range(20)), *(a.lease.renew("u") for _ in range(10)))
        assert len(await a.repository.api_keys()) == 20
        assert (await a.lease.read()).n_renewals == 10


async def test_a_writer_under_way_holds_up_whoever_wants_to_take_it(database_url: str) -> None:
    async with side(database_url) as a, side(database_url) as b:
        assert await a.take("a")
        seen = await b.lease.read()
        async with asyncio.TaskGroup() as tasks:
            async with a.repository.transactions.writing() as session:
                taking = tasks.create_task(b.lease.take(seen, "b", ""), name="taking")
                await session.execute(text("UPDATE settings SET value = 'x' WHERE key = 'none'"))
                done, _ = await asyncio.wait([taking], timeout=0.3)
                assert not done
            assert await taking


async def test_a_lease_that_ends_later_than_any_can_is_of_a_clock_that_stepped(database_url: str) -> None:
    async with side(database_url) as a, opened(database_url) as engine:
        assert await a.take("a")
        async with engine.begin() as connection:
            await connection.execute(text("UPDATE coordinator_lease SET expires_at = '2099-01-01 00:00:00.000000'"))
        assert not (await a.lease.read()).is_running
