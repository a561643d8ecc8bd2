"""Processes, the real SmolLM2: one cluster of three workers for all tests that don't break it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.local_cluster import LocalCluster
from tests.support.forked_program import ForkedCluster
from tests.support.smollm2 import NAME, add_packed, scratch, smollm2, smollm2_reference
from tests.support.whole_cluster import Packed

__all__ = ["scratch", "smollm2", "smollm2_reference"]
MODEL = NAME
SPLIT = ("0:10", "10:20", "20:30")


@pytest.fixture(scope="package")
def cluster(scratch: Path, smollm2: Packed) -> Iterator[LocalCluster]:
    """A coordinator with SmolLM2 and three workers of ten blocks each, in float32."""
    with ForkedCluster(scratch / "cluster") as cluster:
        cluster.start_coordinator()
        add_packed(cluster, smollm2)
        for i, blocks in enumerate(SPLIT):
            cluster.start_worker(f"worker-{i}", "--blocks", blocks, "--precision", "float32")
        cluster.wait_for_workers(len(SPLIT))
        cluster.wait_until_ready(MODEL)
        yield cluster
