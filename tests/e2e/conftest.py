"""Real processes, the real SmolLM2: one cluster of three workers for all tests that don't break it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from demo.local_cluster import LocalCluster, smollm2_gguf
from tests.support.smollm2 import scratch, smollm2, smollm2_reference

__all__ = ["scratch", "smollm2", "smollm2_reference"]
MODEL = "smollm2"
SPLIT = ("0:10", "10:20", "20:30")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A coordinator with SmolLM2 and three workers of ten blocks each, in float32."""
    with LocalCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.start_coordinator()
        added = cluster.run("coord", "model", "add", MODEL, str(smollm2_gguf()))
        assert added.returncode == 0, added.stderr.decode()
        for i, blocks in enumerate(SPLIT):
            cluster.start_worker(f"worker-{i}", "--blocks", blocks, "--precision", "float32")
        cluster.wait_for_workers(len(SPLIT))
        cluster.wait_until_ready(MODEL)
        yield cluster
