"""A database server that takes connections and answers nothing: what operators see of it, and how soon."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import make_url
from structlog.testing import capture_logs

from coordinator.app import utc_now_s
from coordinator.cluster import Cluster
from coordinator.credentials import KEY_CACHE_S
from coordinator.database import MIGRATION_LOCK
from coordinator.policy.events import WorkerJoined
from protocol.cluster_rest import ClusterStatus
from protocol.errors import StorageError
from protocol.ids import KeyId, WorkerId
from tests.support.coordinators import http_session, key_of, running_coordinator
from tests.support.postgres import PostgresServer
from tests.support.waiting import eventually, eventually_answered


async def test_the_status_says_within_seconds_that_the_database_does_not_answer(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    shift_s = 0.0
    async with (
        running_coordinator(
            tmp_path, clock=lambda: utc_now_s() + shift_s, database_url=postgres_server.new_database()
        ) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as http,
    ):
        assert (await http.ask("GET", "/admin/v1/status")).read(ClusterStatus).database_problem == ""
        with postgres_server.paused():
            shift_s = 2 * KEY_CACHE_S  # the operator's key has to be looked up again
            began_s = time.monotonic()
            status = (await http.ask("GET", "/admin/v1/status")).read(ClusterStatus)
            took_s = time.monotonic() - began_s
        assert "doesn't answer in time; check --database-url, and that the server runs" in status.database_problem
        assert took_s < 10.0, "with a deadline for each question that a status can do without"
        assert (await http.ask("GET", "/admin/v1/status")).status == 200


async def test_a_coordinator_stops_within_seconds_and_says_what_it_waits_for(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    url = postgres_server.new_database()
    async with AsyncExitStack() as stack:
        coordinator = await stack.enter_async_context(running_coordinator(tmp_path, database_url=url))
        await asyncio.gather(*(coordinator.repository.api_key(KeyId("none")) for _ in range(5)))  # connections
        with postgres_server.paused(), capture_logs() as logs:
            async with asyncio.TaskGroup() as tasks:
                joining = tasks.create_task(refused_by_the_database(coordinator.cluster), name="joining")
                await eventually(lambda: coordinator.repository.transactions.stop_limit.n_running)
                began_s = time.monotonic()
                await stack.aclose()
                took_s = time.monotonic() - began_s
                await joining
    events = [entry["event"] for entry in logs]
    assert events.count("stop_waits_for_database") == events.count("stop_gave_database_up") == 1, events
    assert {"lease_not_released", "database_connections_cut_off"} <= set(events)
    assert took_s < 20.0, "a statement has 30 s, and whoever closes a connection waits for ever"
    async with running_coordinator(tmp_path, database_url=url) as again:
        assert not again.cluster.state.workers, "what was given up was not written"


LOCKS = {
    "connection": "SELECT 1",
    "migration": f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})",
    "lease": "LOCK TABLE coordinator_lease",
    "state": "LOCK TABLE workers",
}
"""What a start stands still at, where somebody else has it."""


@asynccontextmanager
async def hanging_at(stage: str, url: str, server: PostgresServer) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Have a start stand still there; then, when what is yielded is called, the server with it."""
    async with AsyncExitStack() as stack:
        holder, watcher = [await stack.enter_async_context(connected_to(url)) for _ in range(2)]
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute(LOCKS[stage])

        async def hang() -> None:
            if stage != "connection":
                await eventually_answered(
                    lambda: watcher.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
                )
                stack.enter_context(server.paused())

        if stage == "connection":
            stack.enter_context(server.paused())
        yield hang
        stack.callback(holder.terminate)


@asynccontextmanager
async def connected_to(url: str) -> AsyncIterator[asyncpg.Connection]:
    parsed = make_url(url)
    connection = await asyncpg.connect(host=parsed.query["host"], user=parsed.username, database=parsed.database)
    try:
        yield connection
    finally:
        connection.terminate()


@pytest.mark.parametrize("stage", list(LOCKS))
async def test_a_start_that_is_given_up_while_the_database_hangs_ends_within_seconds(
    tmp_path: Path, postgres_server: PostgresServer, stage: str
) -> None:
    url = postgres_server.new_database()
    async with running_coordinator(tmp_path, database_url=url):
        pass  # the tables are made

    async def start() -> None:
        async with running_coordinator(tmp_path, database_url=url):
            pytest.fail("it has started")

    async with hanging_at(stage, url, postgres_server) as hang, asyncio.TaskGroup() as tasks:
        with capture_logs() as logs:
            starting = tasks.create_task(start(), name="start")
            await hang()
            if stage in ("connection", "migration"):
                await eventually(lambda: "start_waits" in [entry["event"] for entry in logs])
            began_s = time.monotonic()
            starting.cancel()
            await asyncio.wait([starting])
            took_s = time.monotonic() - began_s
    assert took_s < 10.0, "the driver says goodbye for 2 s, and a statement has 30 s"
    async with running_coordinator(tmp_path, database_url=url) as again:
        assert again.is_first_start is False


async def refused_by_the_database(cluster: Cluster) -> None:
    with pytest.raises(StorageError, match="doesn't answer in time"):
        await cluster.handle(WorkerJoined(worker_id=WorkerId("w-paused")))
