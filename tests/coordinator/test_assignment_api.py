"""Assignments over HTTP: previewed, pinned, moved, refused; pins survive a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.app import RunningCoordinator
from coordinator.policy.events import AssignmentPinned
from coordinator.policy.pins import Pin
from protocol.assignment_rest import (
    AssignmentInfo,
    AssignmentList,
    AssignmentPreview,
    MoveRequest,
    PinRequest,
    PreviewRequest,
)
from protocol.control_messages import Assign, DeviceReport
from protocol.ids import BlockRange, ModelName, WorkerId
from protocol.rest import ErrorAnswer
from tests.support.coordinators import Http, http_session, key_of, running_coordinator
from tests.support.scripted_worker import ScriptedWorker, announcement, joined_worker
from tests.support.stored_model import add_model
from tests.support.waiting import eventually


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[RunningCoordinator]:
    async with running_coordinator(tmp_path) as running:
        yield running


@pytest.fixture
async def admin(coordinator: RunningCoordinator) -> AsyncIterator[Http]:
    async with http_session(coordinator, key_of(coordinator, "admin")) as session:
        yield session


def path(worker_id: WorkerId) -> str:
    return f"/admin/v1/workers/{worker_id}/assignment"


async def told(worker: ScriptedWorker, blocks: str) -> None:
    """Wait for these blocks, and serve them."""
    while True:
        assign = await worker.receive(Assign)
        await worker.hold(assign)
        if [str(span.blocks) for span in assign.spans] == [blocks]:
            return


async def test_pinned_blocks_stay_over_a_restart_until_they_are_unpinned(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, joined_worker(coordinator) as worker:
        await add_model(coordinator)
        await told(worker, "0:4")
        async with http_session(coordinator, key_of(coordinator, "admin")) as admin:
            wanted = PinRequest(model="tiny", blocks="0:2", reason="a slow disk")
            refused = await admin.ask("PUT", path(worker.worker_id), wanted)
            assert refused.status == 409
            assert "blocks 2:4 of tiny" in refused.read(ErrorAnswer).error.message
            forced = PinRequest(model="tiny", blocks="0:2", reason="a slow disk", force=True)
            answer = await admin.ask("PUT", path(worker.worker_id), forced)
        assert answer.status == 200, answer.body
        pin = answer.read(AssignmentInfo).pin
        assert pin is not None
        assert (pin.blocks, pin.reason) == (BlockRange(0, 2), "a slow disk")
        await told(worker, "0:2")
        key = worker.key
    async with running_coordinator(tmp_path) as again, joined_worker(again, key=key) as worker:
        await told(worker, "0:2")
        async with http_session(again, key_of(again, "admin")) as admin:
            listed = (await admin.ask("GET", "/admin/v1/assignments")).read(AssignmentList).assignments
            assert [info.pin is not None for info in listed] == [True]
            assert (await admin.ask("DELETE", path(worker.worker_id))).read(AssignmentInfo).pin is None
            assert (await admin.ask("DELETE", path(worker.worker_id))).status == 409
        lines = {line.action for line in await again.repository.audit_lines()}
    assert {"assignment_pinned", "assignment_unpinned"} <= lines


async def test_a_move_is_made_before_it_is_broken(coordinator: RunningCoordinator, admin: Http) -> None:
    pinned = announcement("https://127.0.0.1:7901", pinned_blocks=BlockRange(3, 4))
    async with joined_worker(coordinator) as first:
        await add_model(coordinator)
        await told(first, "0:4")
        async with joined_worker(coordinator, announce=pinned) as second:
            await told(second, "3:4")
            wanted = MoveRequest(model="tiny", blocks="2:4", takes_from=first.worker_id, worker=second.worker_id)
            answer = await admin.ask("POST", "/admin/v1/assignments/move", wanted)
            assert answer.status == 200, answer.body
            await second.receive(Assign)
            state = coordinator.cluster.state
            assert [str(span.blocks) for span in state.workers[first.worker_id].ready] == ["0:4"]
            await second.hold(assign_of(coordinator, second))
            await told(first, "0:2")
            await eventually(lambda: coordinator.cluster.state.pins[second.worker_id].takes_from is None)


def assign_of(coordinator: RunningCoordinator, worker: ScriptedWorker) -> Assign:
    assignment = coordinator.cluster.state.workers[worker.worker_id].assignment
    return Assign(epoch=assignment.epoch, spans=assignment.spans, reason="")


async def test_a_preview_says_what_would_follow_and_changes_nothing(
    coordinator: RunningCoordinator, admin: Http
) -> None:
    little = DeviceReport(
        device="cpu",
        precision="float32",
        n_threads=1,
        memory_bytes=2000,
        bandwidth_bytes_per_s=1e10,
        flops_per_s=1e11,
    )
    small = announcement("https://127.0.0.1:7901", device=little)
    async with joined_worker(coordinator) as first, joined_worker(coordinator, announce=small) as second:
        await add_model(coordinator)
        await told(first, "0:4")
        before = coordinator.cluster.state.pins

        async def previewed(worker: ScriptedWorker, blocks: str) -> AssignmentPreview:
            wanted = PreviewRequest(worker=worker.worker_id, model="tiny", blocks=blocks)
            answer = await admin.ask("POST", "/admin/v1/assignments/preview", wanted)
            assert answer.status == 200, answer.body
            return answer.read(AssignmentPreview)

        assert "need" in (await previewed(second, "0:4")).refusal
        lossy = await previewed(first, "1:4")
        assert lossy.refusal == ""
        assert "0:1 of tiny" in lossy.loses
        assert lossy.models[0].now is not None
        assert lossy.models[0].then is None
        assert [str(span.blocks) for span in lossy.changes[0].then] == ["1:4"]
        assert coordinator.cluster.state.pins == before


async def test_what_cant_be_is_refused_with_numbers(coordinator: RunningCoordinator, admin: Http) -> None:
    async with joined_worker(coordinator) as worker:
        await add_model(coordinator)
        for wanted, status, said in (
            ({"model": "tiny", "blocks": "0:9"}, 400, "within 0:4"),
            ({"model": "tiny", "blocks": "3:1"}, 400, "start"),
            ({"model": "other", "blocks": "0:1"}, 404, "no model"),
            ({"model": "../x", "blocks": "0:1"}, 400, "model's name"),
        ):
            answer = await admin.ask("PUT", path(worker.worker_id), json=wanted)
            assert answer.status == status, answer.body
            assert said in answer.read(ErrorAnswer).error.message
        trust = {"action": "ban", "reason": "x"}
        await admin.ask("POST", f"/admin/v1/workers/{worker.worker_id}/trust", json=trust)
        answer = await admin.ask("PUT", path(worker.worker_id), PinRequest(model="tiny", blocks="0:1"))
        assert "banned" in answer.read(ErrorAnswer).error.message
        nobody = await admin.ask("PUT", path(WorkerId("w-nobody")), PinRequest(model="tiny", blocks="0:1"))
        assert nobody.status == 404


async def test_a_pin_that_says_what_it_found_overwrites_no_move(
    coordinator: RunningCoordinator, admin: Http
) -> None:
    async with joined_worker(coordinator) as first:
        await add_model(coordinator)
        await told(first, "0:4")
        async with joined_worker(coordinator) as second:
            await second.receive(Assign)
            move = MoveRequest(model="tiny", blocks="2:4", takes_from=first.worker_id, worker=second.worker_id)
            wanted = PinRequest(model="tiny", blocks="0:4")
            for _ in range(8):
                headers = {"If-Match": (await admin.ask("GET", path(second.worker_id))).headers["ETag"]}
                moved, pinned = await asyncio.gather(
                    admin.ask("POST", "/admin/v1/assignments/move", move),
                    admin.ask("PUT", path(second.worker_id), wanted, headers=headers),
                )
                if (moved.status, pinned.status) == (200, 200):  # then the pin was there before the move
                    assert (await coordinator.repository.audit_lines(1))[0].action == "assignment_moved"
                await admin.ask("DELETE", path(second.worker_id))


async def test_pins_that_together_lose_blocks_are_refused_also_if_they_come_at_once(
    coordinator: RunningCoordinator, admin: Http
) -> None:
    async with joined_worker(coordinator) as first, joined_worker(coordinator) as second:
        await add_model(coordinator)
        await asyncio.gather(told(first, "0:4"), told(second, "0:4"))
        await eventually(lambda: coordinator.cluster.state.changed_s is None)
        wanted = PinRequest(model="tiny", blocks="0:2")
        answers = await asyncio.gather(
            *(admin.ask("PUT", path(worker.worker_id), wanted) for worker in (first, second))
        )
        assert sorted(answer.status for answer in answers) == [200, 409], [answer.body for answer in answers]


async def test_pins_of_workers_that_are_forgotten_are_shown_and_can_be_ended(
    coordinator: RunningCoordinator, admin: Http
) -> None:
    nobody = WorkerId("w-nobody")
    pin = Pin(model=ModelName("tiny"), blocks=BlockRange(0, 2), by="k")
    await coordinator.cluster.handle(AssignmentPinned(worker_id=nobody, pin=pin))
    (listed,) = (await admin.ask("GET", "/admin/v1/assignments")).read(AssignmentList).assignments
    assert (listed.worker_id, listed.state, listed.spans) == (nobody, "gone", ())
    assert listed.pin is not None
    assert "if it comes back" in listed.reason
    ended = await admin.ask("DELETE", path(nobody))
    assert ended.status == 200, ended.body
    assert ended.read(AssignmentInfo).pin is None
    assert (await admin.ask("GET", "/admin/v1/assignments")).read(AssignmentList).assignments == ()
    assert (await admin.ask("DELETE", path(nobody))).status == 404


async def test_a_reason_that_no_database_can_keep_is_refused(coordinator: RunningCoordinator, admin: Http) -> None:
    async with joined_worker(coordinator) as worker:
        await add_model(coordinator)
        wanted = {"model": "tiny", "blocks": "0:4", "reason": "a\x00b"}
        answer = await admin.ask("PUT", path(worker.worker_id), json=wanted)
        assert answer.status == 400, answer.body
        assert "NUL" in answer.read(ErrorAnswer).error.message
