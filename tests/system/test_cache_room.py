"""Workers with memory for a few positions only: gone round, or refused at once with the numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import ContextExceededError
from protocol.ids import ModelName
from tests.support.waiting import eventually
from tests.support.whole_cluster import WholeCluster, packed_tiny, whole_cluster

PROMPT = [5, 9, 30, 4, 77, 12]


def room_of(cluster: WholeCluster, name: str) -> int | None:
    worker = cluster.coordinator.cluster.state.workers[cluster.members[name].worker.worker_id]
    return None if worker.heartbeat is None else worker.heartbeat.longest_sessions.get(ModelName("tiny"))


async def test_a_session_that_no_cache_can_hold_is_refused_at_once_and_one_that_some_can_goes_there(
    tmp_path: Path,
) -> None:
    packed, _ = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        await cluster.join("small", files=packed, kv_memory_bytes=2000)
        await cluster.until_ready()
        await eventually(lambda: room_of(cluster, "small") is not None)
        room = room_of(cluster, "small")
        assert room is not None
        assert f"room for {room:,} positions" in cluster.members["small"].lines[-1]
        notices: list[str] = []
        with pytest.raises(ContextExceededError, match=rf"8 positions, .* there is room for {room} on ") as caught:
            await cluster.generate("tiny", PROMPT, max_tokens=2, on_notice=notices.append)
        assert (notices, caught.value.status) == ([], 400)
        await cluster.join("large", "0:4", files=packed)
        await eventually(lambda: room_of(cluster, "large") is not None)
        done = await cluster.generate("tiny", PROMPT, max_tokens=2)
        assert (len(done.token_ids), done.failovers) == (2, 0)
