"""What operators take back while it is used: the streams of a revoked key end with their reason, and no others."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.streams import WatchedStream
from protocol.api_key import api_key_from_text
from protocol.errors import UnauthenticatedError
from tests.support.coordinators import key_of
from tests.support.waiting import eventually
from tests.support.whole_cluster import WholeCluster, packed_tiny, whole_cluster

pytestmark = pytest.mark.timeout(120)
LONG = {"max_position_embeddings": 4096, "eos_token_id": None}
ANSWER: dict[str, Any] = {"max_tokens": 4000, "temperature": 0.0}
WITHIN_S = 5.0


async def two_workers(cluster: WholeCluster, tmp_path: Path) -> None:
    packed, _ = await asyncio.to_thread(packed_tiny, tmp_path, "llama", **LONG)
    await cluster.add_model("tiny", packed)
    await cluster.join("head", "0:2", files=packed)
    await cluster.join("tail", "2:4", files=packed)
    await cluster.until_ready()


async def ends(stream: WatchedStream) -> None:
    with pytest.raises(UnauthenticatedError, match="revoked"):
        async with asyncio.timeout(WITHIN_S):
            await stream.finished()


async def test_a_key_that_is_revoked_ends_its_streams_and_no_others(tmp_path: Path) -> None:
    async with whole_cluster(tmp_path) as cluster:
        await two_workers(cluster, tmp_path)
        key = await cluster.new_key()
        async with cluster.client(key) as theirs, cluster.client() as others, asyncio.TaskGroup() as tasks:
            stream = WatchedStream(theirs.stream("tiny", [5, 6, 7], **ANSWER), tasks)
            other = WatchedStream(others.stream("tiny", [8, 6, 7], **ANSWER), tasks)
            await stream.reached(4)
            await other.reached(4)
            await cluster.admin("DELETE", f"/admin/v1/keys/{key.key_id}")
            await ends(stream)
            await other.reached(len(other.token_ids) + 4)
            assert other.result.failovers == 0
            first = api_key_from_text(key_of(cluster.coordinator, "client"))
            await cluster.admin("DELETE", f"/admin/v1/keys/{first.key_id}")
            await ends(other)
        await eventually(lambda: not any(m.worker.data_plane.n_sessions for m in cluster.members.values()))


async def test_workers_that_come_back_are_told_of_keys_that_were_revoked_meanwhile(tmp_path: Path) -> None:
    async with whole_cluster(tmp_path) as cluster:
        await two_workers(cluster, tmp_path)
        key = await cluster.new_key()
        async with cluster.client(key) as theirs, asyncio.TaskGroup() as tasks:
            stream = WatchedStream(theirs.stream("tiny", [5, 6, 7], **ANSWER), tasks)
            await stream.reached(4)
            await cluster.coordinator.repository.revoke_api_key(key.key_id, datetime.now(UTC))
            await cluster.stop_coordinator()
            await stream.reached(len(stream.token_ids) + 4)
            await cluster.start_coordinator()
            await cluster.until_ready()
            await ends(stream)
