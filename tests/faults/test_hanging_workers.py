"""Workers that hang without closing anything (SIGSTOP), and what they say when they come to themselves again."""

from __future__ import annotations

import pytest

from tests.faults.conftest import GREEDY, SAMPLED, STAGES, Faulty, all_reached, failovers
from tests.support.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("stage", STAGES)
async def test_a_hanging_worker_is_noticed_and_does_no_harm_when_it_goes_on(cluster: Faulty, stage: str) -> None:
    async with cluster.streams(GREEDY) as streams:
        await all_reached(streams, 8)
        (victim,) = cluster.names([streams[0].worker_ids[STAGES.index(stage)]])
        cluster.pause(victim)
        await eventually(lambda: streams[0].result.failovers, 60.0)
        await streams[0].reached(len(streams[0].token_ids) + 2)
        cluster.resume(victim)  # what it wanted to say comes now
        async with cluster.streams(SAMPLED) as later:
            pass
    assert failovers(streams) == [1]
    assert failovers(later)[0] <= 1, "it may be asked again, and then be the one that still has to find out"
    await eventually(lambda: cluster.local.processes[victim].poll() is None)
    assert "Traceback" not in cluster.local.log(victim)


async def test_a_worker_that_hangs_before_the_first_token(cluster: Faulty) -> None:
    cluster.pause("tail-a")
    cluster.pause("head-b")
    async with cluster.streams(GREEDY, SAMPLED) as streams:
        pass
    assert max(failovers(streams)) <= 2
    used = set(cluster.names(streams[0].worker_ids))
    assert used.isdisjoint({"tail-a", "head-b"})
