from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import text

from coordinator.cluster import Cluster
from coordinator.database import opened
from coordinator.policy.effects import Effect
from coordinator.policy.events import WorkerConnected
from coordinator.policy.state import PolicySettings
from coordinator.repository import Repository
from coordinator.sweeps import sweep_forever
from protocol.ids import WorkerId
from tests.coordinator.policy.fleet import added, announce

A = WorkerId("a")


class Watched(Repository):
    """Says when something was tried to be saved."""

    tried: asyncio.Event

    async def apply(self, effects: Sequence[Effect]) -> None:
        try:
            await super().apply(effects)
        finally:
            self.tried.set()


async def test_a_sweep_places_and_survives_a_database_that_cant_be_written(tmp_path: Path) -> None:
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'brigade.db'}") as engine, asyncio.timeout(10):
        repository = Watched(engine)
        repository.tried = asyncio.Event()
        cluster = Cluster(repository, PolicySettings(settle_s=0.0), lambda: 1_800_000_000.0)
        await cluster.restore()
        await cluster.handle(added())
        await cluster.handle(WorkerConnected(worker_id=A, announce=announce("a")))
        async with engine.begin() as connection:
            await connection.execute(text("ALTER TABLE assignments RENAME TO hidden"))

        repository.tried.clear()
        async with asyncio.TaskGroup() as tasks:
            sweep = tasks.create_task(sweep_forever(cluster, every_s=0.01), name="sweep")
            await repository.tried.wait()
            assert cluster.state.workers[A].assignment.spans == ()
            async with engine.begin() as connection:
                await connection.execute(text("ALTER TABLE hidden RENAME TO assignments"))
            while not cluster.state.workers[A].assignment.spans:
                repository.tried.clear()
                await repository.tried.wait()
            sweep.cancel()

    assert sweep.cancelled()


async def test_an_unexpected_error_ends_the_sweep() -> None:
    class Broken(Cluster):
        async def handle(self, event: object) -> None:
            raise RuntimeError("a defect")

    cluster = Broken(None, PolicySettings(), lambda: 0.0)  # type: ignore[arg-type]

    with pytest.raises(RuntimeError, match="a defect"):
        await sweep_forever(cluster, every_s=0.0)
