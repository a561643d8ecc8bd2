"""Every worker drained and started again, one after the other, then the coordinator, while clients generate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from client.api import Client
from protocol.cluster_rest import WorkerInfo
from protocol.ids import WorkerId
from tests.support.coordinators import http_session, key_of
from tests.support.waiting import eventually
from tests.support.whole_cluster import Member, WholeCluster, hop_ranges, packed_tiny, whole_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
PROMPT = [5, 9, 30, 4, 77, 12]
N_TOKENS = 60
N_STREAMS = 2
LONG = {"max_position_embeddings": 4096, "eos_token_id": None}
ASK = {"max_tokens": N_TOKENS, "temperature": 0.8, "seed": 3}


@dataclass
class Load:
    """Generations one after the other, each of which has to be the unbroken one."""

    unbroken: tuple[int, ...]
    n_done: int = 0
    n_failovers: int = 0
    notices: list[str] = field(default_factory=list)
    is_over: bool = False

    async def run(self, client: Client) -> None:
        while not self.is_over:
            async with client.stream("tiny", PROMPT, on_notice=self.notices.append, **ASK) as pieces:
                found = [piece.token_id async for piece in pieces]
            assert tuple(found) == self.unbroken
            self.n_failovers += pieces.result.failovers
            self.n_done += 1

    async def more(self, n: int = N_STREAMS) -> None:
        """Wait until so many more have ended."""
        wanted = self.n_done + n
        await eventually(lambda: self.n_done >= wanted, 60.0)


@asynccontextmanager
async def loaded(cluster: WholeCluster) -> AsyncIterator[Load]:
    """The cluster under load; at the end nothing may have failed."""
    async with cluster.client() as client, asyncio.TaskGroup() as tasks:
        load = Load((await client.generate("tiny", PROMPT, **ASK)).token_ids)
        for _ in range(N_STREAMS):
            tasks.create_task(load.run(client))
        await load.more()
        yield load
        await load.more()
        load.is_over = True


async def drained(cluster: WholeCluster, member: Member) -> WorkerInfo:
    """What `coord worker drain` has answered, once the worker has left."""
    worker_id: WorkerId = member.worker.worker_id
    async with http_session(cluster.coordinator, key_of(cluster.coordinator, "admin")) as http:
        answer = await http.ask("POST", f"/admin/v1/workers/{worker_id}/drain")
    assert answer.status == 200
    await member.ended()
    return answer.read(WorkerInfo)


async def test_a_rolling_restart_under_load_fails_no_generation(tmp_path: Path) -> None:
    packed, _ = packed_tiny(tmp_path, "llama", **LONG)
    async with whole_cluster(tmp_path, settle_s=0.2) as cluster:
        await cluster.add_model("tiny", packed)
        blocks = {"head-a": "0:2", "head-b": "0:2", "tail-a": "2:4", "tail-b": "2:4"}
        for name, span in blocks.items():
            await cluster.join(name, span, files=packed)
        await cluster.until_ready()
        async with loaded(cluster) as load:
            for name, span in blocks.items():
                await drained(cluster, cluster.members[name])
                await cluster.join(name, span)
                await cluster.until_ready()
            await cluster.stop_coordinator()
            await cluster.start_coordinator()
            await cluster.until_ready()
    print(load.n_done, "generations,", load.n_failovers, "failovers", load.notices)  # noqa: T201


@pytest.mark.parametrize("is_stopped", [False, True], ids=["drained", "stopped"])
async def test_a_worker_that_leaves_serves_until_another_has_loaded_its_blocks(
    tmp_path: Path, is_stopped: bool
) -> None:
    packed, _ = packed_tiny(tmp_path, "llama", **LONG)
    async with whole_cluster(tmp_path, settle_s=0.2) as cluster:
        await cluster.add_model("tiny", packed)
        head = await cluster.join("head", "0:2", files=packed)
        await cluster.join("tail", "2:4", files=packed)
        await cluster.until_ready()
        await cluster.members["tail"].vanish()
        await cluster.join("tail", files=packed)  # with what it holds, and free to hold more
        await cluster.until_ready()
        async with loaded(cluster) as load:
            if is_stopped:
                await head.stop()
            else:
                info = await drained(cluster, head)
                assert info.state == "draining"
                assert "serves on until blocks 0:2 of tiny are ready on" in info.reason
        assert not [notice for notice in load.notices if notice.startswith("waiting")]
        assert hop_ranges(await cluster.generate("tiny", PROMPT, max_tokens=1)) == ["0:4"]
