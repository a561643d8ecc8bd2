from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp

from coordinator.app import RunningCoordinator, utc_now_s
from protocol.control_messages import Assign
from protocol.ids import FileHash
from protocol.manifest import ModelFile
from tests.support.coordinators import join_secret_of, running_coordinator
from tests.support.joining import WorkerKey, enrolled
from tests.support.scripted_worker import announcement, connected_worker, joined_worker
from worker.downloads import FileSource
from worker.enrolment import CredentialsHolder, enrol
from worker.identity import load_identity
from worker.sources import Sources

HELD = FileHash("a" * 64)
FILE = ModelFile(name="block-0", sha256=HELD, size_bytes=10)
COORDINATOR = "the coordinator"


@asynccontextmanager
async def asking(tmp_path: Path, coordinator: RunningCoordinator) -> AsyncIterator[Sources]:
    """The sources of a worker that has enrolled."""
    state = tmp_path / "asking"
    state.mkdir()
    identity = load_identity(state)
    credentials = await enrol(identity, [coordinator.url], join_secret_of(coordinator), utc_now_s)
    async with aiohttp.ClientSession() as http:
        yield Sources(http, CredentialsHolder(credentials), identity.worker_id, random.Random(0))


async def named(sources: Sources) -> list[FileSource]:
    return list((await sources.of([HELD]))[HELD])


async def test_other_workers_come_first_and_the_coordinator_last(tmp_path: Path) -> None:
    async with (
        running_coordinator(tmp_path) as coordinator,
        joined_worker(coordinator, announce=announcement(files=(HELD,))) as worker,
        asking(tmp_path, coordinator) as sources,
    ):
        await worker.receive(Assign)
        found = await named(sources)
        assert [source.name for source in found] == [worker.worker_id, COORDINATOR]
        assert [source.worker_id for source in found] == [worker.worker_id, None]


async def test_a_bad_source_is_reported_once_and_named_no_more(tmp_path: Path) -> None:
    async with (
        running_coordinator(tmp_path) as coordinator,
        joined_worker(coordinator, announce=announcement(files=(HELD,))) as worker,
        asking(tmp_path, coordinator) as sources,
    ):
        await worker.receive(Assign)
        bad = (await named(sources))[0]
        for _ in range(3):
            await sources.report_bad(bad, FILE)
        assert [source.name for source in await named(sources)] == [COORDINATOR]
        lines = await coordinator.repository.audit_lines()
        assert [line.action for line in lines].count("bad_source") == 1


async def test_the_coordinator_itself_is_reported_to_nobody(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, asking(tmp_path, coordinator) as sources:
        (itself,) = await named(sources)
        await sources.report_bad(itself, FILE)
        assert [source.name for source in await named(sources)] == [COORDINATOR]


async def test_with_the_coordinator_away_a_bad_source_is_remembered_here(tmp_path: Path, own_port: int) -> None:
    key, announce = WorkerKey(), announcement(files=(HELD,))
    async with AsyncExitStack() as stack:
        async with running_coordinator(tmp_path, listen_port=own_port) as coordinator:
            grant = await enrolled(coordinator, key)
            sources = await stack.enter_async_context(asking(tmp_path, coordinator))
            async with connected_worker(coordinator, key, grant, announce=announce) as worker:
                await worker.receive(Assign)
                bad = (await named(sources))[0]
        await sources.report_bad(bad, FILE)
        async with (
            running_coordinator(tmp_path, listen_port=own_port) as again,
            connected_worker(again, key, grant, announce=announce) as worker,
        ):
            await worker.receive(Assign)
            assert [source.name for source in await named(sources)] == [COORDINATOR]
            assert "bad_source" not in [line.action for line in await again.repository.audit_lines()]
