"""A fast worker that joins later: the others' blocks change under those who generate, and nobody notices."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from protocol.cluster_rest import ClusterStatus
from protocol.errors import ConflictError
from protocol.plan_rest import PlanInfo
from protocol.rest import ErrorAnswer
from tests.support.coordinators import http_session, key_of
from tests.support.waiting import eventually
from tests.support.whole_cluster import Member, Packed, WholeCluster, greedy_ids, packed_tiny, whole_cluster
from worker.engine_core import EngineCore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
PROMPT = [5, 9, 30, 4, 77, 12]
N_TOKENS = 16
ROOM_FOR_THREE_OF_FOUR_BLOCKS = 156_000
SLOW_S = 0.01


async def slow_down(member: Member) -> None:
    """Have the worker take so much longer for each of its blocks, as it then measures itself."""

    def wait(*_args: Any) -> None:
        time.sleep(SLOW_S)

    def prepare(core: EngineCore) -> None:
        for stage, _ in core.spans.values():
            for layer in stage._model.model.layers:
                layer.register_forward_pre_hook(wait)

    await member.worker.engine._link.post(prepare)


def ready_ranges(cluster: WholeCluster, *names: str) -> list[str]:
    workers = cluster.coordinator.cluster.state.workers
    records = [workers[cluster.members[name].worker.worker_id] for name in names]
    return sorted(str(span.blocks) for worker in records for span in worker.ready if not worker.assignment.leaving)


async def slow_pair_and_a_fast_newcomer(cluster: WholeCluster, packed: Packed, expected: list[int]) -> None:
    for name in ("one", "two"):
        await cluster.join(name, memory_bytes=ROOM_FOR_THREE_OF_FOUR_BLOCKS)
    await cluster.add_model("tiny", packed)  # only now: who is there alone for long would get as much as fits
    await cluster.until_ready()
    assert ready_ranges(cluster, "one", "two") == ["0:2", "2:4"]
    for name in ("one", "two"):
        await slow_down(cluster.members[name])
    assert await cluster.ids("tiny", PROMPT, max_tokens=N_TOKENS) == expected
    await cluster.join("fast", memory_bytes=ROOM_FOR_THREE_OF_FOUR_BLOCKS)
    await cluster.until_ready()


async def test_a_fast_worker_that_joins_changes_what_others_hold_while_generations_go_on(tmp_path: Path) -> None:
    packed, whole = packed_tiny(tmp_path, "llama")
    expected = greedy_ids(whole, PROMPT, N_TOKENS)
    async with whole_cluster(tmp_path, settle_s=1.0, replan_every_s=1.0) as cluster:
        await slow_pair_and_a_fast_newcomer(cluster, packed, expected)
        async with cluster.client() as client, asyncio.timeout(60.0):
            while ready_ranges(cluster, "one", "two") == ["0:2", "2:4"]:
                got = await client.generate("tiny", PROMPT, max_tokens=N_TOKENS, temperature=0.0)
                assert list(got.token_ids) == expected
        await cluster.until_ready()
        assert ready_ranges(cluster, "fast")[0] in ("0:3", "1:4"), "it has what it can hold, the head or not"
        assert await cluster.ids("tiny", PROMPT, max_tokens=N_TOKENS) == expected
        lines = await cluster.coordinator.repository.audit_lines()
        assert "replanned" in [line.action for line in lines]


async def test_an_operator_moves_blocks_where_the_coordinator_wouldnt(tmp_path: Path) -> None:
    packed, whole = packed_tiny(tmp_path, "llama")
    expected = greedy_ids(whole, PROMPT, N_TOKENS)
    async with whole_cluster(tmp_path, settle_s=1.0, replan="off") as cluster:
        await slow_pair_and_a_fast_newcomer(cluster, packed, expected)
        async with http_session(cluster.coordinator, key_of(cluster.coordinator, "admin")) as http:
            outlook = (await http.ask("GET", "/admin/v1/plan")).read(PlanInfo).outlook
            assert "coord plan --apply" in outlook
            answer = await http.ask("POST", "/admin/v1/plan")
            assert answer.status == 200
            assert "Placed anew, 0 of " in answer.read(PlanInfo).outlook
            assert (await http.ask("GET", "/admin/v1/status")).read(ClusterStatus).moving
            again = await http.ask("POST", "/admin/v1/plan")
            assert again.status == ConflictError.status
            assert "workers are being moved already" in again.read(ErrorAnswer).error.message
            async with asyncio.timeout(60.0):
                while cluster.coordinator.cluster.state.moving is not None:
                    assert await cluster.ids("tiny", PROMPT, max_tokens=N_TOKENS) == expected
        assert ready_ranges(cluster, "one", "two") != ["0:2", "2:4"]


async def test_a_move_that_a_restart_of_the_coordinator_cuts_short_goes_on(tmp_path: Path) -> None:
    packed, whole = packed_tiny(tmp_path, "llama")
    expected = greedy_ids(whole, PROMPT, N_TOKENS)
    async with whole_cluster(tmp_path, settle_s=1.0, replan="off") as cluster:
        await slow_pair_and_a_fast_newcomer(cluster, packed, expected)
        async with http_session(cluster.coordinator, key_of(cluster.coordinator, "admin")) as http:
            assert (await http.ask("POST", "/admin/v1/plan")).status == 200
        moving = cluster.coordinator.cluster.state.moving
        assert moving is not None
        await cluster.stop_coordinator()
        await cluster.start_coordinator()
        cut = cluster.coordinator.cluster.state.moving
        assert cut is not None
        assert (cut.is_cut, cut.target) == (True, moving.target)
        await eventually(lambda: cluster.coordinator.cluster.state.moving is None, deadline_s=60.0)
        await cluster.until_ready()
        state = cluster.coordinator.cluster.state
        assert {w: state.workers[w].assignment.spans for w in moving.target} == moving.target
        assert await cluster.ids("tiny", PROMPT, max_tokens=N_TOKENS) == expected
