"""What was acknowledged stays, through `kill -9` and a stop; of two coordinators on one database one serves."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import aiohttp
import pytest

from coordinator.file_store import FileStore
from coordinator.state_folder import StateFolder
from protocol.cluster_rest import AddModelRequest
from protocol.exit_codes import EXIT_STORAGE
from protocol.ids import ModelName
from protocol.key_rest import CreatedKey, CreateKeyRequest, KeyList
from protocol.rest import ModelList
from tests.support.coord_process import (
    ROOT,
    START_DEADLINE_S,
    STOP_DEADLINE_S,
    Served,
    environ,
    forked,
    serve_command,
)
from tests.support.coordinators import Http, ReachedCoordinator, http_session, key_of
from tests.support.postgres import PostgresServer
from tests.support.stored_model import stored_model
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(180)  # programs that start several times, and wait for their disk

N_KILLS = 3


def reached(process: Served) -> ReachedCoordinator:
    return ReachedCoordinator(
        ca_pem=(process.state / "ca.pem").read_text(),
        port=int(process.url.rpartition(":")[2]),
        state_folder=StateFolder(process.state),
    )


class Acknowledged:
    """What the coordinator said is done, and what it was asked last without an answer."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.revoked: set[str] = set()
        self.models: set[str] = set()
        self.removed: set[str] = set()
        self.asked: set[str] = set()

    async def go_on(self, http: Http, store: FileStore, round_name: str) -> None:
        """Ask for one thing after the other until the coordinator is gone."""
        try:
            for i in range(10_000):
                await self._one(http, store, f"{round_name}-{i}")
        except (aiohttp.ClientError, OSError):
            return

    async def _one(self, http: Http, store: FileStore, name: str) -> None:
        made = await http.ask("POST", "/admin/v1/keys", CreateKeyRequest(name=name))
        assert made.status == 201
        key_id = made.read(CreatedKey).key_id
        self.keys.add(key_id)
        if len(self.keys) % 3 == 0:
            self.asked.add(key_id)
            assert (await http.ask("DELETE", f"/admin/v1/keys/{key_id}")).status == 200
            self.revoked.add(key_id)
        model = await asyncio.to_thread(stored_model, store, n_blocks=1)
        request = AddModelRequest(name=ModelName(name), revision=model.revision)
        assert (await http.ask("POST", "/admin/v1/models", request)).status == 201
        self.models.add(name)
        if len(self.models) % 3 == 0:
            self.asked.add(name)
            assert (await http.ask("DELETE", f"/admin/v1/models/{name}")).status == 200
            self.removed.add(name)

    async def check(self, http: Http) -> None:
        """All of it is there."""
        keys = {key.key_id: key for key in (await http.ask("GET", "/admin/v1/keys")).read(KeyList).keys}
        assert self.keys <= keys.keys()
        revoked = {key_id for key_id, key in keys.items() if key.revoked_at is not None}
        assert self.revoked <= revoked <= self.revoked | self.asked
        models = {model.name for model in (await http.ask("GET", "/v1/models")).read(ModelList).models}
        assert self.models - self.removed - self.asked <= models
        assert models.isdisjoint(self.removed)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_kill_at_any_moment_loses_nothing_acknowledged(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    options = []
    if kind == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        options = ["--database-url", server.new_database()]
    state, done = tmp_path / "state", Acknowledged()
    for i in range(N_KILLS):
        with forked(state, *options, is_first=i == 0) as process:
            coordinator = reached(process)
            async with http_session(coordinator, key_of(coordinator, "admin")) as http:
                await done.check(http)
                n_before = len(done.keys)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(done.go_on(http, FileStore(state / "files"), f"r{i}"), name="requests")
                    enough = n_before + 5 + 3 * i
                    await eventually(lambda n=enough: len(done.keys) > n, deadline_s=40.0)  # type: ignore[misc]
                    process.stop(signal.SIGKILL)
    with forked(state, *options, is_first=False) as process:
        coordinator = reached(process)
        async with http_session(coordinator, key_of(coordinator, "admin")) as http:
            await done.check(http)
        assert process.stop() == 0
    log = (tmp_path / "log").read_text()
    assert log.count("lease_taken") == N_KILLS + 1
    assert "lease_watched" not in log, "its own lease is no hindrance"
    assert len(done.keys) > 15
    assert done.revoked
    assert done.removed


async def test_a_request_under_way_is_finished_when_it_is_told_to_stop(tmp_path: Path) -> None:
    state, sent = tmp_path / "state", asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b'{"name":"late"}'
        sent.set()

    with forked(state) as process:
        coordinator = reached(process)
        async with (
            http_session(coordinator, key_of(coordinator, "admin")) as http,
            http_session(coordinator) as stranger,
        ):
            with closing(sqlite3.connect(state / "brigade.db", isolation_level=None, timeout=10)) as other:
                other.execute("BEGIN IMMEDIATE")
                async with asyncio.TaskGroup() as tasks:
                    late = tasks.create_task(http.ask("POST", "/admin/v1/keys", body()), name="late")
                    await sent.wait()
                    assert (await stranger.ask("GET", "/v1/hello")).status == 200
                    process.process.send_signal(signal.SIGTERM)
                    await eventually(lambda: not process.is_listening())
                    other.execute("ROLLBACK")
            assert late.result().status == 201
        assert process.process.wait(STOP_DEADLINE_S) == 0
    with forked(state, is_first=False) as process:
        coordinator = reached(process)
        async with http_session(coordinator, key_of(coordinator, "admin")) as http:
            keys = (await http.ask("GET", "/admin/v1/keys")).read(KeyList).keys
        assert "late" in {key.name for key in keys}


# ------------------------------------------------------------------ two on one database


def test_a_copy_of_the_state_folder_is_refused_and_can_stand_by(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    url = postgres_server.new_database()
    with forked(tmp_path / "one", "--database-url", url) as first:
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        done = subprocess.run(
            serve_command(tmp_path / "two", "--listen", "127.0.0.1:0", "--database-url", url),
            cwd=ROOT,
            env=environ(),
            capture_output=True,
            text=True,
            check=False,
            timeout=START_DEADLINE_S,
        )
        assert done.returncode == EXIT_STORAGE, done.stderr
        assert "another coordinator serves this database" in done.stderr
        assert first.url in done.stderr
        assert "--take-over" in done.stderr
        assert "Traceback" not in done.stderr
        (tmp_path / "two" / "url").unlink()
        with _standing_by(tmp_path / "two", url) as second:
            assert first.stop() == 0
            assert second.stdout is not None
            assert "Brigade coordinator at" in second.stdout.readline()
            second.send_signal(signal.SIGTERM)
            assert second.wait(STOP_DEADLINE_S) == 0


def test_one_that_stands_by_stops_when_told(tmp_path: Path, postgres_server: PostgresServer) -> None:
    """Nobody knows how long it would stand by otherwise, and a service manager kills it after 90 s."""
    url = postgres_server.new_database()
    with forked(tmp_path / "one", "--database-url", url):
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        with _standing_by(tmp_path / "two", url) as second:
            second.send_signal(signal.SIGTERM)
            assert second.wait(STOP_DEADLINE_S) == 0
            assert second.stderr is not None
            assert "Traceback" not in second.stderr.read()


def test_one_that_was_replaced_stops_by_itself(tmp_path: Path) -> None:
    with forked(tmp_path / "state") as first:
        with closing(sqlite3.connect(tmp_path / "state" / "brigade.db", timeout=10)) as connection, connection:
            connection.execute("UPDATE coordinator_lease SET epoch = epoch + 1, holder = 'another'")
        assert first.process.wait(timeout=STOP_DEADLINE_S) == EXIT_STORAGE
    log = (tmp_path / "log").read_text()
    assert "another coordinator has taken this database over" in log
    assert "Traceback" not in log


@contextmanager
def _standing_by(state: Path, url: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        serve_command(state, "--listen", "127.0.0.1:0", "--database-url", url, "--take-over"),
        cwd=ROOT,
        env=environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "lease_watched" in line:
                break
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=STOP_DEADLINE_S)
