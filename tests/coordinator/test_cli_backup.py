"""Backup and restore: of a coordinator that runs, on both databases, whole or refused."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import signal
import stat
import tarfile
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.types import TypeEngine

from coordinator.backup import CONTENTS, NEEDED_STATE_FILES, read_backup, write_backup
from coordinator.database import create_engine, migrate
from coordinator.table_base import Base, UtcDateTime
from coordinator.table_copy import LEFT_OUT, all_rows, fill
from protocol.control_messages import Assign
from protocol.errors import ConflictError
from protocol.exit_codes import EXIT_STORAGE, EXIT_USAGE
from protocol.rest import ModelList, RouteGrant, RouteRequest
from tests.coordinator.packing_support import write_model
from tests.coordinator.test_client_api import TINY, pinned_workers
from tests.support.coord_process import Coord, forked
from tests.support.coordinators import http_session, key_of, running_coordinator
from tests.support.joining import WorkerKey, enrolled
from tests.support.postgres import PostgresServer
from tests.support.scripted_worker import announcement, connected_worker
from tests.support.stored_model import add_model


def refused(coord: Coord, *arguments: str) -> tuple[int, str]:
    code, out, err = coord(*arguments)
    assert out == ""
    assert err.startswith("error: ")
    return code, err


async def with_history(state: Path, url: str | None) -> tuple[str, str]:
    """A coordinator that served a generation and stopped; its CA's fingerprint and its client key."""
    async with running_coordinator(state.parent, state=state, database_url=url) as coordinator:
        await add_model(coordinator)
        async with (
            http_session(coordinator, key_of(coordinator, "client")) as http,
            pinned_workers(coordinator, (0, 4)),
        ):
            ask = RouteRequest(model=TINY, n_prompt_tokens=3, max_tokens=5)
            (await http.ask("POST", "/v1/routes", ask)).read(RouteGrant)
        return coordinator.authority.ca_fingerprint, key_of(coordinator, "client")


@pytest.mark.parametrize("into", ["sqlite", "postgresql"])
async def test_what_was_backed_up_is_restored_into_either_database(
    tmp_path: Path, coord: Coord, database_url: str, into: str, request: pytest.FixtureRequest
) -> None:
    state, file, other = tmp_path / "state", tmp_path / "b.tar", tmp_path / "other"
    fingerprint, key = await with_history(state, database_url)
    names = ("--state", str(state), "--database-url", database_url)
    code, _, err = await in_thread(coord, "backup", str(file), *names)
    assert code == 0
    assert "keep it where nobody else can read it" in err
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for name in ("ca.key", "signing-keys.json", "client.key"):
        assert (state / name).read_text().strip() not in err

    options, url = [], None
    if into == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        url = server.new_database()
        options = ["--database-url", url]
    code, _, err = await in_thread(coord, "restore", str(file), "--state", str(other), *options)
    assert code == 0
    assert "tiny" in err
    restored_url = url or f"sqlite+aiosqlite:///{other / 'brigade.db'}"
    assert await all_rows(restored_url) == await all_rows(database_url)
    assert (other / "brigade.db").exists() == (into == "sqlite")
    async with running_coordinator(tmp_path, state=other, database_url=url) as coordinator:
        assert coordinator.authority.ca_fingerprint == fingerprint
        assert key_of(coordinator, "client") == key
        async with http_session(coordinator, key) as http:
            assert [m.name for m in (await http.ask("GET", "/v1/models")).read(ModelList).models] == ["tiny"]
        await add_model(coordinator, "another")  # new rows get new numbers


def test_what_is_acknowledged_after_a_backup_outlives_a_kill(tmp_path: Path, coord: Coord) -> None:
    state = tmp_path / "state"
    with forked(state) as process:
        assert coord("backup", str(tmp_path / "b.tar"), "--state", str(state))[0] == 0
        code, created, _ = coord("key", "create", "later", "--json", "--state", str(state))
        assert code == 0
        process.stop(signal.SIGKILL)
    with forked(state, is_first=False):
        _, listed, _ = coord("key", "list", "--json", "--state", str(state))
    assert json.loads(created)["key_id"] in listed


def test_a_restored_models_files_are_added_again_from_its_source(tmp_path: Path, coord: Coord) -> None:
    state, other, file = (tmp_path / name for name in ("state", "other", "b.tar"))
    added = ("model", "add", "tiny", str(write_model(tmp_path / "model")))
    with forked(state):
        assert coord(*added, "--replicas", "2", "--state", str(state))[0] == 0
        assert coord("backup", str(file), "--state", str(state))[0] == 0
    assert coord("restore", str(file), "--state", str(other))[0] == 0
    with forked(other, is_first=False) as process:
        assert "first start" not in process.said
        code, out, err = coord(*added, "--state", str(other))
        assert (code, out.split(":")[0]) == (0, "added tiny"), err
        model = json.loads(coord("model", "show", "tiny", "--json", "--state", str(other))[1])
        assert model["n_replicas"] == 2, "what it was asked for is in the backup"
        code, _, err = coord(*added, "--state", str(other))
        assert (code, "coord model remove tiny" in err) == (EXIT_USAGE, True)


VALUES: dict[type, object] = {
    str: "x",
    int: 1,
    float: 0.5,
    bool: True,
    bytes: b"\x00\xff",
    object: {"a": [None]},  # JSON
    date: date(2026, 2, 28),
    datetime: datetime(2026, 2, 28, 23, 59, tzinfo=UTC),
}
"""A value of each kind that a column can hold."""


def value_for(kind: TypeEngine[Any]) -> object:
    return VALUES[datetime if isinstance(kind, UtcDateTime) else kind.python_type]


async def test_a_row_of_every_table_comes_back_from_either_database(tmp_path: Path, database_url: str) -> None:
    """Not of those alone that a short life fills: a kind of column that isn't known would end the whole backup."""
    await asyncio.to_thread(migrate, database_url)
    engine = create_engine(make_url(database_url), is_pooled=False)
    async with engine.begin() as connection:
        for table in (table for table in Base.metadata.sorted_tables if table.name not in LEFT_OUT):
            row = {column.name: value_for(column.type) for column in table.columns}
            await connection.execute(table.insert(), row)
    await engine.dispose()
    schema, tables = await all_rows(database_url)
    assert all(tables.values())
    state = dict.fromkeys(NEEDED_STATE_FILES, "c")
    file, now = tmp_path / "b.tar", datetime.now(UTC)
    write_backup(file, state=state, tables=tables, schema=schema, program_version="1", now=now)
    restored_url = f"sqlite+aiosqlite:///{tmp_path / 'restored.db'}"
    await fill(restored_url, schema, read_backup(file).tables)
    assert await all_rows(restored_url) == (schema, tables)


async def in_thread(coord: Coord, *arguments: str) -> tuple[int, str, str]:
    """The command has an event loop of its own."""
    return await asyncio.to_thread(coord, *arguments)


async def test_a_backup_of_one_that_runs_and_an_older_database_is_no_danger(tmp_path: Path, coord: Coord) -> None:
    key, file = WorkerKey(), tmp_path / "b.tar"
    async with running_coordinator(tmp_path) as coordinator:
        grant = await enrolled(coordinator, key)
        code, _, _ = await in_thread(coord, "backup", str(file), "--state", str(tmp_path / "state"))
        assert code == 0
        await add_model(coordinator)
        async with connected_worker(coordinator, key, grant) as worker:
            assign = await worker.receive(Assign)
            while not assign.spans:
                assign = await worker.receive(Assign)
    shutil.move(tmp_path / "state", tmp_path / "lost")
    code, _, _ = await in_thread(coord, "restore", str(file), "--state", str(tmp_path / "state"))
    assert code == 0
    shutil.copytree(tmp_path / "lost" / "files", tmp_path / "state" / "files")
    async with running_coordinator(tmp_path) as coordinator:
        assert coordinator.cluster.state.workers[key.worker_id].assignment.epoch < assign.epoch
        later = announcement(epoch=assign.epoch + 5)
        async with connected_worker(coordinator, key, grant, announce=later) as worker:
            assert (await worker.receive(Assign)).spans == (), "its token is good, and the model isn't known"
            await add_model(coordinator)
            while not (again := await worker.receive(Assign)).spans:
                pass
            assert again.epoch > later.epoch, "no epoch comes twice"


def test_nothing_is_written_over(tmp_path: Path, coord: Coord) -> None:
    state = tmp_path / "state"
    code, err = refused(coord, "backup", str(tmp_path / "b.tar"), "--state", str(state))
    assert code == EXIT_USAGE
    assert "no coordinator's state folder" in err
    file = a_backup(tmp_path, coord)
    code, err = refused(coord, "backup", str(file), "--state", str(state))
    assert code == EXIT_USAGE
    assert "never written over" in err
    code, err = refused(coord, "restore", str(file), "--state", str(state))
    assert code == EXIT_USAGE
    assert "isn't empty" in err
    code, err = refused(coord, "backup", str(tmp_path / "no" / "b.tar"), "--state", str(state))
    assert code == EXIT_STORAGE


def a_backup(tmp_path: Path, coord: Coord) -> Path:
    async def start() -> None:
        async with running_coordinator(tmp_path):
            pass

    asyncio.run(start())
    file = tmp_path / "b.tar"
    assert coord("backup", str(file), "--state", str(tmp_path / "state"))[0] == 0
    return file


def test_a_database_with_data_is_not_written_over(
    tmp_path: Path, coord: Coord, postgres_server: PostgresServer
) -> None:
    url = postgres_server.new_database()
    file = a_backup(tmp_path, coord)
    for i, expected in enumerate((0, EXIT_USAGE)):
        code, _, err = coord("restore", str(file), "--state", str(tmp_path / f"r{i}"), "--database-url", url)
        assert code == expected, err
    assert "holds a coordinator's data already" in err
    assert not (tmp_path / "r1").exists()
    assert [path.name for path in tmp_path.glob(".r*")] == [], "nothing is left half done"


@pytest.mark.parametrize("damage", ["cut", "changed", "no archive", "missing", "newer", "absent"])
def test_a_backup_that_is_not_whole_is_refused(tmp_path: Path, coord: Coord, damage: str) -> None:
    file = a_backup(tmp_path, coord)
    data = file.read_bytes()
    match damage:
        case "cut":
            file.write_bytes(data[: len(data) // 2])
        case "changed":
            at = data.index(b"BEGIN CERTIFICATE")
            file.write_bytes(data[: at + 30] + bytes([data[at + 30] ^ 1]) + data[at + 31 :])
        case "no archive":
            file.write_bytes(b"nothing of the kind" * 100)
        case "missing":
            rewritten(file, leave_out="state/ca.key")
        case "newer":
            rewritten(file, replace=(b'"schema": "', b'"schema": "9'))
        case "absent":
            file.unlink()
    code, err = refused(coord, "restore", str(file), "--state", str(tmp_path / "r"))
    assert code == EXIT_STORAGE
    assert str(file) in err or "newer version" in err
    assert not (tmp_path / "r").exists()


def rewritten(file: Path, *, leave_out: str = "", replace: tuple[bytes, bytes] = (b"", b"")) -> None:
    """The archive with a part left out, or with other words in its contents."""
    with tarfile.open(file) as archive:
        parts = {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
    parts.pop(leave_out, None)
    if replace[0]:
        parts[CONTENTS] = parts[CONTENTS].replace(*replace)
    with tarfile.open(file, "w") as archive:
        for name, data in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def test_a_coordinator_without_its_database_is_not_backed_up(
    tmp_path: Path, coord: Coord, postgres_server: PostgresServer
) -> None:
    a_backup(tmp_path, coord)
    state, file = tmp_path / "state", tmp_path / "b2.tar"
    (state / "brigade.db").unlink()  # as when it is on a server that the command wasn't told of
    for options in ([], ["--database-url", postgres_server.new_database()]):
        code, err = refused(coord, "backup", str(file), "--state", str(state), *options)
        assert code == EXIT_USAGE
        assert "--database-url" in err
        assert not file.exists()
        assert not (state / "brigade.db").exists()


async def test_restoring_takes_nothing_from_a_database_with_data_of_whatever_schema(database_url: str) -> None:
    await asyncio.to_thread(migrate, database_url, "0001")
    await execute(database_url, "INSERT INTO settings (key, value) VALUES ('coordinator_id', 'c')")
    before = await all_rows(database_url)
    for revision in ("base", "0001", "0002", "0003"):
        with pytest.raises(ConflictError, match="data already"):
            await fill(database_url, revision, {})
        assert await all_rows(database_url) == before


async def execute(url: str, statement: str) -> None:
    engine = create_engine(make_url(url), is_pooled=False)
    async with engine.begin() as connection:
        await connection.execute(text(statement))
    await engine.dispose()
