"""A database server that takes connections and answers nothing: what operators see of it, and how soon."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from coordinator.app import utc_now_s
from coordinator.cluster import Cluster
from coordinator.credentials import KEY_CACHE_S
from coordinator.policy.events import WorkerJoined
from protocol.cluster_rest import ClusterStatus
from protocol.errors import StorageError
from protocol.ids import KeyId, WorkerId
from tests.support.coordinators import eventually, http_session, key_of, running_coordinator
from tests.support.postgres import PostgresServer


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


async def refused_by_the_database(cluster: Cluster) -> None:
    with pytest.raises(StorageError, match="doesn't answer in time"):
        await cluster.handle(WorkerJoined(worker_id=WorkerId("w-paused")))
