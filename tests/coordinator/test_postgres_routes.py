"""Routes that PostgreSQL records in one round trip or four: the same rows as otherwise, fenced, never too many."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator import database, rested_connections
from coordinator.database import opened
from coordinator.generation_rows import RatesLeft, begin_generations
from coordinator.quota_records import GENERATIONS, QUOTAS, RESERVATIONS
from coordinator.repository import Repository
from coordinator.stored_rows import NewGeneration, ReportedEnd
from protocol.control_messages import GenerationReport
from protocol.coordinator_errors import LeaseError
from protocol.errors import BrigadeError, QuotaExceededError, StorageError
from protocol.ids import KeyId, ModelName, Revision, SessionId, WorkerId
from protocol.key_limits import UNLIMITED, KeyLimits, LimitsChange
from tests.coordinator.test_lease import side
from tests.support.postgres import PostgresServer

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
KEY, TAIL = KeyId("k1"), WorkerId('tail "x" of\n☃')
N_PROMPT, MAX_TOKENS, N_USED = 10, 20, 5
READ_FIRST = ["BEGIN;", "SELECT", "WITH", "COMMIT"]
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def new(session: str, key_id: KeyId = KEY, *, is_opening_told: bool = False) -> NewGeneration:
    return NewGeneration(
        session_id=SessionId(session),
        key_id=key_id,
        model=ModelName("m"),
        revision=Revision("r"),
        route=((WorkerId("head"), 0, 3), (TAIL, 3, 4)),
        n_prompt_tokens=N_PROMPT,
        max_tokens=MAX_TOKENS,
        at=NOW,
        is_opening_told=is_opening_told,
    )


def said_by_tail(session: str) -> ReportedEnd:
    said = GenerationReport(
        session_id=SessionId(session), n_prompt_tokens=N_PROMPT, n_completion_tokens=N_USED, outcome="stop"
    )
    return ReportedEnd(report=said, at=NOW, reported_by=TAIL)


async def add_key(repository: Repository, limits: KeyLimits, key_id: KeyId = KEY) -> None:
    await repository.add_api_key(key_id, "n", "client", "h", NOW, limits=limits)


async def rows_of_all(repository: Repository) -> list[list[dict[str, Any]]]:
    async with repository.transactions.reading() as session:
        return [
            [dict(row) for row in (await session.execute(select(table).order_by(*table.primary_key))).mappings()]
            for table in (QUOTAS, RESERVATIONS, GENERATIONS)
        ]


async def until_somebody_waits(observer: AsyncConnection) -> None:
    """For a lock; whoever asks sees one moment a transaction at most."""
    while not (await observer.exec_driver_sql(WAITING)).scalar():
        await observer.rollback()
        await asyncio.sleep(0.01)


def running_row(session: str) -> dict[str, Any]:
    """A reservation of the key for one that runs."""
    row = {"key_id": KEY, "session_id": session, "n_reserved": 30, "n_used": 0, "n_sessions": 1}
    return row | {"minute_mark": 0.0, "day_mark": 0.0, "is_open": True, "expires_at": NOW}


async def test_the_rows_are_those_that_are_written_otherwise(postgres_server: PostgresServer) -> None:
    """Several of several keys at once, some without limits, some that are refused."""
    quoted = KeyId("k'2\\")
    together = [
        [new("a", is_opening_told=True), new("b", quoted), new("c", KeyId("free")), new("d"), new("e"), new("f")],
        [replace(new("g"), n_prompt_tokens=1, max_tokens=1), new("i", KeyId("free"))],
        [replace(new("h"), n_prompt_tokens=1, max_tokens=1), new("j", quoted)],
    ]
    said: list[list[str]] = []
    kept, rates = [], []
    for is_native in (True, False):
        async with opened(postgres_server.new_database()) as engine:
            repository = Repository(engine)
            repository.transactions.fence.epoch = 0
            limits = KeyLimits(requests_per_min=4, tokens_per_day=95, max_concurrent=4)
            for key_id, its in ((KEY, limits), (quoted, KeyLimits(tokens_per_min=40)), (KeyId("free"), UNLIMITED)):
                await add_key(repository, its, key_id)
            refusals: list[BrigadeError | None] = []
            left: RatesLeft = {}
            for i, some in enumerate(together):
                now = NOW + timedelta(seconds=i)
                refusals += await recorded(repository, some, now, left, is_native=is_native)
            said.append([str(refusal) for refusal in refusals])
            rates.append({name: its for name, its in left.items() if its})
            kept.append(await rows_of_all(repository))
    assert said[0] == said[1]
    assert said[0].count("None") == 7
    assert kept[0] == kept[1]
    assert rates[0] == rates[1] != {}


async def recorded(
    repository: Repository, some: Sequence[NewGeneration], now: datetime, left: RatesLeft, *, is_native: bool
) -> list[BrigadeError | None]:
    if is_native:
        return await repository.record_generations(some, now.timestamp, left)
    return await repository.transactions.write_rows(lambda rows: begin_generations(rows, some, now.timestamp, left))


@asynccontextmanager
async def counted_repository(url: str, *key_ids: KeyId) -> AsyncIterator[tuple[Repository, list[str]]]:
    """Of a coordinator that holds the lease, with these keys; beside it the first words of its statements."""
    async with opened(url) as engine:
        repository = Repository(engine)
        repository.transactions.fence.epoch = 0
        for key_id in key_ids:
            await add_key(repository, KeyLimits(requests_per_min=100, tokens_per_day=100, max_concurrent=9), key_id)
        queries: list[str] = []

        def note(record: Any) -> None:
            if "typeinfo_tree" not in record.query and "jit" not in record.query:  # the driver asks for types so
                queries.append(record.query.split()[0])

        async with engine.connect() as one, engine.connect() as another:  # as many as are used at once
            for connection in (one, another):
                native: Any = (await connection.get_raw_connection()).driver_connection
                native.add_query_logger(note)
        with pytest.MonkeyPatch.context() as patch:
            # A machine that is busy for so long would have the connection asked whether it is still there.
            patch.setattr(rested_connections, "PING_AFTER_S", math.inf)
            yield repository, queries


async def test_a_route_takes_four_round_trips_and_one_while_its_key_is_as_it_was_left(
    postgres_server: PostgresServer,
) -> None:
    """Reports leave it otherwise, and say how."""
    other = KeyId("k2")
    async with counted_repository(postgres_server.new_database(), KEY, other) as (repository, queries):
        await repository.record_generation(new("a"))
        assert queries == READ_FIRST
        queries.clear()
        await repository.record_generation(new("b"))
        assert queries == ["WITH"]
        await repository.finish_generations([said_by_tail("a"), said_by_tail("b")])
        queries.clear()
        await repository.record_generation(new("c"))
        assert queries == ["WITH"]


async def test_places_that_reports_have_freed_are_known_to_be_free(postgres_server: PostgresServer) -> None:
    """Otherwise a key's places would be counted anew for each that it has."""
    async with counted_repository(postgres_server.new_database()) as (repository, queries):
        await add_key(repository, KeyLimits(max_concurrent=2))
        await repository.record_generations([new("a"), new("b")])
        for ended, begun in zip("abcdef", "cdefgh", strict=True):
            await repository.finish_generations([said_by_tail(ended)])
            queries.clear()
            await repository.record_generation(new(begun))
            assert queries == ["WITH"]
        with pytest.raises(QuotaExceededError):
            await repository.record_generation(new("i"))


async def test_who_comes_while_others_are_written_is_written_with_the_next(postgres_server: PostgresServer) -> None:
    url, line = postgres_server.new_database(), [new("b")]
    async with opened(url) as engine, opened(url) as others:
        repository = Repository(engine)
        await add_key(repository, KeyLimits(max_concurrent=9))
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks, others.begin() as other:
            await other.exec_driver_sql("SELECT 1 FROM quotas FOR UPDATE")
            tasks.create_task(repository.record_generations([new("a")]), name="before")
            async with others.connect() as observer:
                await until_somebody_waits(observer)
            together = tasks.create_task(repository.record_due(lambda: line), name="together")
            await asyncio.sleep(0)
            line.append(new("c"))
        assert together.result() == [None, None]
        assert await repository.record_due(list) == []
        _, reservations, _ = await rows_of_all(repository)
    assert [row["session_id"] for row in reservations] == ["a", "b", "c"]


async def test_what_others_have_changed_is_read_again_and_nothing_is_written_twice(
    postgres_server: PostgresServer,
) -> None:
    """Of two keys one is as it was left, and the other isn't."""
    other, url = KeyId("k2"), postgres_server.new_database()
    async with counted_repository(url, KEY, other) as (repository, queries), opened(url) as engine:
        await repository.record_generations([new("a"), new("b", other)])
        async with engine.begin() as connection:
            changed = "UPDATE quotas SET day_used = 80 WHERE key_id = 'k2'"
            await connection.exec_driver_sql(changed)
        queries.clear()
        refusals = await repository.record_generations([new("c"), new("d", other)])
        assert queries == ["WITH", *READ_FIRST]
        assert [type(refusal) for refusal in refusals] == [type(None), QuotaExceededError]
        quotas, reservations, generations = await rows_of_all(repository)
    assert [row["day_used"] for row in quotas] == [2 * (N_PROMPT + MAX_TOKENS), 80]
    assert [row["session_id"] for row in reservations] == ["a", "b", "c"]
    assert [row["session_id"] for row in generations] == ["a", "b", "c"]


async def test_limits_given_to_a_key_that_had_none_count_at_once(postgres_server: PostgresServer) -> None:
    async with counted_repository(postgres_server.new_database()) as (repository, _):
        await add_key(repository, UNLIMITED)
        await repository.record_generation(new("a"))
        await repository.quotas.change(KEY, LimitsChange(requests_per_min=1), NOW)
        await repository.record_generation(new("b"))
        with pytest.raises(QuotaExceededError):
            await repository.record_generation(new("c"))


async def test_who_has_lost_the_lease_records_none_and_is_in_nobodys_way(postgres_server: PostgresServer) -> None:
    url = postgres_server.new_database()
    async with side(url) as old, side(url) as next_one:
        assert await old.take("old")
        await add_key(old.repository, KeyLimits(max_concurrent=2))
        await old.repository.record_generation(new("before"))
        assert await next_one.take("next")
        with pytest.raises(LeaseError, match="another coordinator has taken"):
            await old.repository.record_generation(new("a"))
        assert old.lease.lost.is_set()
        async with asyncio.timeout(10):
            await next_one.repository.record_generation(new("b"))
        assert await next_one.repository.generation(SessionId("a")) is None


async def test_one_that_cannot_be_written_leaves_nothing_and_locks_nothing(postgres_server: PostgresServer) -> None:
    async with opened(postgres_server.new_database()) as engine:
        repository = Repository(engine)
        repository.transactions.fence.epoch = 0
        await add_key(repository, KeyLimits(tokens_per_min=1000, max_concurrent=9))
        await repository.record_generation(new("a"))
        before = await rows_of_all(repository)
        with pytest.raises(StorageError):
            await repository.record_generations([new("b"), new("a")])  # there is an "a" already
        with pytest.raises(StorageError, match="too long"):
            await repository.record_generation(new("c" * 65))  # and not the first 64 characters of it
        assert await rows_of_all(repository) == before
        async with asyncio.timeout(10):
            await repository.record_generation(new("d"))
        assert repository.problem == ""


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
async def test_what_was_committed_while_the_lock_was_waited_for_counts(
    isolation: str, postgres_server: PostgresServer
) -> None:
    """Fails if one statement locks the key and counts what runs: it counts as things were when it began.

    So it does in any number of statements where transactions see one moment, as a server may be set up to have it.
    """
    url = postgres_server.new_database()
    async with opened(url) as engine, engine.begin() as connection:
        database_name = (await connection.exec_driver_sql("SELECT current_database()")).scalar()
        setting = f"default_transaction_isolation = '{isolation}'"
        await connection.exec_driver_sql(f"ALTER DATABASE {database_name} SET {setting}")
    async with opened(url) as engine:
        repository = Repository(engine)
        await add_key(repository, KeyLimits(max_concurrent=1))
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            async with engine.begin() as other, engine.connect() as observer:
                await other.exec_driver_sql("SELECT 1 FROM quotas FOR UPDATE")
                waiting = tasks.create_task(repository.record_generations([new("a")]), name="waiting")
                await until_somebody_waits(observer)
                await other.execute(insert(RESERVATIONS), running_row("b"))
            (refusal,) = await waiting
        assert isinstance(refusal, QuotaExceededError)


async def test_what_a_machine_that_lost_its_power_has_locked_is_free_again(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the middle of a transaction and says nothing more, not even that it is gone."""
    url = postgres_server.new_database()
    monkeypatch.setattr(database, "LONGEST_SILENCE_S", 0.5)
    async with opened(url) as dead, opened(url) as alive:
        repository = Repository(alive)
        await add_key(repository, KeyLimits(max_concurrent=1))
        connection = await dead.connect()
        await connection.exec_driver_sql("SELECT 1 FROM quotas FOR UPDATE")
        async with asyncio.timeout(20):
            await repository.record_generation(new("a"))
        await connection.invalidate()
        await connection.close()


async def test_two_coordinators_at_once_never_grant_more_than_there_is(postgres_server: PostgresServer) -> None:
    url, n_each, most = postgres_server.new_database(), 20, 3
    limits = KeyLimits(max_concurrent=most, tokens_per_day=10**6)
    n_running = n_granted = 0

    async def one(repository: Repository, session: str) -> None:
        nonlocal n_running, n_granted
        try:
            await repository.record_generation(new(session))
        except QuotaExceededError:
            return
        n_running, n_granted = n_running + 1, n_granted + 1
        assert n_running <= most
        await asyncio.sleep(0)
        n_running -= 1
        assert await repository.finish_generations([said_by_tail(session)]) != [None]

    async with opened(url) as first, opened(url) as second:
        repositories = [Repository(first), Repository(second)]
        await add_key(repositories[0], limits)
        await asyncio.gather(*(one(r, f"{i}-{k}") for i, r in enumerate(repositories) for k in range(n_each)))
        (quota,), reservations, generations = await rows_of_all(repositories[0])
    assert n_granted >= most
    assert len(generations) == len(reservations) == n_granted
    assert quota["day_used"] == n_granted * (N_PROMPT + N_USED)
    assert not any(row["is_open"] for row in reservations)
