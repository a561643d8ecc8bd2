"""What an uplink says of sessions and generations, and what becomes of it when its socket breaks."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import select, update

from benchmarks.relay import Relay
from coordinator.app import utc_now_s
from coordinator.quota_rows import OPENS_WITHIN
from coordinator.repository import Repository
from coordinator.stored_rows import NewGeneration
from coordinator.tables import ReservationRow
from protocol.control_messages import GenerationReport
from protocol.ids import KeyId, ModelName, Revision, SessionId, WorkerId
from protocol.key_limits import KeyLimits
from tests.support.coordinators import running_coordinator
from tests.support.linked_uplink import Linked
from tests.support.waiting import eventually_answered


async def test_what_clients_have_opened_is_said_once_and_again_on_a_new_socket(
    tmp_path: Path, own_port: int
) -> None:
    session = SessionId("s1")
    async with running_coordinator(tmp_path, listen_port=own_port) as coordinator:
        link = Linked(coordinator, tmp_path, utc_now_s)
        uplink = await link.uplink()
        await _reserve(coordinator.repository, session, link.identity.worker_id)
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(uplink.run())
            await uplink.connected.wait()
            link.begun.add(session)
            await eventually_answered(lambda: _is_held_for_long(coordinator.repository))
            link.begun.clear()
            await eventually_answered(lambda: _is_held_for_a_moment(coordinator.repository))
            link.begun.add(session)
            await eventually_answered(lambda: _is_held_for_long(coordinator.repository))
            running.cancel()
        await _end_soon(coordinator.repository)
    async with asyncio.timeout(40), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(uplink.run())
        async with running_coordinator(tmp_path, listen_port=own_port) as again:
            await eventually_answered(lambda: _is_held_for_long(again.repository))
            running.cancel()


async def test_what_a_broken_socket_swallowed_is_reported_again_and_counts_once(tmp_path: Path) -> None:
    ends = [
        GenerationReport(session_id=SessionId(name), n_prompt_tokens=1, n_completion_tokens=1, outcome="stop")
        for name in ("s1", "s2")
    ]
    async with running_coordinator(tmp_path) as coordinator, Relay("127.0.0.1", coordinator.port) as relay:
        repository, link = coordinator.repository, Linked(coordinator, tmp_path, utc_now_s)
        link.urls = (f"https://127.0.0.1:{relay.port}",)
        uplink = await link.uplink()
        await _reserve(repository, SessionId("s1"), link.identity.worker_id, max_concurrent=2)
        await repository.record_generation(_new(SessionId("s2"), link.identity.worker_id))

        async def is_over(session_id: SessionId) -> bool:
            stored = await repository.generation(session_id)
            return stored is not None and stored.finished_at is not None

        async with asyncio.timeout(40), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(uplink.run())
            await uplink.connected.wait()
            uplink.report_generation(ends[0])
            await eventually_answered(lambda: is_over(SessionId("s1")))
            relay.hold()
            uplink.report_generation(ends[1])
            await uplink.flush(10.0)  # it is sent, and nobody has it
            relay.cut()
            relay.release()
            await eventually_answered(lambda: is_over(SessionId("s2")), deadline_s=30.0)
            running.cancel()
        today = datetime.now(UTC).date()
        days = await repository.usage.usage(today - timedelta(days=1), today)
        assert [sum(day.n_generations for day in days), sum(day.n_completion_tokens for day in days)] == [2, 2]


async def _reserve(repository: Repository, session_id: SessionId, head: WorkerId, max_concurrent: int = 1) -> None:
    now, limits = datetime.fromtimestamp(utc_now_s(), UTC), KeyLimits(max_concurrent=max_concurrent)
    await repository.add_api_key(KeyId("k"), "n", "client", "h", now, limits=limits)
    await repository.record_generation(_new(session_id, head))


def _new(session_id: SessionId, head: WorkerId) -> NewGeneration:
    return NewGeneration(
        session_id=session_id,
        key_id=KeyId("k"),
        model=ModelName("m"),
        revision=Revision("r"),
        route=((head, 0, 4),),
        n_prompt_tokens=1,
        max_tokens=1,
        at=datetime.fromtimestamp(utc_now_s(), UTC),
        is_opening_told=True,
    )


async def _is_held_for_long(repository: Repository) -> bool:
    async with repository.transactions.reading() as session:
        until = await session.scalar(select(ReservationRow.expires_at))
        return until is not None and until.timestamp() > utc_now_s() + 2 * OPENS_WITHIN.total_seconds()


async def _is_held_for_a_moment(repository: Repository) -> bool:
    return not await _is_held_for_long(repository)


async def _end_soon(repository: Repository) -> None:
    async with repository.transactions.writing() as session:
        await session.execute(update(ReservationRow).values(expires_at=datetime.fromtimestamp(utc_now_s(), UTC)))
