"""Reports that SQLite saves by plain statements: the same rows as otherwise, all of them or none, fenced."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from coordinator.database import opened
from coordinator.generation_rows import finish_generations
from coordinator.repository import Repository
from coordinator.sqlite_reports import finish_generations_plainly
from protocol.coordinator_errors import LeaseError
from protocol.errors import StorageError
from protocol.ids import SessionId
from protocol.key_limits import UNLIMITED, KeyLimits
from tests.coordinator.test_lease import side
from tests.coordinator.test_postgres_reports import FREE, LATER, OTHER, ends_of_all, rows_of_all
from tests.coordinator.test_postgres_routes import KEY, NOW, TAIL, add_key, new, said_by_tail


@pytest.mark.parametrize("limits", [KeyLimits(requests_per_min=9, tokens_per_day=500, max_concurrent=9), UNLIMITED])
async def test_the_rows_are_those_that_are_written_otherwise(limits: KeyLimits, tmp_path: Path) -> None:
    """Those that stay open behind others move up: more of them than one report is of."""
    kept: list[Any] = []
    said: list[Any] = []
    for is_plain in (True, False):
        async with opened(f"sqlite+aiosqlite:///{tmp_path / f'{is_plain}.db'}") as engine:
            repository = Repository(engine)
            for key_id, its in ((KEY, limits), (OTHER, KeyLimits(tokens_per_min=400)), (FREE, UNLIMITED)):
                await add_key(repository, its, key_id)
            await repository.usage.set_owner(TAIL, "ann", NOW)
            some = [new("a"), new("b", OTHER), new("c", FREE), new("d"), new("e"), new("f"), new("g", OTHER)]
            await repository.record_generations(some, NOW.timestamp)
            for ends in ends_of_all():
                write: Any = (
                    repository.transactions.write_plainly if is_plain else repository.transactions.write_rows
                )
                finish = finish_generations_plainly if is_plain else finish_generations
                clock = LATER.timestamp
                said.append(
                    await write(lambda rows, finish=finish, ends=ends, clock=clock: finish(rows, ends, clock))
                )
            kept.append(await rows_of_all(repository))
    assert said[: len(said) // 2] == said[len(said) // 2 :]
    assert kept[0] == kept[1]
    assert sorted(row["owner"] for row in kept[0][-1]) == ["", "", "ann", "ann"]
    assert [row["session_id"] for row in kept[0][1] if row["is_open"]] != []


async def test_one_that_goes_on_by_another_is_reported_too(tmp_path: Path) -> None:
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}") as engine:
        repository = Repository(engine)
        await add_key(repository, KeyLimits(tokens_per_day=500))
        await repository.record_generation(new("a"))
        await repository.record_generation(replace(new("b"), continues=SessionId("a")))
        for name in "ab":
            (ended,) = await repository.finish_generations([said_by_tail(name)], LATER.timestamp)
            assert ended is not None
        assert (await rows_of_all(repository))[3][0]["n_generations"] == 1


async def test_what_fails_halfway_leaves_nothing_and_locks_nothing(tmp_path: Path) -> None:
    """Reservations are written last: the ledgers and the end of the generation are undone with them."""
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}") as engine:
        repository = Repository(engine)
        await add_key(repository, KeyLimits(tokens_per_day=500))
        await repository.record_generations([new("a"), new("b")])
        before = await rows_of_all(repository)
        refusing = "BEFORE UPDATE ON reservations BEGIN SELECT RAISE(ABORT, 'no room'); END"
        async with engine.begin() as connection:
            await connection.exec_driver_sql(f"CREATE TRIGGER refusing {refusing}")
        with pytest.raises(StorageError, match="no room"):
            await repository.finish_generations([said_by_tail("a")])
        assert await rows_of_all(repository) == before
        assert "no room" in repository.problem
        async with engine.begin() as connection:
            await connection.exec_driver_sql("DROP TRIGGER refusing")
        (ended,) = await repository.finish_generations([said_by_tail("a")])
        assert ended is not None
        assert repository.problem == ""


async def test_who_has_lost_the_lease_saves_none(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'x.db'}"
    async with side(url) as old, side(url) as next_one:
        assert await old.take("old")
        await add_key(old.repository, KeyLimits(max_concurrent=2))
        await old.repository.record_generation(new("a"))
        assert await next_one.take("next")
        with pytest.raises(LeaseError, match="another coordinator has taken"):
            await old.repository.finish_generations([said_by_tail("a")])
        with pytest.raises(LeaseError, match="another coordinator has taken"):
            await old.repository.record_generation(new("b"))
        assert old.lease.lost.is_set()
        (ended,) = await next_one.repository.finish_generations([said_by_tail("a")], (NOW + timedelta(1)).timestamp)
        assert ended is not None
