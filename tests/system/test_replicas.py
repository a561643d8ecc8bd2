"""More replicas of a model while it is used: workers grow, and nobody who asks notices."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from protocol.ids import ModelName
from tests.support.waiting import eventually
from tests.support.whole_cluster import WholeCluster, greedy_ids, packed_tiny, whole_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
PROMPT = [5, 9, 30, 4, 77, 12]


def ready_blocks(cluster: WholeCluster) -> list[str]:
    return sorted(
        str(span.blocks)
        for worker in cluster.coordinator.cluster.state.workers.values()
        if not worker.assignment.leaving
        for span in worker.ready
    )


async def test_workers_grow_into_replicas_while_generations_go_on_and_one_may_die(tmp_path: Path) -> None:
    packed, whole = packed_tiny(tmp_path, "llama")
    expected = greedy_ids(whole, PROMPT, 8)
    async with whole_cluster(tmp_path, settle_s=1.0, placement="spread") as cluster:
        for name in ("one", "two"):
            await cluster.join(name)
        await cluster.add_model("tiny", packed)
        await cluster.until_ready()
        assert ready_blocks(cluster) == ["0:2", "2:4"]
        await cluster.coordinator.catalogue.change("tiny", n_replicas=2)
        async with cluster.client() as client, asyncio.timeout(60.0):
            while ready_blocks(cluster) != ["0:4", "0:4"]:
                got = await client.generate("tiny", PROMPT, max_tokens=8, temperature=0.0)
                assert list(got.token_ids) == expected
        assert cluster.coordinator.cluster.state.models[ModelName("tiny")].n_replicas == 2
        await cluster.members["one"].vanish()
        gone = cluster.members["one"].worker.worker_id
        await eventually(lambda: not cluster.coordinator.cluster.state.workers[gone].is_routable, 5.0)
        assert await cluster.ids("tiny", PROMPT, max_tokens=8) == expected
