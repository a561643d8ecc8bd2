"""Values on their way to SQLite and back, without SQLAlchemy's connection: as it would send and give them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from coordinator.database import opened
from coordinator.quota_records import GENERATIONS, RESERVATIONS
from coordinator.repository import Repository
from coordinator.sqlite_rows import bound, inserting, rows_by, sent, updating
from coordinator.stored_rows import stored_generation
from protocol.key_limits import KeyLimits
from tests.coordinator.test_postgres_routes import NOW, add_key, new


async def test_rows_are_those_that_others_read(tmp_path: Path) -> None:
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}") as engine:
        repository = Repository(engine)
        await add_key(repository, KeyLimits(max_concurrent=9))
        await repository.record_generations([new("a"), new("b")])
        rows = await repository.transactions.write_plainly(
            lambda plain: list(rows_by(plain, GENERATIONS, "session_id", ["a", "b", "c"]))
        )
        both = [stored_generation(row) for row in rows]
        assert both == [await repository.generation(one.session_id) for one in both]
        assert [one.started_at for one in both] == [NOW, NOW]
        none = await repository.transactions.write_plainly(
            lambda plain: list(rows_by(plain, GENERATIONS, "model", []))
        )
        assert none == []


def test_a_time_without_a_zone_is_refused() -> None:
    columns = sent(RESERVATIONS, ["is_open", "expires_at"])
    assert bound(columns, {"is_open": True, "expires_at": datetime(2026, 11, 21, tzinfo=UTC)}) == (
        1,
        "2026-11-21 00:00:00.000000",
    )
    with pytest.raises(ValueError, match="no time zone"):
        bound(columns, {"is_open": True, "expires_at": datetime(2026, 11, 21)})  # noqa: DTZ001 - what is refused


def test_statements_name_columns_as_they_are_sent() -> None:
    columns = sent(RESERVATIONS, ["is_open", "expires_at"])
    assert inserting(RESERVATIONS, columns) == 'INSERT INTO reservations ("is_open", "expires_at") VALUES (?, ?)'
    assert (
        updating(RESERVATIONS, columns, "id")
        == 'UPDATE reservations SET "is_open" = ?, "expires_at" = ? WHERE "id" = ?'
    )
