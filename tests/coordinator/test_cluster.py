from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from coordinator.audit_log import AuditFilter
from coordinator.cluster import OUTBOX_SIZE, Cluster
from coordinator.database import opened
from coordinator.policy.events import (
    DrainAsked,
    ModelRemoved,
    SocketLost,
    TimePassed,
    WorkerBeat,
    WorkerConnected,
    WorkerJoined,
)
from coordinator.policy.invariants import check
from coordinator.policy.looking import found
from coordinator.policy.state import PolicySettings
from coordinator.repository import Repository
from protocol.control_messages import Assign, Dismiss, Drain
from protocol.errors import StorageError
from protocol.ids import ModelName, WorkerId
from tests.coordinator.policy.fleet import added, announce, heartbeat

A = WorkerId("a")


class Time:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'brigade.db'}") as engine:
        yield engine


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
async def cluster(engine: AsyncEngine, time: Time) -> Cluster:
    return await restored_cluster(engine, time)


async def restored_cluster(engine: AsyncEngine, time: Time) -> Cluster:
    cluster = Cluster(Repository(engine), PolicySettings(), time)
    await cluster.restore()
    return cluster


async def place(cluster: Cluster, time: Time) -> None:
    await cluster.handle(TimePassed())
    time.now_s += 1.0
    await cluster.handle(found(cluster.state, "placement"))


async def with_worker(cluster: Cluster, time: Time) -> None:
    """One model on one worker, placed."""
    await cluster.handle(added())
    await cluster.handle(WorkerJoined(worker_id=A))
    await cluster.handle(WorkerConnected(worker_id=A, announce=announce("a")))
    await place(cluster, time)


async def test_a_connected_worker_gets_its_assignment_through_its_outbox(cluster: Cluster, time: Time) -> None:
    with cluster.connected(A) as outbox:
        await with_worker(cluster, time)

        first, second = outbox.get_nowait(), outbox.get_nowait()
        assert isinstance(first, Assign)
        assert first.epoch == 0
        assert isinstance(second, Assign)
        assert [str(span.blocks) for span in second.spans] == ["0:8"]
        assert cluster.state.workers[A].assignment.spans == second.spans


async def test_what_was_decided_is_there_after_a_restart(cluster: Cluster, engine: AsyncEngine, time: Time) -> None:
    await with_worker(cluster, time)

    again = await restored_cluster(engine, time)

    check(again.state)
    assert again.state.models == cluster.state.models
    old, new = cluster.state.workers[A], again.state.workers[A]
    assert (new.assignment.epoch, new.assignment.spans) == (old.assignment.epoch, old.assignment.spans)
    assert (new.presence, new.hostname, new.url, new.device) == ("expected", old.hostname, old.url, old.device)


async def test_models_are_replaced_and_removed_in_the_database_too(
    cluster: Cluster, engine: AsyncEngine, time: Time
) -> None:
    await with_worker(cluster, time)
    await cluster.handle(added(n_blocks=4))
    await place(cluster, time)
    assert (await restored_cluster(engine, time)).state.models == cluster.state.models

    await cluster.handle(ModelRemoved(name=ModelName("m")))
    again = await restored_cluster(engine, time)
    assert again.state.models == {}
    assert again.state.workers[A].assignment.spans == ()
    assert again.state.workers[A].assignment.epoch == cluster.state.workers[A].assignment.epoch


async def test_what_cant_be_saved_didnt_happen(cluster: Cluster, engine: AsyncEngine, time: Time) -> None:
    with cluster.connected(A) as outbox:
        await with_worker(cluster, time)
        before, n_messages = cluster.state, outbox.qsize()
        async with engine.begin() as connection:
            await connection.execute(text("ALTER TABLE audit_log RENAME TO hidden"))

        with pytest.raises(StorageError):
            await cluster.handle(DrainAsked(worker_id=A, reason="test"))

        assert cluster.state is before
        assert outbox.qsize() == n_messages
        assert not (await restored_cluster(engine, time)).state.workers[A].is_draining

        async with engine.begin() as connection:
            await connection.execute(text("ALTER TABLE hidden RENAME TO audit_log"))
        await cluster.handle(DrainAsked(worker_id=A, reason="test"))
        assert cluster.state.workers[A].is_draining


async def test_a_second_connection_dismisses_the_first(cluster: Cluster, time: Time) -> None:
    with cluster.connected(A) as first:
        await with_worker(cluster, time)
        with cluster.connected(A) as second:
            goodbye = first.get_nowait()
            assert isinstance(goodbye, Dismiss)
            assert goodbye.error.code == "conflict"
            assert first.empty()
            assert (cluster.is_current(A, first), cluster.is_current(A, second)) == (False, True)

            await cluster.handle(DrainAsked(worker_id=A, reason="test"))
            assert second.get_nowait() == Drain(reason="test")


async def test_a_worker_that_reads_nothing_is_dismissed(cluster: Cluster, time: Time) -> None:
    with cluster.connected(A) as outbox:
        await with_worker(cluster, time)
        for _ in range(OUTBOX_SIZE):
            await cluster.handle(DrainAsked(worker_id=A, reason="test"))

        assert outbox.qsize() == 1
        goodbye = outbox.get_nowait()
        assert isinstance(goodbye, Dismiss)
        assert goodbye.error.code == "overloaded"
        assert cluster.is_current(A, outbox), "its end is the worker's: nobody has taken over"
        await cluster.handle(SocketLost(worker_id=A))
        assert not cluster.state.workers[A].is_connected


async def test_messages_for_a_worker_that_is_not_connected_are_dropped(cluster: Cluster, time: Time) -> None:
    await with_worker(cluster, time)

    with cluster.connected(A) as outbox:
        assert outbox.empty()


async def test_events_that_come_at_once_are_handled_one_by_one(cluster: Cluster, time: Time) -> None:
    async with asyncio.TaskGroup() as tasks:
        for i in range(20):
            event = WorkerConnected(worker_id=WorkerId(f"w{i}"), announce=announce(f"w{i}"))
            tasks.create_task(cluster.handle(event), name=f"connect-{i}")
    await cluster.handle(added(n_blocks=20))
    await place(cluster, time)

    check(cluster.state)
    assert sum(len(w.assignment.spans) for w in cluster.state.workers.values()) == 20


async def test_a_slow_database_makes_nobody_silent(cluster: Cluster, engine: AsyncEngine, time: Time) -> None:
    await with_worker(cluster, time)
    beat = WorkerBeat(worker_id=A, heartbeat=heartbeat())
    async with asyncio.TaskGroup() as tasks, engine.connect() as busy:
        await busy.exec_driver_sql("PRAGMA user_version = 1")  # holds the write lock
        for event in (beat, WorkerJoined(worker_id=WorkerId("b")), TimePassed(), beat):
            tasks.create_task(cluster.handle(event), name="event")
        await asyncio.sleep(0)  # all of them have come, and wait
        time.now_s += 20.0
        await busy.rollback()
    assert "worker_lost" not in [line.action for line in await Repository(engine).audit_lines()]


async def test_what_workers_measure_wakes_nobody_who_waits_for_a_route(cluster: Cluster, time: Time) -> None:
    await with_worker(cluster, time)
    changed = cluster.routes_changed
    await cluster.handle(WorkerBeat(worker_id=A, heartbeat=heartbeat(decode_s_per_block=0.0123)))

    assert not changed.is_set()


async def test_a_clock_wakes_those_who_wait_for_a_route_when_it_begins_or_ends_to_let_nobody_in(
    cluster: Cluster, time: Time
) -> None:
    """It counts for placement once it was right for a while; routes go there at once, and so must be told."""
    await with_worker(cluster, time)
    for ahead_s, wakes in ((0.0, False), (7200.0, True), (7300.0, False), (400.0, True), (0.0, False)):
        changed = cluster.routes_changed
        beat = WorkerBeat(worker_id=A, heartbeat=heartbeat(time_s=time.now_s + ahead_s))
        await cluster.handle(beat)
        assert changed.is_set() == wakes, ahead_s


@pytest.mark.parametrize("value", ["{", '{"target": {"a": 3}}'])
async def test_a_move_that_cannot_be_read_is_forgotten_and_said_so_once(
    engine: AsyncEngine, time: Time, value: str
) -> None:
    await with_worker(await restored_cluster(engine, time), time)
    async with engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO settings (key, value) VALUES ('moving', :value)"), {"value": value}
        )
    for _ in range(2):
        again = await restored_cluster(engine, time)
        assert again.state.moving is None
        assert again.state.workers[A].assignment.spans
    found = AuditFilter(action="moving_ended")
    (line,) = await Repository(engine).audit_log.entries(found, before_id=None, n_entries=9)
    assert line.details.startswith("what was being moved can't be read and is forgotten: ")
