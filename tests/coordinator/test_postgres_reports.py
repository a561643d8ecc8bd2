"""Reports that PostgreSQL saves in two round trips: the same rows as otherwise, fenced, by what counts last."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from coordinator.database import opened
from coordinator.generation_rows import finish_generations
from coordinator.postgres_reports import read_reports
from coordinator.postgres_routes import PostgresRoutes
from coordinator.quota_records import GENERATIONS, QUOTAS, RESERVATIONS
from coordinator.repository import Repository
from coordinator.stored_rows import ReportedEnd, StoredGeneration
from coordinator.table_base import table_of
from coordinator.tables import ContributionRow, UsageRow
from protocol.coordinator_errors import LeaseError
from protocol.ids import KeyId, SessionId, WorkerId
from protocol.key_limits import UNLIMITED, KeyLimits
from tests.coordinator.test_lease import side
from tests.coordinator.test_postgres_routes import (
    KEY,
    MAX_TOKENS,
    N_PROMPT,
    N_USED,
    NOW,
    TAIL,
    add_key,
    counted_repository,
    new,
    said_by_tail,
    until_somebody_waits,
)
from tests.support.postgres import PostgresServer

OTHER, FREE = KeyId("k2"), KeyId("free")
LATER = NOW + timedelta(seconds=3)
TABLES = (QUOTAS, RESERVATIONS, GENERATIONS, table_of(UsageRow), table_of(ContributionRow))


async def rows_of_all(repository: Repository) -> list[list[dict[str, Any]]]:
    async with repository.transactions.reading() as session:
        return [
            [dict(row) for row in (await session.execute(select(table).order_by(*table.primary_key))).mappings()]
            for table in TABLES
        ]


async def saved(
    repository: Repository, ends: Sequence[ReportedEnd], *, is_native: bool
) -> list[StoredGeneration | None]:
    if is_native:
        return await repository.finish_generations(ends, LATER.timestamp)
    return await repository.transactions.write_rows(lambda rows: finish_generations(rows, ends, LATER.timestamp))


def ends_of_all() -> list[list[ReportedEnd]]:
    """Of several keys, one without limits; nobody's, somebody else's, a second one, a failure, and again.

    At last one that went on by another, after that one.
    """
    failed = said_by_tail("d")
    failed = replace(failed, report=replace_outcome(failed, "failed"))
    stranger = replace(said_by_tail("e"), reported_by=WorkerId("head"))
    more = replace(said_by_tail("a"), at=LATER)
    return [
        [said_by_tail("a"), said_by_tail("b"), said_by_tail("c"), more, said_by_tail("unknown"), failed, stranger],
        [said_by_tail("a"), replace(said_by_tail("e"), at=NOW + timedelta(days=1))],
        [said_by_tail("unknown")],
        [said_by_tail("d")],
        [said_by_tail("h")],
        [said_by_tail("f")],
    ]


def replace_outcome(end: ReportedEnd, outcome: str) -> Any:
    return type(end.report)(
        session_id=end.report.session_id, n_prompt_tokens=N_PROMPT, n_completion_tokens=N_USED, outcome=outcome
    )


async def test_the_rows_are_those_that_are_written_otherwise(postgres_server: PostgresServer) -> None:
    kept, said = [], []
    for is_native in (True, False):
        async with opened(postgres_server.new_database()) as engine:
            repository = Repository(engine)
            repository.transactions.fence.epoch = 0
            limits = KeyLimits(requests_per_min=9, tokens_per_day=500, max_concurrent=9)
            for key_id, its in ((KEY, limits), (OTHER, KeyLimits(tokens_per_min=400)), (FREE, UNLIMITED)):
                await add_key(repository, its, key_id)
            await repository.usage.set_owner(TAIL, "ann", NOW)
            some = [new("a"), new("b", OTHER), new("c", FREE), new("d"), new("e"), new("f"), new("g", OTHER)]
            await repository.record_generations(some, NOW.timestamp)
            await repository.record_generations([replace(new("h"), continues=SessionId("f"))], NOW.timestamp)
            said.append([await saved(repository, ends, is_native=is_native) for ends in ends_of_all()])
            kept.append(await rows_of_all(repository))
    assert said[0] == said[1]
    assert kept[0] == kept[1]
    assert sorted(row["owner"] for row in kept[0][-1]) == ["", "", "ann", "ann"]


async def test_reports_take_two_round_trips_and_leave_the_key_known(postgres_server: PostgresServer) -> None:
    async with counted_repository(postgres_server.new_database(), KEY, OTHER) as (repository, queries):
        await repository.record_generations([new(name, OTHER) for name in "xy"])
        await repository.finish_generations([said_by_tail("x")])
        await repository.record_generations([new(name) for name in "abc"])
        queries.clear()
        await repository.finish_generations([said_by_tail("a"), said_by_tail("b"), said_by_tail("y")])
        assert queries == ["SELECT", "WITH"]
        queries.clear()
        await repository.record_generation(new("d"))
        assert queries == ["WITH"]
        queries.clear()
        assert await repository.finish_generations([]) == []
        assert queries == []


async def test_a_route_that_comes_while_reports_are_saved_takes_one_round_trip(
    postgres_server: PostgresServer,
) -> None:
    """It finds the quota as they leave it: waiting for the key's row, it would find that changed, and read it."""
    async with counted_repository(postgres_server.new_database(), KEY) as (repository, queries):
        await repository.record_generation(new("a"))
        queries.clear()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(repository.finish_generations([said_by_tail("a")]), name="report")
            tasks.create_task(repository.record_generation(new("b")), name="route")
        assert sorted(queries) == ["SELECT", "WITH", "WITH"]


async def test_one_that_goes_on_by_another_is_reported_too(postgres_server: PostgresServer) -> None:
    async with opened(postgres_server.new_database()) as engine:
        repository = Repository(engine)
        repository.transactions.fence.epoch = 0
        await add_key(repository, KeyLimits(tokens_per_day=500))
        await repository.record_generation(new("a"))
        await repository.record_generation(replace(new("b"), continues=SessionId("a")))
        (first,) = await repository.finish_generations([said_by_tail("a")], LATER.timestamp)
        (second,) = await repository.finish_generations([said_by_tail("b")], LATER.timestamp)
        assert first is not None
        assert second is not None
        assert (await rows_of_all(repository))[3][0]["n_generations"] == 1


@pytest.mark.parametrize("epoch", [0, None])
async def test_what_was_committed_while_the_lock_was_waited_for_counts(
    epoch: int | None, postgres_server: PostgresServer
) -> None:
    """Under a lease what was read before is written by, without one all is read under the locks."""
    url = postgres_server.new_database()
    async with opened(url) as engine, opened(url) as other, other.connect() as observer:
        repository = Repository(engine)
        repository.transactions.fence.epoch = epoch
        await add_key(repository, KeyLimits(tokens_per_day=1000))
        await repository.record_generations([new("a"), new("b")], NOW.timestamp)
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks, other.begin() as connection:
            await connection.exec_driver_sql("SELECT 1 FROM quotas FOR UPDATE")
            both = [said_by_tail("a"), said_by_tail("b")]
            report = tasks.create_task(repository.finish_generations(both, NOW.timestamp))
            await until_somebody_waits(observer)
            await connection.exec_driver_sql("UPDATE quotas SET day_used = day_used + 100")
            await connection.exec_driver_sql("UPDATE reservations SET n_reserved = 40")
        assert all(one is not None for one in report.result())
        quotas, reservations, *_ = await rows_of_all(repository)
    held, used = 2 * (N_PROMPT + MAX_TOKENS), 2 * (N_PROMPT + N_USED)
    assert quotas[0]["day_used"] == held + 100 - (2 * 40 - used)
    assert not any(row["is_open"] for row in reservations)


CHANGED = [
    "UPDATE generations SET finished_at = now(), outcome = 'stop', n_completion_tokens = 1 WHERE session_id = 'a'",
    "UPDATE generations SET continued_by = 'b' WHERE session_id = 'a'",
    "UPDATE reservations SET n_reserved = 40 WHERE session_id = 'a'",
    "UPDATE quotas SET day_used = day_used + 100",
    "UPDATE quotas SET limits = '{\"tokens_per_day\": 7}'",
    "DELETE FROM quotas",
]


@pytest.mark.parametrize("change", CHANGED)
async def test_what_is_written_between_reading_and_writing_counts(
    change: str, postgres_server: PostgresServer
) -> None:
    """As if all of it had been read then."""
    kept = []
    for is_between in (True, False):
        async with opened(postgres_server.new_database()) as engine:
            repository = Repository(engine)
            repository.transactions.fence.epoch = 0
            await add_key(repository, KeyLimits(tokens_per_day=1000))
            await repository.record_generations([new("a"), new("b")], NOW.timestamp)
            routes = PostgresRoutes(repository.transactions)
            ends = [said_by_tail("a"), said_by_tail("b")]
            read = await read_reports(repository.transactions, ends) if is_between else None
            async with engine.begin() as connection:
                await connection.exec_driver_sql(change.replace("now()", "timestamp '2026-11-21 12:00:01+00'"))
            if read is not None:
                before = await rows_of_all(repository)
                assert not await routes._saved_as_read(read, LATER.timestamp)
                assert await rows_of_all(repository) == before
            await repository.finish_generations(ends, LATER.timestamp)
            kept.append(await rows_of_all(repository))
    assert kept[0] == kept[1]


@pytest.mark.parametrize("change", CHANGED)
async def test_nothing_is_written_by_what_was_read_if_that_changes_while_it_is_waited_for(
    change: str, postgres_server: PostgresServer
) -> None:
    url = postgres_server.new_database()
    async with opened(url) as engine, opened(url) as other, other.connect() as observer:
        repository = Repository(engine)
        repository.transactions.fence.epoch = 0
        await add_key(repository, KeyLimits(tokens_per_day=1000))
        await repository.record_generations([new("a"), new("b")], NOW.timestamp)
        routes = PostgresRoutes(repository.transactions)
        read = await read_reports(repository.transactions, [said_by_tail("a"), said_by_tail("b")])
        assert read is not None
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks, other.begin() as connection:
            await connection.exec_driver_sql(change.replace("now()", "timestamp '2026-11-21 12:00:01+00'"))
            saving = tasks.create_task(routes._saved_as_read(read, LATER.timestamp))
            await until_somebody_waits(observer)
        assert not saving.result()
        _, reservations, generations, *counted = await rows_of_all(repository)
    assert [row["finished_at"] for row in generations if row["session_id"] == "b"] == [None]
    assert all(row["is_open"] for row in reservations)
    assert counted == [[], []]


async def test_who_has_lost_the_lease_saves_none(postgres_server: PostgresServer) -> None:
    url = postgres_server.new_database()
    async with side(url) as old, side(url) as next_one:
        assert await old.take("old")
        await add_key(old.repository, KeyLimits(max_concurrent=2))
        await old.repository.record_generation(new("a"))
        assert await next_one.take("next")
        with pytest.raises(LeaseError, match="another coordinator has taken"):
            await old.repository.finish_generations([said_by_tail("a")])
        async with asyncio.timeout(10):
            (ended,) = await next_one.repository.finish_generations([said_by_tail("a")])
        assert ended is not None
        assert ended.finished_at == datetime(2026, 11, 21, 12, tzinfo=UTC)
