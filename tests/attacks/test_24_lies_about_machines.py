"""THREATS.md 24: lies about memory, speed, range and precision; zeros and NaN; workers that are slow on purpose."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import ceil
from pathlib import Path

import aiohttp
import msgspec
import pytest
import torch

from benchmarks.streams import WatchedStream
from coordinator.app import RunningCoordinator
from coordinator.policy.breakers import OPENS_AT
from coordinator.policy.state import WorkerRecord
from coordinator.policy.trust import TrustRecord
from protocol.control_messages import Announce, Assign, DeviceReport, Heartbeat, SpanReport, SpanStatus
from protocol.ids import BlockRange, ModelName, WorkerId
from protocol.rest import ErrorAnswer, RouteGrant, RouteRequest
from tests.attacks.test_24_lies_about_work import auditing, level
from tests.support.cheating import Cheat, cheat, held_up, round_weights
from tests.support.coordinators import PATIENT, Answer, http_session, key_of, running_coordinator
from tests.support.scripted_worker import ScriptedWorker, announcement, joined_worker
from tests.support.stored_model import add_model
from tests.support.waiting import eventually
from tests.support.whole_cluster import Member, WholeCluster, greedy_ids, packed_tiny, whole_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
PROMPT = [5, 9, 30, 4, 77, 12]
HONEST = announcement().device
BEST = msgspec.structs.replace(HONEST, memory_bytes=2**44, bandwidth_bytes_per_s=1e13, flops_per_s=1e16)
"""What no machine has, and what looks like one nevertheless."""


def says(port: int, device: DeviceReport, blocks: BlockRange | None = None) -> Announce:
    pinned = {} if blocks is None else {"pinned_model": ModelName("tiny"), "pinned_blocks": blocks}
    return announcement(f"https://127.0.0.1:{port}", device=device, **pinned)


async def given(worker: ScriptedWorker) -> Assign:
    while not (assign := await worker.receive(Assign)).spans:
        pass
    return assign


async def asked(coordinator: RunningCoordinator) -> Answer:
    async with http_session(coordinator, key_of(coordinator, "client")) as http:
        return await http.ask("POST", "/v1/routes", RouteRequest(model="tiny", n_prompt_tokens=3, max_tokens=5))


async def routed(coordinator: RunningCoordinator) -> set[WorkerId]:
    answer = await asked(coordinator)
    assert answer.status == 200, answer.body
    return {hop.worker_id for hop in answer.read(RouteGrant).hops}


# ------------------------------------------------------------------ memory, speed, range


@pytest.mark.parametrize(
    "lie",
    [
        {"memory_bytes": 2**60},
        {"memory_bytes": -1},
        {"bandwidth_bytes_per_s": float("inf")},
        {"bandwidth_bytes_per_s": -1.0},
        {"flops_per_s": float("nan")},
    ],
    ids=str,
)
async def test_what_no_device_has_is_not_believed(tmp_path: Path, lie: dict[str, float]) -> None:
    """Fails if numbers that placement divides by, and adds up, are taken as they come."""
    async with running_coordinator(tmp_path) as coordinator:
        async with joined_worker(coordinator, announce=says(7001, msgspec.structs.replace(HONEST, **lie))) as liar:
            assert await liar.closed() == aiohttp.WSCloseCode.POLICY_VIOLATION
        assert coordinator.cluster.state.workers[liar.worker_id].device is None


async def test_memory_that_isnt_there_keeps_no_blocks_from_others(tmp_path: Path) -> None:
    """Fails if who says that it can hold a whole model is given it alone, or is waited for."""
    async with running_coordinator(tmp_path, settle_s=0.1) as coordinator:
        await add_model(coordinator)
        async with (
            joined_worker(coordinator, announce=says(7001, BEST)) as liar,
            joined_worker(coordinator, announce=says(7002, HONEST)) as honest,
        ):
            assert await given(liar)
            await honest.hold(await given(honest))
            await eventually(lambda: coordinator.cluster.state.workers[honest.worker_id].ready)
            assert await routed(coordinator) == {honest.worker_id}


async def test_measured_times_replace_what_was_announced(tmp_path: Path) -> None:
    """Fails if a worker is as fast as it said when it joined, for ever."""
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        whole = BlockRange(0, 4)
        async with (
            joined_worker(coordinator, announce=says(7001, BEST, whole)) as liar,
            joined_worker(coordinator, announce=says(7002, HONEST, whole)) as honest,
        ):
            for worker in (liar, honest):
                await worker.hold(await given(worker))

            def records() -> list[WorkerRecord]:
                return [coordinator.cluster.state.workers[worker.worker_id] for worker in (liar, honest)]

            await eventually(lambda: all(worker.ready for worker in records()))
            assert await routed(coordinator) == {liar.worker_id}
            await liar.send(measured(0.5))
            await honest.send(measured(0.01))
            await eventually(lambda: all(worker.block_s for worker in records()))
            assert await routed(coordinator) == {honest.worker_id}


def measured(decode_s_per_block: float) -> Heartbeat:
    return Heartbeat(
        n_sessions=0,
        n_queued=0,
        free_kv_bytes=10**8,
        decode_s_per_block=decode_s_per_block,
        prefill_s_per_token_block=0.0,
    )


async def test_blocks_that_nobody_gave_it_are_not_a_workers_to_serve(tmp_path: Path) -> None:
    """Fails if a worker can have routes, and prompts, come to it by saying that it has other blocks too."""
    async with running_coordinator(tmp_path) as coordinator:
        model = await add_model(coordinator)
        async with joined_worker(coordinator, announce=says(7001, BEST, BlockRange(0, 2))) as liar:
            assign = await given(liar)
            assert [span.blocks for span in assign.spans] == [BlockRange(0, 2)]

            def ready(start: int, end: int) -> SpanStatus:
                return SpanStatus(
                    model=ModelName("tiny"),
                    revision=model.revision,
                    blocks=BlockRange(start, end),
                    state="ready",
                    reason="",
                )

            for spans in ((ready(0, 4),), (ready(0, 2), ready(2, 4)), (ready(0, 2), ready(0, 4))):
                await liar.send(SpanReport(epoch=assign.epoch, spans=spans))
                await liar.beat()
            await eventually(lambda: coordinator.cluster.state.workers[liar.worker_id].heartbeat is not None)
            reported = coordinator.cluster.state.workers[liar.worker_id].reported
            assert {status.blocks for status in reported} <= {BlockRange(0, 2)}
            answer = await asked(coordinator)
            assert answer.status == 503
            assert "2:4" in answer.read(ErrorAnswer).error.message


# ------------------------------------------------------------------ a worker that says ready and isn't


async def test_who_says_ready_and_is_not_costs_no_client_an_answer_and_loses_its_routes(tmp_path: Path) -> None:
    """Fails if a worker's word weighs more than that of clients, who tell of whom they can't even dial, too."""
    packed, whole = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path, settle_s=0.3, **PATIENT) as cluster:
        await cluster.add_model("tiny", packed)
        await cluster.join("a", "0:4")
        await cluster.until_ready()
        said = says(1, BEST, BlockRange(0, 4))  # nobody listens on that port
        async with joined_worker(cluster.coordinator, announce=said) as liar:
            await liar.hold(await given(liar))
            await eventually(lambda: cluster.coordinator.cluster.state.workers[liar.worker_id].ready)
            assert await routed(cluster.coordinator) == {liar.worker_id}
            for n_failovers in (*[1] * ceil(OPENS_AT), 0):
                found = await cluster.generate("tiny", PROMPT, max_tokens=8)
                assert list(found.token_ids) == greedy_ids(whole, PROMPT, 8)
                assert found.failovers == n_failovers
            await eventually(lambda: opinions_on(cluster, liar.worker_id) == {"hop_failed"})


def opinions_on(cluster: WholeCluster, worker_id: WorkerId) -> set[str]:
    record = cluster.coordinator.cluster.state.trust.get(worker_id, TrustRecord())
    return {opinion.kind for opinion in record.opinions}


# ------------------------------------------------------------------ what is computed


@asynccontextmanager
async def three(folder: Path) -> AsyncIterator[tuple[WholeCluster, list[Member]]]:
    packed, _ = packed_tiny(folder, "llama")
    async with whole_cluster(folder, settle_s=0.3) as cluster:
        await cluster.add_model("tiny", packed)
        members = [await cluster.join(name, "0:4") for name in "abc"]
        await cluster.until_ready()
        yield cluster, members


@pytest.mark.parametrize("n_bits", [4, 8])
async def test_a_worker_of_less_precision_than_it_says_is_found(tmp_path: Path, n_bits: int) -> None:
    """Fails if audits allow everybody what the coarsest precision needs: each is held to its own word."""
    async with three(tmp_path) as (cluster, members):
        audit, bad = auditing(cluster), members[1]
        assert (await audit(bad)).outcome == "passed"
        await round_weights(bad, n_bits)
        found = await audit(bad)
        assert (found.outcome, found.partner_outcome) == ("failed", "passed")
        assert [level(cluster, member) == "quarantined" for member in members] == [False, True, False]


@pytest.mark.parametrize(
    "how",
    [torch.zeros_like, lambda states: states * float("nan")],
    ids=["zeros", "nan"],
)
async def test_zeros_and_numbers_that_are_none_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Cheat
) -> None:
    """Fails if what is no number differs from nothing. The worker doesn't look at what it hands on, as ours do."""
    monkeypatch.setattr("worker.batch_run.check_handed_on", lambda *_: None)
    async with three(tmp_path) as (cluster, members):
        audit, bad = auditing(cluster), members[1]
        await cheat(bad, 3, how)
        found = await audit(bad)
        assert (found.outcome, found.partner_outcome) == ("failed", "passed")
        assert [level(cluster, member) == "quarantined" for member in members] == [False, True, False]


async def test_who_is_slow_on_purpose_loses_the_session_and_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if a client waits for ever for a worker that is there and answers pings, or keeps that to itself."""
    monkeypatch.setattr("client.pace.SHORTEST_STALL_S", 2.0)
    packed, whole = packed_tiny(tmp_path, "llama", max_position_embeddings=1024, eos_token_id=None)
    is_over = threading.Event()
    async with whole_cluster(tmp_path, settle_s=0.3) as cluster:
        await cluster.add_model("tiny", packed)
        members = {(m := await cluster.join(name, "0:4")).worker.worker_id: m for name in "ab"}
        await cluster.until_ready()
        try:
            async with asyncio.timeout(60.0), cluster.client() as client, asyncio.TaskGroup() as tasks:
                stream = WatchedStream(client.stream("tiny", PROMPT, max_tokens=250, temperature=0.0), tasks)
                await stream.reached(20)
                (slow,) = stream.worker_ids
                await cheat(members[slow], 0, held_up(is_over))
                found = await stream.finished()
                assert list(found.token_ids) == greedy_ids(whole, PROMPT, 250)
                assert (found.failovers, stream.worker_ids) == (1, tuple(members.keys() - {slow}))
                await eventually(lambda: opinions_on(cluster, slow) == {"stalled"})
        finally:
            is_over.set()
