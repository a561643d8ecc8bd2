"""`kill -9` of workers in the middle of generations: they go on elsewhere with the very same tokens."""

from __future__ import annotations

import asyncio
import subprocess

import psutil
import pytest

from benchmarks.streams import WatchedStream
from tests.faults.conftest import GREEDY, LONG, SAMPLED, STAGES, Faulty, all_reached, failovers
from tests.support.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("stage", STAGES)
async def test_a_killed_worker_with_a_loaded_replica_costs_no_token(cluster: Faulty, stage: str) -> None:
    index = STAGES.index(stage)
    async with cluster.streams(GREEDY, SAMPLED) as streams:
        await all_reached(streams, 8)
        victims = [stream.worker_ids[index] for stream in streams]
        cluster.kill(*cluster.names(victims[:1]))
    assert failovers(streams)[0] >= 1
    assert all(stream.worker_ids[index] != victims[0] for stream in streams)


async def test_two_workers_killed_at_once(cluster: Faulty) -> None:
    async with cluster.streams(GREEDY) as streams:
        await all_reached(streams, 8)
        cluster.kill(*cluster.names(streams[0].worker_ids[:1] + streams[0].worker_ids[-1:]))
    assert failovers(streams)[0] >= 1


async def test_a_worker_killed_while_it_works_on_a_long_prompt(cluster: Faulty) -> None:
    async with cluster.streams(LONG) as streams:
        await eventually(lambda: streams[0].worker_ids)
        victim = cluster.names(streams[0].worker_ids)[1]
        process = psutil.Process(cluster.local.processes[victim].pid)
        before_s = process.cpu_times().user
        await eventually(lambda: process.cpu_times().user > before_s + 0.1)
        assert not streams[0].token_ids
        cluster.kill(victim)
    assert failovers(streams)[0] >= 1


async def test_a_tail_killed_before_the_first_token(cluster: Faulty) -> None:
    async with cluster.streams(LONG, SAMPLED) as streams:
        await eventually(lambda: all(stream.worker_ids for stream in streams))
        assert not streams[0].token_ids
        victims = {stream.worker_ids[-1] for stream in streams[:1]}
        cluster.kill(*cluster.names(tuple(victims)))
    assert failovers(streams)[0] >= 1


async def test_two_workers_killed_one_after_the_other(cluster: Faulty) -> None:
    async with cluster.streams(GREEDY, SAMPLED) as streams:
        greedy = streams[0]
        await greedy.reached(6)
        cluster.kill(*cluster.names(greedy.worker_ids[-1:]))
        await greedy.reached(len(greedy.token_ids) + 4)
        await eventually(lambda: greedy.result.failovers >= 1)
        cluster.kill(*cluster.names(greedy.worker_ids[:1]))
    assert failovers(streams)[0] >= 2


async def test_all_holders_of_a_range_killed_and_one_comes_back_from_its_cache(cluster: Faulty) -> None:
    async with cluster.streams(SAMPLED) as streams:
        await all_reached(streams, 8)
        cluster.kill("middle-a", "middle-b")
        cluster.start("middle-b")
    assert failovers(streams)[0] >= 1


async def stopped(cluster: Faulty, stream: WatchedStream) -> tuple[str, subprocess.Popen[bytes]]:
    """The middle worker of a stream after SIGTERM, once the coordinator knows that it leaves."""
    (name,) = cluster.names(stream.worker_ids[1:2])
    process = cluster.local.processes.pop(name)
    process.terminate()
    async with asyncio.timeout(20.0):
        while (await cluster.workers())[name].state == "ready":  # noqa: ASYNC110 - the coordinator has no event
            await asyncio.sleep(0.1)
    return name, process


async def test_a_worker_that_is_stopped_lets_its_generations_end_and_gets_no_more(cluster: Faulty) -> None:
    async with cluster.streams(GREEDY, SAMPLED) as streams:
        await all_reached(streams, 4)
        name, process = await stopped(cluster, streams[0])
        async with cluster.streams(GREEDY) as later:
            await all_reached(later, 1)
            assert name not in cluster.names(later[0].worker_ids)
    assert failovers(streams) == [0, 0]
    assert failovers(later) == [0]
    assert await asyncio.to_thread(process.wait, 40.0) == 0


async def test_a_worker_that_is_stopped_twice_hands_its_generations_over(cluster: Faulty) -> None:
    async with cluster.streams(GREEDY) as streams:
        await all_reached(streams, 4)
        name, process = await stopped(cluster, streams[0])
        process.terminate()
    assert failovers(streams) == [1]
    assert name not in cluster.names(streams[0].worker_ids)
    assert await asyncio.to_thread(process.wait, 40.0) == 0
