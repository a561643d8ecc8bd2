"""The control socket as a worker keeps it: announced, obeyed, left, and opened again when it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from benchmarks.relay import Relay
from coordinator.app import utc_now_s
from protocol.control_messages import Assign, GenerationReport
from protocol.errors import ConflictError, RequestError
from protocol.ids import FileHash, ModelName, SessionId
from protocol.messages import PROTOCOL_VERSION
from tests.support.coordinators import http_session, key_of, running_coordinator
from tests.support.fleet import fleet_of
from tests.support.linked_uplink import Linked, linked
from tests.support.stored_model import add_model
from tests.support.waiting import eventually
from worker.error_groups import leaves
from worker.holdings import Holdings


async def test_it_announces_beats_and_obeys(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, linked(coordinator, tmp_path) as (link, _):
        await add_model(coordinator)
        await eventually(lambda: link.holdings.epoch > 0)
        assert link.holdings.wanted[0].model == "tiny"
        await eventually(lambda: link.record.heartbeat is not None and link.record.heartbeat.n_sessions == 3)
        assert link.record.is_connected
        assert "assigned blocks" in link.lines[-1]


async def test_it_reports_spans_and_files_as_they_change(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, linked(coordinator, tmp_path) as (link, _):
        model = await add_model(coordinator)
        await eventually(lambda: link.holdings.epoch > 0)
        link.holdings.set_status(link.holdings.wanted[0], "ready", "", 1.0)
        files = {FileHash(name) for name in model.contents}
        link.holdings.set_files(files)
        await eventually(lambda: link.record.files == files)
        await eventually(lambda: link.record.reported and link.record.reported[0].state == "ready")


async def test_what_a_worker_has_room_for_is_told_with_what_became_ready_and_not_a_second_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In between, routes would be given out for sessions that are too long for it."""
    monkeypatch.setattr("worker.uplink.HEARTBEAT_S", 60.0)
    async with running_coordinator(tmp_path) as coordinator, linked(coordinator, tmp_path) as (link, _):
        await add_model(coordinator)
        await eventually(lambda: link.holdings.epoch > 0)
        link.longest_sessions = {ModelName("tiny"): 40}
        link.holdings.set_status(link.holdings.wanted[0], "ready", "", 1.0)
        await eventually(lambda: link.record.heartbeat and link.record.heartbeat.longest_sessions == {"tiny": 40})
        assert link.record.reported[0].state == "ready"


async def test_it_comes_back_when_the_coordinator_does_and_reports_what_waited(
    tmp_path: Path, own_port: int
) -> None:
    report = GenerationReport(session_id=SessionId("s"), n_prompt_tokens=1, n_completion_tokens=2, outcome="stop")
    async with running_coordinator(tmp_path, listen_port=own_port) as coordinator:
        link = Linked(coordinator, tmp_path, utc_now_s)
        uplink = await link.uplink()
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(uplink.run())
        await eventually(lambda: link.lines and "lost the coordinator" in link.lines[-1])
        uplink.report_generation(report)
        await uplink.flush(0.0)  # doesn't wait for who isn't there
        await uplink.leave("nobody hears it")
        async with running_coordinator(tmp_path, listen_port=own_port) as coordinator:
            link.coordinator = coordinator
            await asyncio.wait_for(uplink.connected.wait(), 25)
            await uplink.flush(10.0)
            assert "back with the coordinator" in link.lines
            running.cancel()


async def test_it_says_that_it_leaves(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, linked(coordinator, tmp_path) as (link, uplink):
        await uplink.connected.wait()
        await eventually(lambda: link.record is not None and link.record.is_connected)
        await uplink.leave("test is over")
        await eventually(lambda: link.record.has_said_leaving)


@pytest.mark.parametrize(("version", "is_awaited"), [("1.1", False), (PROTOCOL_VERSION, True)])
async def test_it_serves_on_if_the_coordinator_will_say_until_when(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, is_awaited: bool
) -> None:
    monkeypatch.setattr("coordinator.worker_api.PROTOCOL_VERSION", version)
    async with running_coordinator(tmp_path) as coordinator, linked(coordinator, tmp_path) as (link, uplink):
        await uplink.connected.wait()
        await eventually(lambda: link.record is not None and link.record.is_connected)
        assert await uplink.leave("stopped", 10.0) is is_awaited
        await eventually(lambda: link.record.is_draining)
        await eventually(lambda: link.drains == (["stopped"] if is_awaited else []))


async def test_the_operator_s_drain_reaches_the_worker(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, linked(coordinator, tmp_path) as (link, _):
        await eventually(lambda: link.record is not None and link.record.is_connected)
        async with http_session(coordinator, key_of(coordinator, "admin")) as http:
            answer = await http.ask("POST", f"/admin/v1/workers/{link.identity.worker_id}/drain")
            assert answer.status == 200, answer.body
        await eventually(lambda: link.drains)


async def test_a_second_worker_with_the_identity_ends_the_first(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        one, other = Linked(coordinator, tmp_path, utc_now_s), Linked(coordinator, tmp_path, utc_now_s)
        first, second = await one.uplink(), await other.uplink()

        async def replace_the_first() -> None:
            await first.connected.wait()
            await second.run()

        with pytest.raises(BaseExceptionGroup) as caught:
            await _both(first.run(), replace_the_first())
        assert caught.value.split(ConflictError)[0] is not None


async def _both(*work: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        for coroutine in work:
            tasks.create_task(coroutine)


async def test_an_announcement_that_is_refused_ends_it(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        link = Linked(coordinator, tmp_path, utc_now_s)
        link.announce = {"url": "https://169.254.169.254:80"}
        uplink = await link.uplink()
        with pytest.raises(BaseExceptionGroup) as caught:
            await _both(uplink.run())
        refused = caught.value.split(RequestError)[0]
        assert refused is not None
        assert "--advertise" in str(leaves(refused)[0])


async def test_it_comes_back_at_another_address_of_the_coordinator(tmp_path: Path) -> None:
    async with (
        running_coordinator(tmp_path) as coordinator,
        Relay("127.0.0.1", coordinator.port) as one,
        Relay("127.0.0.1", coordinator.port) as other,
    ):
        urls = [f"https://127.0.0.1:{relay.port}" for relay in (one, other)]
        async with fleet_of(3, tmp_path / "state", urls) as fleet:
            for gone, there in ((one, other), (other, one)):
                assert (gone.n_connections, there.n_connections) == (3, 0)
                there.is_refusing, gone.is_refusing = False, True
                gone.cut()
                await fleet.none_connected(20.0)
                await fleet.all_connected(20.0)
            assert fleet.n_enrolments == 0


async def test_an_old_assignment_is_replaced_when_it_is_announced(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        link = Linked(coordinator, tmp_path, utc_now_s)
        uplink = await link.uplink()
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(uplink.run())
            await eventually(lambda: link.record is not None and link.record.is_connected)
            await add_model(coordinator)
            await eventually(lambda: link.holdings.epoch > 0)
            wanted, epoch = link.holdings.wanted, link.holdings.epoch
            running.cancel()
        link.holdings = Holdings()  # as a worker that was restored from an older copy of its machine
        link.holdings.assign(Assign(epoch=epoch - 1, spans=(), reason="long ago"))
        uplink = await link.uplink()
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(uplink.run())
            await eventually(lambda: link.holdings.epoch >= epoch)
            assert link.holdings.wanted == wanted
            running.cancel()
