"""A control socket that nobody speaks on, or that something breaks under."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import aiohttp
import msgspec
import pytest
from structlog.testing import capture_logs

from coordinator import control_socket
from coordinator.app import RunningCoordinator
from coordinator.control_socket import LARGE_BYTES
from coordinator.policy.events import TimePassed
from protocol.codec import encode_message
from protocol.control_messages import Assign, Dismiss, FilesHeld, GenerationReport
from protocol.ids import FileHash, SessionId
from protocol.tls import COORDINATOR_NAME
from tests.support.coordinators import http_session, running_coordinator
from tests.support.joining import WorkerKey, enrolled
from tests.support.scripted_worker import announcement, connected_worker, joined_worker
from tests.support.waiting import eventually


async def test_a_silent_socket_is_closed_at_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_socket, "ANNOUNCE_TIMEOUT_S", 0.05)
    async with running_coordinator(tmp_path) as coordinator:
        grant = await enrolled(coordinator, WorkerKey())
        async with (
            http_session(coordinator, grant.session_token) as http,
            http.session.ws_connect(f"{http.url}/v1/worker/control", server_hostname=COORDINATOR_NAME) as socket,
        ):
            frame = await socket.receive(timeout=10)
            assert frame.type is aiohttp.WSMsgType.BINARY
            assert b"deadline_exceeded" in frame.data


async def test_a_worker_that_goes_before_it_announces_leaves_nothing(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        key = WorkerKey()
        grant = await enrolled(coordinator, key)
        async with (
            http_session(coordinator, grant.session_token) as http,
            http.session.ws_connect(f"{http.url}/v1/worker/control", server_hostname=COORDINATOR_NAME) as socket,
        ):
            await socket.close()
        assert not coordinator.cluster.state.workers[key.worker_id].is_connected
        async with connected_worker(coordinator, key, grant) as worker:
            await worker.receive(Assign)


async def test_a_report_that_is_refused_keeps_the_socket(tmp_path: Path) -> None:
    report = GenerationReport(
        session_id=SessionId("unknown"), n_prompt_tokens=1, n_completion_tokens=1, outcome="stop"
    )
    async with running_coordinator(tmp_path) as coordinator, joined_worker(coordinator) as worker:
        await worker.receive(Assign)
        await worker.send(report)
        await worker.beat()
        await eventually(lambda: coordinator.cluster.state.workers[worker.worker_id].heartbeat)


async def test_a_database_that_is_gone_is_told_to_the_worker(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        key = WorkerKey()
        grant = await enrolled(coordinator, key)
        database = tmp_path / "state" / "brigade.db"
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("DROP TABLE assignments")
            connection.execute("DROP TABLE workers")
        async with connected_worker(coordinator, key, grant, announce=announcement()) as worker:
            assert (await worker.receive(Dismiss)).error.code == "storage"
            await worker.closed()


@asynccontextmanager
async def unponged(
    coordinator: RunningCoordinator, session_token: str
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A control socket whose pings and pongs the test itself sees and answers."""
    async with (
        http_session(coordinator, session_token) as http,
        http.session.ws_connect(
            f"{http.url}/v1/worker/control", server_hostname=COORDINATOR_NAME, autoping=False
        ) as socket,
    ):
        yield socket


async def test_pings_are_answered_and_reports_taken_while_the_database_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("database", "transactions"):
        monkeypatch.setattr(f"coordinator.{module}.BUSY_TIMEOUT_MS", 60_000)
    report = GenerationReport(
        session_id=SessionId("not one"), n_prompt_tokens=1, n_completion_tokens=1, outcome="stop"
    )
    async with running_coordinator(tmp_path) as coordinator:
        grant = await enrolled(coordinator, WorkerKey())
        database = tmp_path / "state" / "brigade.db"
        with closing(sqlite3.connect(database, isolation_level=None)) as other, capture_logs() as logs:
            other.execute("BEGIN IMMEDIATE")
            async with unponged(coordinator, grant.session_token) as socket:
                await socket.send_bytes(encode_message(announcement()))
                await socket.send_bytes(encode_message(report))
                await socket.ping()
                while (frame := await socket.receive(timeout=30)).type is aiohttp.WSMsgType.PING:
                    await socket.pong(frame.data)
                assert frame.type is aiohttp.WSMsgType.PONG
                assert "generation_report_refused" in [entry["event"] for entry in logs]
                assert "worker_connected" not in [entry["event"] for entry in logs], "that waits for the database"
                other.execute("ROLLBACK")
                assert (await socket.receive(timeout=30)).type is aiohttp.WSMsgType.BINARY


async def test_behind_a_large_message_nothing_is_read_until_the_cluster_has_taken_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each worker could have so many of them kept: 64 times 4 MiB, while a database hangs."""
    for module in ("database", "transactions"):
        monkeypatch.setattr(f"coordinator.{module}.BUSY_TIMEOUT_MS", 60_000)
    large = FilesHeld(files=tuple(FileHash(f"{number:064x}") for number in range(LARGE_BYTES // 64)))
    async with running_coordinator(tmp_path) as coordinator:
        grant = await enrolled(coordinator, WorkerKey())
        database = tmp_path / "state" / "brigade.db"
        with closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with unponged(coordinator, grant.session_token) as socket:
                for message in (announcement(), large):
                    await socket.send_bytes(encode_message(message))
                await socket.ping()
                with pytest.raises(TimeoutError):
                    await socket.receive(timeout=0.5)
                other.execute("ROLLBACK")
                while (await socket.receive(timeout=30)).type is not aiohttp.WSMsgType.PONG:
                    pass


async def test_the_end_of_an_older_socket_takes_nothing_from_the_newer_one(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, joined_worker(coordinator) as older:
        await older.receive(Assign)
        async with connected_worker(coordinator, older.key, older.grant) as newer:
            await newer.receive(Assign)
            assert (await older.receive(Dismiss)).error.code == "conflict"
            await older.closed()
            await coordinator.cluster.handle(TimePassed())
            await newer.beat()
            await eventually(lambda: coordinator.cluster.state.workers[newer.worker_id].heartbeat)
            worker = coordinator.cluster.state.workers[newer.worker_id]
            assert (worker.presence, worker.is_connected) == ("here", True)


async def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    device = msgspec.structs.replace(announcement().device, bandwidth_bytes_per_s=float("nan"))
    async with (
        running_coordinator(tmp_path) as coordinator,
        joined_worker(coordinator, announce=announcement(device=device)) as worker,
    ):
        assert (await worker.receive(Dismiss)).error.code == "invalid_request"
