"""Who gets the lease on the database and when: refused, standing by, taking over, losing it. Never two."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from coordinator.database import opened
from coordinator.lease import NOBODY, Lease, LeaseTable
from coordinator.lease_keeper import LeaseKeeper, LeaseTimes, holder_of
from coordinator.repository import Repository
from coordinator.state_folder import StateFolder
from protocol.coordinator_errors import LeaseError
from protocol.errors import StorageError
from protocol.ids import CoordinatorId
from tests.support.waiting import eventually_answered

QUICK = LeaseTimes(renew_s=0.1, watch_s=0.5, stand_by_s=1.0, look_s=0.02, retry_s=0.05)
"""For those who are to find that the holder is silent."""
PATIENT = replace(QUICK, watch_s=15.0, stand_by_s=2.0)
"""For those who are to find it alive: a busy machine has it renew later."""


@asynccontextmanager
async def keeper(url: str, holder: str, times: LeaseTimes = QUICK) -> AsyncIterator[tuple[LeaseKeeper, LeaseTable]]:
    async with opened(url) as engine:
        table = LeaseTable(Repository(engine).transactions)
        yield LeaseKeeper(table, holder, f"https://{holder}:1", times=times), table


async def expire(url: str) -> None:
    """As if the database's clock had stepped an hour ahead."""
    async with opened(url) as engine, engine.begin() as connection:
        await connection.execute(text("UPDATE coordinator_lease SET expires_at = '2020-01-01 00:00:00.000000'"))


async def test_a_second_one_is_refused_with_who_and_until_when(database_url: str) -> None:
    async with (
        keeper(database_url, "a") as (a, table),
        keeper(database_url, "b", PATIENT) as (b, _),
        asyncio.timeout(20),
    ):
        async with a.held(takes_over=False):
            with pytest.raises(LeaseError, match=r"a, at https://a:1\. .* until \d\d:\d\d:\d\d UTC.*--take-over"):
                async with b.held(takes_over=False):
                    pass
            assert (await table.read()).holder == "a"
        assert (await table.read()).holder == NOBODY
        async with b.held(takes_over=False):
            assert (await table.read()).holder == "b"


async def test_the_same_folder_has_its_own_lease_back_at_once(database_url: str) -> None:
    never = LeaseTimes(watch_s=600.0)
    async with (
        keeper(database_url, "a") as (_, table),
        keeper(database_url, "a", never) as (again, _),
        asyncio.timeout(20),
    ):
        assert await table.take(await table.read(), "a", "")  # and was killed
        async with again.held(takes_over=False):
            assert (await table.read()).epoch == 2


async def test_a_clock_that_stepped_gives_nobody_the_lease_of_one_that_lives(database_url: str) -> None:
    async with (
        keeper(database_url, "a") as (a, table),
        keeper(database_url, "b", PATIENT) as (b, _),
        asyncio.timeout(40),
        a.held(takes_over=False),
    ):
        for _ in range(3):
            await expire(database_url)
            with pytest.raises(LeaseError, match="another coordinator serves"):
                async with b.held(takes_over=False):
                    pass
        assert (await table.read()).epoch == 1


async def test_a_lease_that_ran_out_is_taken_after_a_watch(database_url: str) -> None:
    async with keeper(database_url, "a") as (_, table), keeper(database_url, "b") as (b, _), asyncio.timeout(20):
        assert await table.take(await table.read(), "a", "")  # and was killed on another machine
        await expire(database_url)
        async with b.held(takes_over=False):
            assert (await table.read()).holder == "b"


async def test_one_that_stands_by_takes_over_when_the_other_falls_silent(database_url: str) -> None:
    async with (
        keeper(database_url, "a") as (_, table),
        keeper(database_url, "b", PATIENT) as (b, _),
        asyncio.timeout(20),
    ):
        loop = asyncio.get_running_loop()
        assert await table.take(await table.read(), "a", "")
        async with AsyncExitStack() as stack:
            async with asyncio.TaskGroup() as tasks:
                taking = tasks.create_task(stack.enter_async_context(b.held(takes_over=True)), name="standing by")
                until_s = loop.time() + 1.25 * PATIENT.stand_by_s
                while loop.time() < until_s:
                    await table.renew("")
                    done, _ = await asyncio.wait([taking], timeout=0.1)
                    assert not done, "it was renewed all the time"
            assert (await table.read()).holder == "b"


async def test_one_that_stands_by_takes_over_at_once_what_is_let_go(database_url: str) -> None:
    slow = LeaseTimes(stand_by_s=600.0, look_s=0.02)
    async with (
        keeper(database_url, "a") as (a, table),
        keeper(database_url, "b", slow) as (b, _),
        asyncio.timeout(20),
        AsyncExitStack() as stack,
    ):
        async with asyncio.TaskGroup() as tasks, a.held(takes_over=False):
            tasks.create_task(stack.enter_async_context(b.held(takes_over=True)), name="standing by")
            await asyncio.sleep(0)
        assert (await table.read()).holder == "b"


async def test_one_that_stands_by_goes_on_when_whoever_hangs_keeps_the_database_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.database.BUSY_TIMEOUT_MS", 100)
    url, stack, refused = f"sqlite+aiosqlite:///{tmp_path / 'x.db'}", AsyncExitStack(), asyncio.Event()

    class Watched(LeaseTable):
        async def take(self, seen: Lease, holder: str, url: str) -> bool:
            try:
                return await super().take(seen, holder, url)
            except StorageError:
                refused.set()
                raise

    async with opened(url) as engine, opened(url) as hanging, asyncio.timeout(20), stack:
        table = Watched(Repository(engine).transactions)
        assert await table.take(await table.read(), "a", "")
        b = LeaseKeeper(table, "b", "", times=QUICK)
        async with asyncio.TaskGroup() as tasks, hanging.begin():
            tasks.create_task(stack.enter_async_context(b.held(takes_over=True)), name="standing by")
            await refused.wait()
        assert (await table.read()).holder == "b"


async def until_stopped(loser: LeaseKeeper, others: LeaseTable, repository: Repository | None = None) -> None:
    """Hold the lease, have it taken away, write if there is a repository to, and go on as a program does."""
    async with loser.held(takes_over=False):
        while not await others.take(await others.read(), "b", ""):  # it was renewed in between
            pass
        if repository is not None:
            with pytest.raises(LeaseError):
                await repository.claim(CoordinatorId("c"))
        await asyncio.Event().wait()


async def test_whoever_loses_it_is_stopped(database_url: str) -> None:
    async with keeper(database_url, "a") as (a, _), keeper(database_url, "b") as (_, others), asyncio.timeout(20):
        with pytest.raises(LeaseError, match="another coordinator has taken"):
            await until_stopped(a, others)
        assert (await others.read()).holder == "b", "nothing of another's is let go"


async def test_a_writer_that_finds_it_lost_has_the_program_stopped_at_once(database_url: str) -> None:
    never = LeaseTimes(renew_s=600.0)
    async with opened(database_url) as engine, keeper(database_url, "b") as (_, others), asyncio.timeout(20):
        repository = Repository(engine)
        a = LeaseKeeper(LeaseTable(repository.transactions), "a", "", times=never)
        with pytest.raises(LeaseError):
            await until_stopped(a, others, repository)


async def test_the_address_it_answers_at_is_told(database_url: str) -> None:
    slow = LeaseTimes(renew_s=600.0)
    async with keeper(database_url, "a", slow) as (a, table), asyncio.timeout(20), a.held(takes_over=False):
        a.tell_url("https://a:7400")

        async def is_told() -> bool:
            return (await table.read()).url == "https://a:7400"

        await eventually_answered(is_told)


async def test_a_database_that_cant_be_used_costs_nobody_the_lease(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with (
        keeper(f"sqlite+aiosqlite:///{path}", "a") as (a, table),
        asyncio.timeout(20),
        a.held(takes_over=False),
    ):
        path.rename(tmp_path / "away.db")
        await asyncio.sleep(5 * QUICK.renew_s)  # renewals that fail
        (tmp_path / "away.db").rename(path)
        before = await table.read()

        async def is_renewed() -> bool:
            return not (await table.read()).is_same(before)

        await eventually_answered(is_renewed)
        assert (await table.read()).holder == "a"


def test_a_copy_of_a_folder_is_another_holder(tmp_path: Path) -> None:
    holders = {holder_of(StateFolder(tmp_path / name), CoordinatorId("c-1")) for name in ("a", "b", "b")}
    assert len(holders) == 2
    assert all("c-1" in holder and len(holder) <= 128 for holder in holders)
