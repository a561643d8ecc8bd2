"""A coordinator that is killed, for as long as it takes: running generations need none, others wait for it."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.faults.conftest import ENDURING, GREEDY, SAMPLED, Faulty, all_reached, failovers, show

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


async def test_running_generations_do_not_notice_a_coordinator_that_is_killed_and_started_again(
    cluster: Faulty,
) -> None:
    before = await cluster.workers()
    async with cluster.streams(ENDURING, GREEDY, SAMPLED) as streams:
        enduring, *others = streams
        await all_reached(streams, 4)
        cluster.kill("coordinator")
        for stream in others:  # whole generations end while nobody coordinates
            await stream.finished()
        n_tokens = len(enduring.token_ids)
        await asyncio.to_thread(cluster.local.restart_coordinator)
        await enduring.reached(n_tokens + 8)
    assert failovers(streams) == [0, 0, 0]
    await cluster.made_whole()
    after = await cluster.workers()
    assert {name: info.worker_id for name, info in after.items()} == {
        name: info.worker_id for name, info in before.items()
    }
    assert {name: info.spans for name, info in after.items()} == {name: info.spans for name, info in before.items()}


async def test_a_worker_killed_while_the_coordinator_is_away(cluster: Faulty) -> None:
    async with cluster.streams(GREEDY, SAMPLED) as streams:
        await all_reached(streams, 8)
        cluster.kill("coordinator")
        victim = streams[0].worker_ids[1]
        cluster.kill(*cluster.names([victim]))
        n_tokens = len(streams[0].token_ids)
        restarting_s = time.monotonic()
        await asyncio.to_thread(cluster.local.restart_coordinator)
        await streams[0].reached(n_tokens + 4)
        show(f"going on {time.monotonic() - restarting_s:.1f} s after the coordinator's start")
    assert failovers(streams)[0] >= 1
    assert victim not in streams[0].worker_ids
