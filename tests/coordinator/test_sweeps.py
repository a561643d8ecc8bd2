from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import text

from coordinator.cluster import Cluster
from coordinator.database import opened
from coordinator.policy.effects import Effect
from coordinator.policy.events import SocketLost, WorkerBeat, WorkerConnected
from coordinator.policy.looking import found, sought
from coordinator.policy.state import PolicySettings
from coordinator.repository import Repository
from coordinator.sweeps import look_forever, sweep_forever
from protocol.ids import WorkerId
from tests.coordinator.policy.fleet import added, announce, heartbeat, memory_for

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
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'brigade.db'}") as engine, asyncio.timeout(30):
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
            look = tasks.create_task(look_forever(cluster, every_s=0.01), name="look")
            await repository.tried.wait()
            assert cluster.state.workers[A].assignment.spans == ()
            async with engine.begin() as connection:
                await connection.execute(text("ALTER TABLE hidden RENAME TO assignments"))
            while not cluster.state.workers[A].assignment.spans:
                repository.tried.clear()
                await repository.tried.wait()
            look.cancel()

    assert look.cancelled()


async def test_heartbeats_are_heard_while_a_large_fleet_is_placed(tmp_path: Path) -> None:
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'brigade.db'}") as engine, asyncio.timeout(60):
        cluster = Cluster(Repository(engine), PolicySettings(settle_s=0.0), lambda: 1_800_000_000.0)
        await cluster.restore()
        await cluster.handle(added(n_blocks=40))
        for i in range(40):
            memory = memory_for(10 + i % 20, ends=1)
            arrival = WorkerConnected(worker_id=WorkerId(f"w{i}"), announce=announce(f"w{i}", memory=memory))
            await cluster.handle(arrival)
        n_beats = 0
        async with asyncio.TaskGroup() as tasks:
            look = tasks.create_task(look_forever(cluster, every_s=0.0), name="look")
            while cluster.state.changed_s is not None:
                await cluster.handle(WorkerBeat(worker_id=WorkerId("w0"), heartbeat=heartbeat()))
                await asyncio.sleep(0)  # as a socket's reader does
                n_beats += 1
            look.cancel()

    assert n_beats > 10, "so many were handled between the question and its answer"
    assert any(worker.assignment.spans for worker in cluster.state.workers.values())


async def test_what_was_found_for_workers_that_have_gone_meanwhile_is_looked_for_anew(tmp_path: Path) -> None:
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'brigade.db'}") as engine:
        cluster = Cluster(Repository(engine), PolicySettings(settle_s=0.0), lambda: 1_800_000_000.0)
        await cluster.restore()
        await cluster.handle(added())
        await cluster.handle(WorkerConnected(worker_id=A, announce=announce("a")))
        answer = found(cluster.state, "placement")
        await cluster.handle(SocketLost(worker_id=A))
        await cluster.handle(answer)
        assert cluster.state.workers[A].assignment.spans == ()
        assert sought(cluster.state, cluster.now_s()) == "placement"

        await cluster.handle(WorkerConnected(worker_id=A, announce=announce("a")))
        answer = found(cluster.state, "placement")
        await cluster.handle(WorkerConnected(worker_id=WorkerId("b"), announce=announce("b")))
        await cluster.handle(answer)
        assert cluster.state.workers[A].assignment.spans, "a newcomer takes nothing from what holds"
        assert sought(cluster.state, cluster.now_s()) == "placement", "nobody has looked since it came"
        assert cluster.state.workers[WorkerId("b")].assignment.spans == ()


async def test_an_unexpected_error_ends_the_sweep() -> None:
    class Broken(Cluster):
        async def handle(self, event: object) -> None:
            raise RuntimeError("a defect")

    cluster = Broken(None, PolicySettings(), lambda: 0.0)  # type: ignore[arg-type]

    with pytest.raises(RuntimeError, match="a defect"):
        await sweep_forever(cluster, every_s=0.0)
