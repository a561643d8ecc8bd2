"""Workers are told which sessions to end: at once, and again when they connect; those that can't know it aren't."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from coordinator import generation_rows
from coordinator.app import RunningCoordinator
from coordinator.keys import OPENINGS, ROUTE_DESK
from protocol.control_messages import Assign, Drain, EndSessions, SessionsBegun
from protocol.errors import HopLostError, KeyRevokedError
from protocol.ids import ModelName, SessionId
from protocol.key_limits import KeyLimits
from protocol.key_rest import CreatedKey, CreateKeyRequest
from protocol.rest import ErrorAnswer, RouteGrant, RouteRequest
from protocol.trust_rest import TrustRequest
from tests.support.coordinators import Http, http_session, key_of, running_coordinator
from tests.support.scripted_worker import ScriptedWorker, connected_worker, joined_worker
from tests.support.stored_model import add_model
from tests.support.waiting import eventually, eventually_answered

ASK = RouteRequest(model=ModelName("tiny"), n_prompt_tokens=3, max_tokens=5)


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[RunningCoordinator]:
    async with running_coordinator(tmp_path) as running:
        await add_model(running)
        yield running


@asynccontextmanager
async def serving(coordinator: RunningCoordinator) -> AsyncIterator[ScriptedWorker]:
    async with joined_worker(coordinator) as worker:
        while not (assign := await worker.receive(Assign)).spans:
            pass
        await worker.hold(assign)
        yield worker


async def granted(http: Http, **changes: object) -> RouteGrant:
    fields = {name: getattr(ASK, name) for name in ("model", "n_prompt_tokens", "max_tokens")}
    answer = await http.ask("POST", "/v1/routes", RouteRequest(**{"wait_s": 10.0, **fields, **changes}))
    assert answer.status == 200, answer.body
    return answer.read(RouteGrant)


async def test_a_revoked_keys_sessions_are_named_now_and_to_who_connects_later(
    coordinator: RunningCoordinator,
) -> None:
    async with serving(coordinator) as worker, http_session(coordinator, key_of(coordinator, "admin")) as admin:
        made = (await admin.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="n"))).read(CreatedKey)
        async with http_session(coordinator, made.key) as http:
            mine = {(await granted(http)).session_id for _ in range(2)}
        await granted(admin)
        await admin.ask("DELETE", f"/admin/v1/keys/{made.key_id}")
        order = await worker.receive(EndSessions)
        assert (set(order.session_ids), order.error.code) == (mine, KeyRevokedError.code)
        async with connected_worker(coordinator, worker.key, worker.grant) as again:
            assert set((await again.receive(EndSessions)).session_ids) == mine
            await admin.ask("POST", f"/admin/v1/workers/{worker.worker_id}/drain")
        async with connected_worker(coordinator, worker.key, worker.grant, version="1.1") as old:
            assert await first_of(old) is not EndSessions


async def first_of(worker: ScriptedWorker) -> type:
    return type(await worker.receive((Assign, Drain, EndSessions)))  # type: ignore[arg-type]


async def test_a_session_that_goes_on_elsewhere_is_ended_where_it_was(coordinator: RunningCoordinator) -> None:
    async with serving(coordinator) as worker, http_session(coordinator, key_of(coordinator, "client")) as http:
        session: SessionId | None = None
        for _ in range(3):
            before, session = session, (await granted(http, continues=session)).session_id
            if before is not None:
                order = await worker.receive(EndSessions)
                assert (order.session_ids, order.error.code) == ((before,), HopLostError.code)


async def test_all_others_end_what_they_have_with_a_banned_worker(coordinator: RunningCoordinator) -> None:
    async with serving(coordinator) as worker, http_session(coordinator, key_of(coordinator, "admin")) as admin:
        async with joined_worker(coordinator, port=8000) as bad:
            path = f"/admin/v1/workers/{bad.worker_id}/trust"
            answer = await admin.ask("POST", path, TrustRequest(action="ban", reason="it lies"))
            assert answer.status == 200, answer.body
        order = await worker.receive(EndSessions)
        assert (order.neighbours, order.session_ids) == ((bad.worker_id,), ())
        assert order.error.code == HopLostError.code


async def test_what_nobody_opened_gives_its_place_to_others_and_is_ended_if_somebody_does_after_all(
    coordinator: RunningCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(coordinator) as worker, http_session(coordinator, key_of(coordinator, "admin")) as admin:
        wanted = CreateKeyRequest(name="n", limits=KeyLimits(max_concurrent=1))
        keys = [(await admin.ask("POST", "/admin/v1/keys", wanted)).read(CreatedKey).key for _ in range(2)]
        async with http_session(coordinator, keys[0]) as other:  # of which one is to hold its place for a minute
            await granted(other)
            assert (await other.ask("POST", "/v1/routes", ASK)).status == 429
        async with http_session(coordinator, keys[1]) as http:
            monkeypatch.setattr(generation_rows, "OPENS_WITHIN", timedelta(seconds=0.2))
            unopened = (await granted(http)).session_id

            async def next_granted() -> RouteGrant | None:
                answer = await http.ask("POST", "/v1/routes", ASK)
                return answer.read(RouteGrant) if answer.status == 200 else None

            monkeypatch.setattr(generation_rows, "OPENS_WITHIN", timedelta(seconds=60))
            opened = (await eventually_answered(next_granted)).session_id
        await worker.send(SessionsBegun(session_ids=(unopened, opened), was_away=True))
        await worker.send(SessionsBegun(session_ids=(opened,), was_away=False))
        late = SessionsBegun(session_ids=(unopened,), was_away=False)
        await eventually(lambda: not coordinator.application[OPENINGS].n_waiting)
        await worker.send(late)
        order = await worker.receive(EndSessions)
        assert (order.session_ids, order.error.code) == ((unopened,), HopLostError.code)


async def test_who_waits_for_a_route_with_a_key_that_is_revoked_meanwhile_gets_none(
    coordinator: RunningCoordinator,
) -> None:
    async with http_session(coordinator, key_of(coordinator, "admin")) as admin:
        made = (await admin.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="n"))).read(CreatedKey)
        wanted = RouteRequest(model=ASK.model, n_prompt_tokens=3, max_tokens=5, wait_s=20.0)
        async with http_session(coordinator, made.key) as http, asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(http.ask("POST", "/v1/routes", wanted), name="waiting")
            await eventually(lambda: coordinator.application[ROUTE_DESK].n_waiting)
            await admin.ask("DELETE", f"/admin/v1/keys/{made.key_id}")
            async with serving(coordinator):
                await waiting
        assert (waiting.result().status, waiting.result().read(ErrorAnswer).error.code) == (
            401,
            KeyRevokedError.code,
        )
