"""Three workers that do as tests say, for whoever watches them in a browser.

async with small_cluster(tmp_path) as small, dashboard(browser, small.coordinator) as page:
    await small.last.aclose()
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from coordinator.app import RunningCoordinator
from coordinator.policy.views import model_info
from protocol.control_messages import Assign, EndSessions, Heartbeat
from protocol.ids import BlockRange, ModelName, SessionId, WorkerId
from tests.support.coordinators import running_coordinator
from tests.support.scripted_worker import ScriptedWorker, announcement, joined_worker
from tests.support.stored_model import add_model
from tests.support.waiting import eventually

TINY = ModelName("tiny")
N_BLOCKS = 12
HOSTS = {"attic": "0:5", "cellar": "5:9", "garage": "9:12"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Small:
    """A coordinator with one model and three workers, one of which can be killed."""

    coordinator: RunningCoordinator
    workers: dict[str, ScriptedWorker]
    last: AsyncExitStack
    """Closing it is the end of `garage`."""
    ended: list[SessionId]
    """Sessions that workers were told to end."""


@asynccontextmanager
async def small_cluster(folder: Path) -> AsyncIterator[Small]:
    patient = {"suspect_after_s": 600.0, "failover_after_s": 600.0, "lost_after_s": 1200.0}
    async with running_coordinator(folder, **patient) as coordinator:
        await add_model(coordinator, n_blocks=N_BLOCKS)
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            workers: dict[str, ScriptedWorker] = {}
            last = await stack.enter_async_context(AsyncExitStack())
            for hostname, blocks in HOSTS.items():
                start, end = map(int, blocks.split(":"))
                said = announcement(hostname=hostname, pinned_blocks=BlockRange(start, end))
                where = last if hostname == "garage" else stack
                workers[hostname] = await where.enter_async_context(joined_worker(coordinator, announce=said))
            ended: list[SessionId] = []
            serving = [tasks.create_task(serve(worker, ended)) for worker in workers.values()]
            await eventually(lambda: model_info(coordinator.cluster.state, TINY, 0.0).state == "ready")
            await workers["attic"].send(beat({workers["cellar"].worker_id: 0.0123}))
            yield Small(coordinator=coordinator, workers=workers, last=last, ended=ended)
            for task in serving:
                task.cancel()


async def serve(worker: ScriptedWorker, ended: list[SessionId]) -> None:
    """Hold whatever is assigned, until the socket ends."""
    while (said := await worker.next()) is not None:
        if isinstance(said, Assign):
            await worker.hold(said)
        elif isinstance(said, EndSessions):
            ended.extend(said.session_ids)


@asynccontextmanager
async def spare_worker(small: Small) -> AsyncIterator[None]:
    """One that may hold whatever others do, and never has it ready."""
    said = announcement(hostname="spare")
    async with joined_worker(small.coordinator, announce=said) as worker:
        await eventually(lambda: worker.worker_id in small.coordinator.cluster.state.workers)
        yield


def beat(round_trips_s: dict[WorkerId, float]) -> Heartbeat:
    return Heartbeat(
        n_sessions=2,
        n_queued=0,
        free_kv_bytes=10**8,
        decode_s_per_block=0.001,
        prefill_s_per_token_block=0.0001,
        round_trips_s=round_trips_s,
    )
