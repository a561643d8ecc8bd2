"""What people are told when a PostgreSQL server refuses: its words, and what to do about just that."""

from __future__ import annotations

import asyncpg
import pytest
from sqlalchemy import make_url, text

from coordinator.database import migrated, opened
from coordinator.database_words import advice
from coordinator.transactions import Transactions
from protocol.errors import StorageError
from tests.support.postgres import PostgresServer

REFUSALS = {
    "ALTER DATABASE {database} SET default_transaction_read_only = on": "name the one that takes them",
    "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM brigade_user": "give this user its rights",
    "ALTER ROLE brigade_user CONNECTION LIMIT 0": "raise max_connections, or the limit of this user",
    "ALTER ROLE brigade_user NOLOGIN": "let this user in",
}


@pytest.fixture
def user_url(postgres_server: PostgresServer) -> str:
    """A database of a user who may do as little as is needed."""
    url = make_url(postgres_server.new_database())
    statements = ["DROP ROLE IF EXISTS brigade_user", "CREATE ROLE brigade_user LOGIN"]
    postgres_server.run_sql(*statements, f"ALTER DATABASE {url.database} OWNER TO brigade_user")
    return url.set(username="brigade_user").render_as_string(hide_password=False)


@pytest.mark.parametrize("statement", list(REFUSALS))
async def test_what_the_server_refuses_comes_with_what_to_do(
    postgres_server: PostgresServer, user_url: str, statement: str
) -> None:
    await migrated(user_url)
    url = make_url(user_url)
    database = url.database or ""
    in_database = url.set(username="postgres").render_as_string(hide_password=False)
    try:
        await run_in(in_database, statement.format(database=database))
        with pytest.raises(StorageError) as caught:
            async with opened(user_url) as engine, Transactions(engine).writing() as session:
                await session.execute(text("UPDATE workers SET status = ''"))
    finally:
        postgres_server.drop_database(in_database)
        postgres_server.run_sql("DROP ROLE brigade_user")
    assert REFUSALS[statement] in caught.value.message
    assert "\n" not in caught.value.message


async def test_a_database_that_is_not_there(postgres_server: PostgresServer) -> None:
    url = make_url(postgres_server.new_database()).set(database="brigade_nowhere")
    with pytest.raises(StorageError, match=r'"brigade_nowhere" does not exist; create it, or name another'):
        await migrated(url.render_as_string(hide_password=False))


def test_a_start_is_not_tried_again_by_itself() -> None:
    """Only a coordinator that runs goes on trying."""
    url = make_url("postgresql+asyncpg://someone@somewhere/brigade")
    words = advice(url, asyncpg.CannotConnectNowError("the database system is starting up"), busy_timeout_s=1.0)
    assert (
        words == "; the server starts or stops: try again once it is up; a coordinator that runs does so by itself"
    )


async def run_in(url: str, statement: str) -> None:
    async with opened(url) as engine, engine.begin() as connection:
        await connection.execute(text(statement))
