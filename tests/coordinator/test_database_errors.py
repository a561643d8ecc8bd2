"""What a database that goes away has its driver raise, at whatever moment it goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from coordinator.database import blocking_engine, opened
from coordinator.transactions import Transactions
from protocol.errors import StorageError
from protocol.running_beside import running_beside
from tests.support.postgres import PostgresServer

SOCKET_NAME = ".s.PGSQL.5432"


@dataclass(slots=True)
class Relay:
    """What the server sends is handed on at once; that it closed a connection, when `may_close` is set."""

    server: Path
    has_closed: asyncio.Event = field(default_factory=asyncio.Event)
    may_close: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_unix_connection(str(self.server / SOCKET_NAME))
        with closing(writer), closing(to_server):
            async with running_beside(asked=handed_on(reader, to_server)):
                await handed_on(from_server, writer)
                self.has_closed.set()
                await self.may_close.wait()


async def handed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(2**16):
        writer.write(data)


@asynccontextmanager
async def relayed(server: Path, folder: Path) -> AsyncIterator[Relay]:
    """PostgreSQL's socket, in `folder` too."""
    relay = Relay(server)
    relay.may_close.set()
    async with await asyncio.start_unix_server(relay.serve, folder / SOCKET_NAME):
        yield relay


@pytest.mark.timeout(60)
async def test_a_connection_whose_end_is_still_to_come_is_a_database_that_is_away(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """The server's last words have come: the driver refuses to go on, by an error of a kind of its own."""
    url, folder = postgres_server.new_database(), postgres_server.socket_folder
    async with opened(url):
        pass  # the schema is there

    async with (
        relayed(folder, tmp_path) as relay,
        opened(url.replace(str(folder), str(tmp_path))) as engine,
    ):
        transactions = Transactions(engine)

        async def work(native: asyncpg.Connection) -> None:
            server_process = await native.fetchval("SELECT pg_backend_pid()")
            relay.has_closed.clear()
            relay.may_close.clear()
            postgres_server.run_sql(f"SELECT pg_terminate_backend({server_process})")
            await relay.has_closed.wait()
            for _ in range(3):  # what was handed on is read
                await asyncio.sleep(0)
            try:
                await native.execute("SELECT $1::int", 1)
            finally:
                relay.may_close.set()

        with pytest.raises(StorageError, match="can't be used"):
            await transactions.write_natively("SELECT 1", work)
        assert transactions.problem
        assert await transactions.write_natively("SELECT 1", lambda native: native.fetchval("SELECT 1")) == 1
        assert not transactions.problem


async def fail_with(value: str, engine: AsyncEngine, *, blocks: bool) -> None:
    statement, values = text("SELECT nothing FROM nowhere WHERE a = :a"), {"a": value}
    if blocks:
        with blocking_engine(engine).connect() as connection:
            connection.execute(statement, values)
    else:
        async with engine.connect() as connection:
            await connection.execute(statement, values)


@pytest.mark.parametrize("blocks", [False, True])
async def test_what_a_statement_was_given_is_in_no_error(tmp_path: Path, blocks: bool) -> None:
    """Errors come to logs, whoever logs them: a key's name or a secret's hash must not."""
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'some.sqlite'}") as engine:
        with pytest.raises(SQLAlchemyError) as refused:
            await fail_with("canary", engine, blocks=blocks)
    assert "nowhere" in str(refused.value)
    assert "canary" not in str(refused.value)
