"""The churn benchmark, small: whatever happens to workers, no token is wrong and no generation is lost."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from benchmarks.churn_faults import OF_WORKERS
from benchmarks.churn_figures import Figures
from benchmarks.churn_soak import Soak
from benchmarks.replicated import ReplicatedCluster, relayed_workers
from tests.faults.conftest import show
from tests.support.forked_program import ForkedCluster
from tests.support.tiny_cluster import TINY, add_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
RANGES = {"head": "0:2", "middle": "2:3", "tail": "3:4"}
"""A private route begins in the middle of the first and ends before the last."""
SECONDS = 30.0
N_STREAMS = 6
SEED = 15


async def test_churn_makes_no_token_wrong_and_loses_no_generation(tmp_path: Path) -> None:
    figures = Figures(seed=SEED, seconds=SECONDS, n_streams=N_STREAMS)
    with ForkedCluster(tmp_path / "churn") as local:
        await asyncio.to_thread(local.start_coordinator)
        await asyncio.to_thread(add_tiny_model, local, context=4096)
        cluster = ReplicatedCluster(local)
        async with relayed_workers(cluster, RANGES) as relays:
            await cluster.made_whole()
            soak = Soak(cluster, relays, random.Random(SEED), show, model=TINY, kinds=OF_WORKERS)
            await soak.run(figures, seconds=SECONDS, n_streams=N_STREAMS)
        logs = {name: local.log(name) for name in relays}
    assert figures.is_clean, [*figures.wrong, *figures.lost]
    assert figures.n_failovers > 0
    assert not [name for name, log in logs.items() if "Traceback" in log]
