"""A database that is locked, moved away or stopped: what is refused until it is back, and what goes on."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from protocol.cluster_rest import ClusterStatus
from protocol.control_messages import GenerationReport, Heartbeat
from protocol.key_rest import CreateKeyRequest
from protocol.rest import ErrorAnswer, RouteGrant, RouteRequest
from tests.coordinator.test_client_api import TINY, pinned_workers
from tests.support.coordinators import Http, http_session, key_of, running_coordinator
from tests.support.postgres import PostgresServer, running_postgres
from tests.support.stored_model import add_model
from tests.support.waiting import eventually, eventually_answered


async def refused_for_storage(http: Http, path: str, body: Any) -> str:
    answer = await http.ask("POST", path, body)
    assert answer.status == (503 if path == "/v1/routes" else 507), answer.body
    assert int(answer.headers["Retry-After"]) >= 1
    return answer.read(ErrorAnswer).error.message


async def test_a_database_locked_by_another_program(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        async with (
            http_session(coordinator, key_of(coordinator, "admin")) as http,
            pinned_workers(coordinator, (0, 4)) as (worker,),
        ):
            ask = RouteRequest(model=TINY, n_prompt_tokens=3, max_tokens=5)
            grant = (await http.ask("POST", "/v1/routes", ask)).read(RouteGrant)
            with closing(sqlite3.connect(tmp_path / "state" / "brigade.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                async with asyncio.TaskGroup() as tasks:
                    routing = tasks.create_task(refused_for_storage(http, "/v1/routes", ask), name="route")
                    creating = tasks.create_task(
                        refused_for_storage(http, "/admin/v1/keys", CreateKeyRequest(name="x")), name="key"
                    )
                    await worker.send(
                        GenerationReport(
                            session_id=grant.session_id, n_prompt_tokens=3, n_completion_tokens=5, outcome="stop"
                        )
                    )
                    await _beats_are_heard(coordinator, worker)
                assert "locked" in routing.result()
                assert "locked" in creating.result()
                await _beats_are_heard(coordinator, worker)
                status = (await http.ask("GET", "/admin/v1/status")).read(ClusterStatus)
                assert "locked" in status.database_problem
                assert status.workers[0].state == "ready"
                other.execute("ROLLBACK")
            await _answers_again(http, ask)
            assert not (await http.ask("GET", "/admin/v1/status")).read(ClusterStatus).database_problem

            async def is_kept() -> bool:
                stored = await coordinator.repository.generation(grant.session_id)
                return stored is not None and stored.n_completion_tokens == 5

            await eventually_answered(is_kept)  # what was reported meanwhile


async def test_a_database_file_that_is_moved_and_put_back(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        path, away = tmp_path / "state" / "brigade.db", tmp_path / "away.db"
        async with (
            http_session(coordinator, key_of(coordinator, "admin")) as http,
            pinned_workers(coordinator, (0, 4)) as (worker,),
        ):
            ask = RouteRequest(model=TINY, n_prompt_tokens=3, max_tokens=5)
            assert (await http.ask("POST", "/v1/routes", ask)).status == 200
            path.rename(away)
            assert "was moved" in await refused_for_storage(http, "/v1/routes", ask)
            assert "was moved" in await refused_for_storage(http, "/admin/v1/keys", CreateKeyRequest(name="x"))
            assert not path.exists(), "no empty one is put in its place"
            await _beats_are_heard(coordinator, worker)
            status = (await http.ask("GET", "/admin/v1/status")).read(ClusterStatus)
            assert "was moved" in status.database_problem
            away.rename(path)
            await _answers_again(http, ask)


async def test_a_postgresql_that_stops_and_comes_back(tmp_path: Path, postgres_server: PostgresServer) -> None:
    with running_postgres(postgres_server.programs) as server:
        url = server.new_database()
        async with running_coordinator(tmp_path, database_url=url) as coordinator:
            await add_model(coordinator)
            async with (
                http_session(coordinator, key_of(coordinator, "admin")) as http,
                pinned_workers(coordinator, (0, 4)) as (worker,),
            ):
                ask = RouteRequest(model=TINY, n_prompt_tokens=3, max_tokens=5)
                assert (await http.ask("POST", "/v1/routes", ask)).status == 200
                server.stop()
                assert "PostgreSQL" in await refused_for_storage(http, "/v1/routes", ask)
                await _beats_are_heard(coordinator, worker)
                status = (await http.ask("GET", "/admin/v1/status")).read(ClusterStatus)
                assert "PostgreSQL" in status.database_problem
                await asyncio.to_thread(server.start)
                await _answers_again(http, ask)


async def _beats_are_heard(coordinator: Any, worker: Any) -> None:
    for n in range(1, 4):
        await worker.send(
            Heartbeat(
                n_sessions=n,
                n_queued=0,
                free_kv_bytes=0,
                decode_s_per_block=0.0,
                prefill_s_per_token_block=0.0,
            )
        )

        def is_heard(n: int = n) -> bool:
            beat = coordinator.cluster.state.workers[worker.worker_id].heartbeat
            return beat is not None and beat.n_sessions == n

        await eventually(is_heard)


async def _answers_again(http: Http, ask: RouteRequest) -> None:
    async def is_answered() -> bool:
        return (await http.ask("POST", "/v1/routes", ask)).status == 200

    await eventually_answered(is_answered)
