"""Workers and coordinators that go away and come back, and where files come from. Tiny models, whole clusters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from transformers import PreTrainedModel

from coordinator import client_api
from coordinator.policy.sizing import span_bytes
from protocol.errors import DeadlineExceededError, ModelUnavailableError
from protocol.ids import BlockRange, FileHash, WorkerId
from tests.support.postgres import PostgresServer
from tests.support.waiting import eventually
from tests.support.whole_cluster import (
    Packed,
    WholeCluster,
    greedy_ids,
    hop_ranges,
    packed_tiny,
    whole_cluster,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
PROMPT = [5, 9, 30, 4, 77, 12]
LONG = {"max_position_embeddings": 16384, "eos_token_id": None}
"""A context for generations that are still running when something happens, and no token that ends them."""
LOST_AFTER_S = 3.0
QUICK = {"suspect_after_s": 1.5, "lost_after_s": LOST_AFTER_S}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[FileHash]:
    """Every request for a file that the coordinator answers."""
    hashes: list[FileHash] = []
    send = client_api.file

    async def file(request: web.Request) -> web.StreamResponse:
        hashes.append(FileHash(request.match_info["sha256"]))
        return await send(request)

    monkeypatch.setattr(client_api, "file", file)
    return hashes


@asynccontextmanager
async def pair(folder: Path, packed: Packed, **settings: Any) -> AsyncIterator[WholeCluster]:
    """Workers `head` with blocks 0:2 and `tail` with blocks 2:4."""
    async with whole_cluster(folder, **settings) as cluster:
        await cluster.add_model("tiny", packed)
        await cluster.join("head", "0:2")
        await cluster.join("tail", "2:4")
        await cluster.until_ready()
        yield cluster


async def check_answer(cluster: WholeCluster, whole: PreTrainedModel) -> None:
    assert await cluster.ids("tiny", PROMPT, max_tokens=8) == greedy_ids(whole, PROMPT, 8)


def epochs(cluster: WholeCluster) -> dict[WorkerId, Any]:
    workers = cluster.coordinator.cluster.state.workers
    return {worker_id: (w.assignment.epoch, w.assignment.spans) for worker_id, w in workers.items()}


async def test_a_vanished_workers_blocks_are_given_to_others_and_its_generation_goes_on(tmp_path: Path) -> None:
    packed, whole = packed_tiny(tmp_path, "llama", intermediate_size=2048, **LONG)
    n_tokens = 1400  # as many as fit beside three blocks of four, for who measured himself as the faster one
    half, all_of_it = (span_bytes(packed.model.manifest, BlockRange(0, n), "float32", 512) for n in (2, 4))
    async with whole_cluster(tmp_path, **QUICK, settle_s=1.0, placement="spread") as cluster:
        for name in ("a", "b", "c"):  # none of which can hold it all
            await cluster.join(name, memory_bytes=int((half + all_of_it) / 2 / 0.9))
        await cluster.add_model("tiny", packed)
        await cluster.until_ready()
        async with cluster.client() as client:
            pieces = client.stream("tiny", PROMPT, max_tokens=n_tokens, temperature=0.0)
            found = [(await anext(pieces)).token_id]
            lost_id = pieces.result.route[1].worker_id
            (victim,) = [m for m in cluster.members.values() if m.worker.worker_id == lost_id]
            await victim.vanish()
            found += [piece.token_id async for piece in pieces]
            assert (len(found), found[:64]) == (n_tokens, greedy_ids(whole, PROMPT, 64))
            assert pieces.result.failovers >= 1
            assert lost_id not in {stage.worker_id for stage in pieces.result.route}
            await eventually(
                lambda: cluster.coordinator.cluster.state.workers[lost_id].presence == "lost", LOST_AFTER_S + 5.0
            )
            await cluster.until_ready(within_s=10.0)
            got = await client.generate("tiny", PROMPT, max_tokens=8, temperature=0.0)
            assert list(got.token_ids) == greedy_ids(whole, PROMPT, 8)
            assert lost_id not in {stage.worker_id for stage in got.route}


async def test_a_vanished_worker_without_substitute_leaves_its_blocks_missing_until_it_is_back(
    tmp_path: Path,
) -> None:
    packed, whole = packed_tiny(tmp_path, "llama")
    async with pair(tmp_path, packed, **QUICK) as cluster:
        await cluster.members["tail"].vanish()
        # asked before the coordinator knows, it waits for another tail
        with pytest.raises((ModelUnavailableError, DeadlineExceededError), match="2:4"):
            await cluster.ids("tiny", PROMPT, max_tokens=8, timeout_s=LOST_AFTER_S)
        await cluster.join("tail", "2:4")
        await cluster.until_ready()
        await check_answer(cluster, whole)


async def test_a_coordinator_that_restarts_disturbs_no_generation_and_changes_no_assignment(tmp_path: Path) -> None:
    packed, whole = packed_tiny(tmp_path, "llama", **LONG)
    n_tokens = 3000
    async with pair(tmp_path, packed) as cluster:
        before = epochs(cluster)
        async with cluster.client() as client:
            async with client.stream("tiny", PROMPT, max_tokens=n_tokens, temperature=0.0) as pieces:
                found = [(await anext(pieces)).token_id]
                await cluster.stop_coordinator()
                found += [(await anext(pieces)).token_id for _ in range(200)]  # nobody coordinates now
                await cluster.start_coordinator()
                assert cluster.members["tail"].worker.data_plane.n_sessions == 1  # it runs on
                found += [piece.token_id async for piece in pieces]
                assert pieces.result.finish_reason == "length"
            assert len(found) == n_tokens
            assert found[:64] == greedy_ids(whole, PROMPT, 64)
            await cluster.until_ready(within_s=20.0)
            assert epochs(cluster) == before
            got = await client.generate("tiny", PROMPT, max_tokens=8, temperature=0.0)
            assert list(got.token_ids) == found[:8]
        await check_answer(cluster, whole)


async def test_a_restarted_worker_keeps_identity_blocks_and_files(tmp_path: Path, served: list[FileHash]) -> None:
    packed, whole = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        first = await cluster.join("worker")
        await cluster.until_ready()
        blocks = [status.blocks for status in first.statuses]
        assert sorted(served) == sorted({file.sha256 for file in packed.model.manifest.all_files()})
        await first.vanish()
        served.clear()
        again = await cluster.join("worker")
        await cluster.until_ready()
        assert again.worker.worker_id == first.worker.worker_id
        assert [status.blocks for status in again.statuses] == blocks
        assert served == []
        await check_answer(cluster, whole)


async def test_a_second_worker_takes_all_files_from_the_first(tmp_path: Path, served: list[FileHash]) -> None:
    packed, whole = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        first = await cluster.join("first", "0:4")
        await cluster.until_ready()
        await eventually(lambda: cluster.coordinator.cluster.state.workers[first.worker.worker_id].files)
        second = await cluster.join("second", "0:4")
        await cluster.until_ready()
        # one copy in all, every file once
        assert sorted(served) == sorted({file.sha256 for file in packed.model.manifest.all_files()})
        assert set(second.worker.holdings.files) == set(first.worker.holdings.files)
        await first.stop()
        got = await cluster.generate("tiny", PROMPT, max_tokens=8)
        assert list(got.token_ids) == greedy_ids(whole, PROMPT, 8)
        assert hop_ranges(got) == ["0:4"]


async def test_the_whole_path_with_postgresql(tmp_path: Path, postgres_server: PostgresServer) -> None:
    packed, whole = packed_tiny(tmp_path, "llama")
    url = await asyncio.to_thread(postgres_server.new_database)
    async with pair(tmp_path, packed, database_url=url) as cluster:
        before = epochs(cluster)
        assert cluster.coordinator.repository.kind == "postgresql"
        await check_answer(cluster, whole)
        await cluster.stop_coordinator()
        await cluster.start_coordinator()
        assert epochs(cluster) == before
        await cluster.until_ready(within_s=20.0)
        assert epochs(cluster) == before
        await check_answer(cluster, whole)
