"""A database that is locked, then gone, then back: requests are answered, and running generations don't notice."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path

import asyncpg
import pytest

from benchmarks.streams import WatchedStream
from protocol.ids import ModelName
from protocol.rest import ErrorAnswer, RouteRequest
from tests.support.coordinators import Http, http_session, key_of
from tests.support.postgres import PostgresServer, running_postgres
from tests.support.waiting import eventually_answered
from tests.support.whole_cluster import packed_tiny, whole_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PROMPT = [5, 9, 30, 4, 77, 12]
N_TOKENS = 3000
LONG = {"max_position_embeddings": 4096, "eos_token_id": None}
N_REFUSALS = 3
"""One after the other, each as long as the database's own patience."""
ASK = RouteRequest(model=ModelName("tiny"), n_prompt_tokens=3, max_tokens=5)


@asynccontextmanager
async def locked_sqlite(path: Path) -> AsyncIterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@asynccontextmanager
async def locked_postgres(url: str) -> AsyncIterator[None]:
    other = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        async with other.transaction():
            await other.execute("LOCK TABLE generations, coordinator_lease IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await other.close()


async def is_refused(http: Http) -> None:
    answer = await http.ask("POST", "/v1/routes", ASK)
    assert (answer.status, answer.read(ErrorAnswer).error.code) == (503, "database_away")
    assert int(answer.headers["Retry-After"]) >= 1


async def answers_again(http: Http) -> None:
    async def is_answered() -> bool:
        return (await http.ask("POST", "/v1/routes", ASK)).status == 200

    await eventually_answered(is_answered)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_database_that_is_locked_then_gone_then_back_disturbs_no_generation(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.database.BUSY_TIMEOUT_MS", 500)
    monkeypatch.setattr("coordinator.database.QUERY_TIMEOUT_S", 0.5)
    packed, _ = await asyncio.to_thread(packed_tiny, tmp_path, "llama", **LONG)
    file, away = tmp_path / "state" / "brigade.db", tmp_path / "away.db"
    with ExitStack() as stack:
        if kind == "postgresql":
            programs = request.getfixturevalue("postgres_server").programs
            server: PostgresServer = stack.enter_context(running_postgres(programs))
            settings = {"database_url": server.new_database()}
        else:
            settings = {}
        async with whole_cluster(tmp_path, **settings) as cluster:
            await cluster.add_model("tiny", packed)
            await cluster.join("head", "0:2", files=packed)
            await cluster.join("tail", "2:4", files=packed)
            await cluster.until_ready()
            locked = locked_postgres(settings["database_url"]) if settings else locked_sqlite(file)
            async with (
                cluster.client() as client,
                http_session(cluster.coordinator, key_of(cluster.coordinator, "client")) as http,
                asyncio.TaskGroup() as tasks,
            ):
                asked = client.stream("tiny", PROMPT, max_tokens=N_TOKENS, temperature=0.0, speculate=False)
                stream = WatchedStream(asked, tasks)
                await stream.reached(4)
                async with locked:
                    for _ in range(N_REFUSALS):
                        await is_refused(http)
                await answers_again(http)
                if settings:
                    server.stop()
                else:
                    file.rename(away)
                for _ in range(N_REFUSALS):
                    await is_refused(http)
                n_tokens = len(stream.token_ids)
                await stream.reached(min(n_tokens + 8, N_TOKENS))
                if settings:
                    await asyncio.to_thread(server.start)
                else:
                    away.rename(file)
                await answers_again(http)
                assert not stream.is_over, "it has to outlast all that"
                await stream.finished()
            assert stream.result.failovers == 0
            assert stream.result.completion_tokens == N_TOKENS
            states = {w.presence for w in cluster.coordinator.cluster.state.workers.values()}
            assert states == {"here"}
            again = await cluster.generate("tiny", PROMPT, max_tokens=64)
            assert tuple(stream.token_ids[:64]) == again.token_ids
