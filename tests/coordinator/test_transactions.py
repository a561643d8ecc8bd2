from __future__ import annotations

import asyncio
import threading
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


async def test_what_others_do_in_threads_keeps_no_transaction_waiting(tmp_path: Path) -> None:
    """Whoever may ask for a look at a large fleet may ask for many at once."""
    may_end, loop = threading.Event(), asyncio.get_running_loop()
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}") as engine:
        repository = Repository(engine)
        await repository.add_api_key(KeyId("k1"), "n", "client", "h", NOW)
        looks = [loop.run_in_executor(None, may_end.wait, 30.0) for _ in range(64)]
        try:
            async with asyncio.timeout(10.0):
                assert await repository.transactions.write_rows(lambda rows: rows.closed) is False
                assert await repository.api_key(KeyId("k1")) is not None
        finally:
            may_end.set()
            await asyncio.gather(*looks)
