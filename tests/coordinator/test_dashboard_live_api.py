from __future__ import annotations

from pathlib import Path

import pytest

from coordinator import dashboard_live_api
from coordinator.dashboard_sessions import IDLE_S
from protocol.control_messages import Assign, GenerationReport
from protocol.dashboard_rest import HistoryAnswer
from protocol.ids import ModelName
from protocol.key_rest import CreatedKey, CreateKeyRequest
from protocol.rest import RouteGrant, RouteRequest
from tests.support.clocks import Clock
from tests.support.coordinators import bearer, http_session, key_of, running_coordinator
from tests.support.dashboard import browser, signed_in
from tests.support.scripted_worker import joined_worker
from tests.support.stored_model import add_model
from tests.support.waiting import eventually_answered


async def test_a_page_sees_the_whole_cluster_and_then_what_happens_in_it(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, signed_in(coordinator) as page:
        async with page.events() as events, page.events() as second:
            state = await events.state_once(lambda state: state.cluster)
            assert (state.models, state.workers, state.cluster["n_workers"]) == ({}, {}, 0)
            await add_model(coordinator)
            async with joined_worker(coordinator) as worker:
                while not (assign := await worker.receive(Assign)).spans:
                    pass
                await worker.hold(assign)
                state = await events.state_once(lambda state: state.cluster["n_models_ready"])
                assert state.workers[worker.worker_id]["state"] == "ready"
                assert state.cluster["n_workers_ready"] == 1

                async with http_session(coordinator, key_of(coordinator, "client")) as http:
                    wanted = RouteRequest(model=ModelName("tiny"), n_prompt_tokens=5, max_tokens=7)
                    grant = (await http.ask("POST", "/v1/routes", wanted)).read(RouteGrant)
                state = await events.state_once(lambda state: state.generations)
                shown = state.generations[grant.session_id]
                assert [hop["worker_id"] for hop in shown["hops"]] == [worker.worker_id]
                assert (shown["n_prompt_tokens"], shown["key_name"]) == (5, "first client key")
                report = GenerationReport(
                    session_id=grant.session_id, n_prompt_tokens=5, n_completion_tokens=6, outcome="stop"
                )
                await worker.send(report)
                await events.state_once(lambda state: not state.generations)
            await events.state_once(lambda state: state.cluster["n_workers_ready"] == 0)
            assert events.n_snapshots == 1
            late = await second.state_once(lambda state: state.workers and state.cluster["n_workers_ready"] == 0)
            async with page.events() as third:
                fresh = await third.state_once(lambda _: True)
            assert set(fresh.workers) == set(late.workers)
            # what a later look saw (why the model waits changes with time) reaches who was there before as well
            await second.state_once(lambda state: state.models == fresh.models)
        history = (await page.ask("GET", "/dashboard/history")).read(HistoryAnswer)
        assert history.step_s > 0
        assert {len(values) for values in history.series.values()} == {720}
        path = f"/dashboard/history/workers/{worker.worker_id}?span=day"
        assert (await page.ask("GET", "/dashboard/history/workers/w-nobody")).status == 404
        answer = await page.ask("GET", path)
        assert answer.status in (200, 404)  # sampled every few seconds


async def test_a_stream_ends_with_its_session_its_key_and_the_coordinator(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, signed_in(coordinator) as page:
        made = await page.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="second", kind="admin"))
        second = made.read(CreatedKey)
        async with browser(coordinator) as other:
            await other.sign_in(second.key)
            async with other.events() as events:
                await events.state_once(lambda _: True)
                assert (await page.ask("DELETE", f"/admin/v1/keys/{second.key_id}")).status == 200
                end = await events.over()
                assert end is not None
                assert end.reason == "revoked"
        async with page.events() as events:
            await events.state_once(lambda _: True)
            await page.ask("DELETE", "/dashboard/session")
            end = await events.over()
            assert end is not None
            assert end.reason == "signed_out"
        await page.sign_in(key_of(coordinator, "admin"))
        async with page.events() as events:
            await events.state_once(lambda _: True)
            await coordinator.application.shutdown()
            end = await events.over()
            assert end is not None
            assert end.reason == "stopping"


async def test_a_stream_of_a_secret_that_was_replaced_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard_live_api, "CHECK_S", 0.0)  # before every event
    async with running_coordinator(tmp_path) as coordinator, signed_in(coordinator) as page:
        made = await page.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="second", kind="admin"))
        second = made.read(CreatedKey)
        async with page.events(Cookie="none=1", **bearer(second.key)) as events:
            await events.state_once(lambda _: True)
            rotated = await page.ask("POST", f"/admin/v1/keys/{second.key_id}/rotate", b'{"grace_s": 0}')
            assert rotated.status == 200, rotated.body
            end = await events.over()
            assert end is not None
            assert end.reason == "revoked"


async def test_a_stream_doesnt_keep_an_idle_session_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard_live_api, "CHECK_S", 0.0)  # before every event
    clock = Clock()
    async with (
        running_coordinator(tmp_path, clock=clock) as coordinator,
        signed_in(coordinator) as page,
        page.events() as events,
    ):
        await events.state_once(lambda _: True)
        clock.now_s += IDLE_S - 10
        assert (await page.ask("GET", "/dashboard/session")).status == 200
        clock.now_s += 20  # the cookie that the stream was opened with is good no longer, and the session is
        await add_model(coordinator, "one")
        await events.state_once(lambda state: state.models)
        clock.now_s += IDLE_S
        await add_model(coordinator, "two")
        end = await events.over()
        assert end is not None
        assert end.reason == "expired"


async def test_an_admin_key_may_follow_too_and_a_clients_may_not(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, browser(coordinator) as page:
        headers = bearer(key_of(coordinator, "admin"))
        async with page.events(Cookie="none=1", **headers) as events:
            assert (await events.state_once(lambda _: True)).cluster["database"] == "sqlite"
        client = await page.ask("GET", "/dashboard/events", **bearer(key_of(coordinator, "client")))
        assert client.status == 403

        async def is_sampled() -> bool:
            found = (await page.ask("GET", "/dashboard/history", **headers)).read(HistoryAnswer)
            return found.series["n_workers_ready"][-1:] == [0.0]

        await eventually_answered(is_sampled)
