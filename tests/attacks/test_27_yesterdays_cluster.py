"""Class 27. Defences: the lease's epoch fences every write, an assignment's epoch every order and every report."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from coordinator.policy.state import WorkerRecord
from protocol.control_messages import Assign, SpanReport, SpanStatus
from protocol.coordinator_errors import LeaseError
from protocol.errors import BrigadeError
from protocol.ids import BlockRange, ModelName, Revision
from tests.coordinator.test_lease import side
from tests.support.coordinators import running_coordinator
from tests.support.joining import WorkerKey, enrolled
from tests.support.scripted_worker import ScriptedWorker, announcement, connected_worker, joined_worker
from tests.support.stored_model import add_model
from tests.support.waiting import eventually
from worker.holdings import Holdings


async def test_a_second_coordinator_doesnt_start_and_an_old_one_writes_nothing(
    tmp_path: Path, database_url: str
) -> None:
    """Fails if two may serve one folder or one database, or one that lost its lease isn't fenced off."""
    async with running_coordinator(tmp_path):
        with pytest.raises(BrigadeError):
            async with running_coordinator(tmp_path):
                pass
    async with side(database_url) as old, side(database_url) as new:
        assert await old.take("old")
        assert await new.take("new")
        with pytest.raises(LeaseError):
            await old.write("k")
        assert await new.repository.api_keys() == ()
        assert old.lease.lost.is_set()


def test_a_worker_takes_no_order_that_is_older_than_its_last() -> None:
    """Fails if orders count by their arrival: an old coordinator, or a late message, would take blocks away."""
    holdings = Holdings()
    assert holdings.assign(Assign(epoch=7, spans=(), reason="now"))
    for epoch in (7, 6, 0, -1):
        assert not holdings.assign(Assign(epoch=epoch, spans=(), reason="yesterday"))
    assert (holdings.epoch, holdings.reason) == (7, "now")


async def ready_in(worker: ScriptedWorker, assign: Assign, epoch: int) -> None:
    spans = tuple(
        SpanStatus(model=span.model, revision=span.revision, blocks=span.blocks, state="ready", reason="")
        for span in assign.spans
    )
    await worker.send(SpanReport(epoch=epoch, spans=spans))
    await worker.beat()


async def test_reports_of_another_epoch_say_nothing_of_this_one(tmp_path: Path) -> None:
    """Fails if a report is believed whatever it answers: routes would go where nothing is loaded."""
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        said = announcement(pinned_model=ModelName("tiny"), pinned_blocks=BlockRange(0, 4))
        async with joined_worker(coordinator, announce=said) as worker:
            while not (assign := await worker.receive(Assign)).spans:
                pass

            def record() -> WorkerRecord:
                return coordinator.cluster.state.workers[worker.worker_id]

            for epoch in (assign.epoch - 1, assign.epoch + 1, 2**40):
                await ready_in(worker, assign, epoch)
            await eventually(lambda: record().heartbeat is not None)
            assert not [status for status in record().reported if status.state == "ready"]
            await ready_in(worker, assign, assign.epoch)
            await eventually(lambda: [status for status in record().reported if status.state == "ready"])


async def test_a_database_of_yesterday_goes_on_from_the_workers_epochs(tmp_path: Path) -> None:
    """Fails if epochs begin where the restored database stands: workers would refuse every order, as stale."""
    key = WorkerKey()
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        grant = await enrolled(coordinator, key)
    shutil.copytree(tmp_path / "state", tmp_path / "yesterday")
    async with (
        running_coordinator(tmp_path) as coordinator,
        connected_worker(coordinator, key, grant) as worker,
    ):
        epoch = (await worker.receive(Assign)).epoch
    shutil.rmtree(tmp_path / "state")
    shutil.copytree(tmp_path / "yesterday", tmp_path / "state")
    async with running_coordinator(tmp_path) as coordinator:
        gone = SpanStatus(
            model=ModelName("gone"), revision=Revision("c" * 64), blocks=BlockRange(0, 2), state="ready", reason=""
        )
        said = announcement(epoch=epoch + 5, spans=(gone,))
        async with connected_worker(coordinator, key, grant, announce=said) as worker:
            assert (await worker.receive(Assign)).epoch > epoch + 5


async def test_no_worker_can_use_up_the_epochs(tmp_path: Path) -> None:
    """Fails if any number is gone on from: the next one would fit into no column."""
    key = WorkerKey()
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        grant = await enrolled(coordinator, key)
        for epoch in (2**63 - 1, 2**62, -1):
            async with connected_worker(coordinator, key, grant, announce=announcement(epoch=epoch)) as worker:
                await eventually(lambda: key.worker_id in coordinator.cluster.state.workers)
                assert coordinator.cluster.state.workers[key.worker_id].assignment.epoch < 2**54
                await worker.beat()
