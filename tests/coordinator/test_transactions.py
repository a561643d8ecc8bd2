from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from coordinator.database import opened
from coordinator.repository import Repository
from protocol.errors import StorageError
from protocol.ids import KeyId

NOW = datetime(2026, 11, 21, tzinfo=UTC)


async def test_a_file_that_is_not_the_one_it_was_is_not_used(tmp_path: Path) -> None:
    path, away = tmp_path / "x.db", tmp_path / "away.db"
    async with opened(f"sqlite+aiosqlite:///{path}") as engine:
        repository = Repository(engine)
        await repository.add_api_key(KeyId("k1"), "n", "client", "h", NOW)
        path.rename(away)
        for is_replaced in (False, True):
            if is_replaced:
                path.touch()
            with pytest.raises(StorageError, match="was moved, deleted or replaced"):
                await repository.add_api_key(KeyId("k2"), "n", "client", "h", NOW)
            with pytest.raises(StorageError, match="was moved, deleted or replaced"):
                await repository.api_keys()
            assert "was moved" in repository.problem
        away.rename(path)
        await repository.add_api_key(KeyId("k3"), "n", "client", "h", NOW)
        assert {key.key_id for key in await repository.api_keys()} == {"k1", "k3"}
        assert repository.problem == ""


async def test_that_reading_works_does_not_hide_that_writing_does_not(tmp_path: Path) -> None:
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}") as engine:
        repository = Repository(engine)
        async with engine.begin() as connection:
            await connection.exec_driver_sql("ALTER TABLE audit_log RENAME TO hidden")
        with pytest.raises(StorageError):
            await repository.add_api_key(KeyId("k1"), "n", "client", "h", NOW)
        assert await repository.api_keys() == ()
        assert "audit_log" in repository.problem
