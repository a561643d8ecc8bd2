"""What is held for a generation whose head is killed: nobody says that it is over, and its place is free soon."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import select

from coordinator.app import RunningCoordinator
from coordinator.keys import OPENINGS
from coordinator.openings import MAX_WAITING, MAX_WAITING_OF_HEAD
from coordinator.quota_rows import LONGEST_GENERATION, REPORTED_WITHIN
from coordinator.tables import ReservationRow
from protocol.control_messages import Assign, SessionsBegun
from protocol.ids import SessionId, WorkerId
from protocol.key_limits import KeyLimits
from protocol.key_rest import CreatedKey, CreateKeyRequest
from protocol.rest import RouteGrant
from tests.coordinator.test_session_ends import ASK, granted
from tests.support.clocks import Clock
from tests.support.coordinators import http_session, key_of, running_coordinator
from tests.support.scripted_worker import ScriptedWorker, connected_worker, joined_worker
from tests.support.stored_model import add_model
from tests.support.waiting import eventually, eventually_answered

SOON = timedelta(minutes=5)
"""More than a start takes on a busy machine, and much less than an hour."""


async def held_for(coordinator: RunningCoordinator) -> timedelta:
    """Of the only reservation: what is left of its time."""
    async with coordinator.repository.transactions.reading() as session:
        row = (await session.scalars(select(ReservationRow))).one()
        assert row.is_open
        return row.expires_at - datetime.now(UTC)


async def begun(coordinator: RunningCoordinator, worker: ScriptedWorker) -> RouteGrant:
    """A generation of a key with one place, which the worker says was opened."""
    grant = await granted_one_place(coordinator, worker)
    await worker.send(SessionsBegun(session_ids=(grant.session_id,), was_away=False))
    return grant


async def granted_one_place(coordinator: RunningCoordinator, worker: ScriptedWorker) -> RouteGrant:
    """A generation of a key with one place, of which nothing was said yet."""
    while not (assign := await worker.receive(Assign)).spans:
        pass
    await worker.hold(assign)
    async with http_session(coordinator, key_of(coordinator, "admin")) as admin:
        asked = CreateKeyRequest(name="one", limits=KeyLimits(max_concurrent=1))
        key = (await admin.ask("POST", "/admin/v1/keys", asked)).read(CreatedKey)
    async with http_session(coordinator, key.key) as http:
        grant = await granted(http)
        assert (await http.ask("POST", "/v1/routes", ASK)).status == 429
    return grant


async def test_a_head_that_is_lost_holds_no_place_for_an_hour_unless_it_is_back(tmp_path: Path) -> None:
    clock = Clock()
    async with running_coordinator(tmp_path, clock=clock, suspect_after_s=2.0, lost_after_s=3.0) as coordinator:
        await add_model(coordinator)
        async with joined_worker(coordinator) as worker:
            grant = await begun(coordinator, worker)

            async def is_held_long() -> bool:
                return await held_for(coordinator) > LONGEST_GENERATION - SOON

            await eventually_answered(is_held_long)
            worker.socket._response.connection.transport.abort()  # type: ignore[union-attr] # as a kill does
        began_s = time.monotonic()
        for _ in range(2):  # each a step that is no clock that was set
            clock.now_s += 2.0
            await eventually(lambda: coordinator.cluster.state.looked_s == clock.now_s)

        async def is_held_briefly() -> bool:
            return await held_for(coordinator) <= REPORTED_WITHIN

        await eventually_answered(is_held_briefly)
        assert coordinator.cluster.state.workers[worker.worker_id].presence == "lost"
        assert time.monotonic() - began_s < REPORTED_WITHIN.total_seconds()
        async with connected_worker(coordinator, worker.key, worker.grant) as again:
            await again.send(SessionsBegun(session_ids=(grant.session_id,), was_away=True))
            await eventually_answered(is_held_long)


async def test_a_worker_that_tells_of_much_and_of_others_sessions_is_in_no_heads_way(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        async with joined_worker(coordinator) as worker:
            grant = await granted_one_place(coordinator, worker)
            openings, liar = coordinator.application[OPENINGS], WorkerId("liar")
            for i in range(MAX_WAITING):
                openings.take(SessionsBegun(session_ids=(SessionId(f"s{i}"),), was_away=False), liar)
            assert openings.n_waiting == MAX_WAITING_OF_HEAD
            opened = SessionsBegun(session_ids=(grant.session_id,), was_away=False)
            openings.take(opened, worker.worker_id)
            await openings.save()
            for _ in range(3):
                openings.take(SessionsBegun(session_ids=(), over=(grant.session_id,), was_away=False), liar)
                openings.take(opened, worker.worker_id)
                openings.take(SessionsBegun(session_ids=(), over=(grant.session_id,), was_away=False), liar)
                while openings.n_waiting:
                    await openings.save()
                assert await held_for(coordinator) > LONGEST_GENERATION - SOON
            openings.take(opened, liar)
            assert openings.n_waiting == 1, "what was saved counts no longer"
