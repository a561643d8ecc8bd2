"""A database as of a coordinator that has served for a while.

One that was just made has some rows, and what PostgreSQL then thinks best for a statement (to look through all of
them) it goes on doing as they become thousands, until its autovacuum has counted them some minutes later.
"""

from __future__ import annotations

from sqlalchemy import Table, make_url, text

from coordinator.database import create_engine
from coordinator.quota_records import GENERATIONS, RESERVATIONS

N_BEFORE = 20_000
"""Generations: 100 s at 200 a second."""


async def serve_before(url: str, n: int = N_BEFORE) -> None:
    """Have `n` more generations in it, as the first one that is over, and the database count its rows."""
    engine = create_engine(make_url(url), is_pooled=False)
    try:
        async with engine.begin() as connection:
            for table, of_one, is_over in (
                (GENERATIONS, "session_id", "outcome IS NOT NULL"),
                (RESERVATIONS, "id", "NOT is_open"),
            ):
                await connection.execute(text(_copying(table, of_one, is_over)), {"n": n})
            await connection.execute(text("ANALYZE"))
    finally:
        await engine.dispose()


def _copying(table: Table, of_one: str, is_over: str) -> str:
    copied = ", ".join(f'"{column.name}"' for column in table.c if column.name not in (of_one, "session_id"))
    return (  # names of ours
        "WITH RECURSIVE numbers (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < :n)"  # noqa: S608
        f" INSERT INTO {table.name} (session_id, {copied}) SELECT 'before-' || numbers.i, {copied}"
        f" FROM numbers, (SELECT * FROM {table.name} WHERE {is_over} LIMIT 1) AS one"
    )
