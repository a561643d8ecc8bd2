"""What can be seen to be wrong before a worker enrols ends it before."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from protocol.errors import PortInUseError
from tests.worker.test_app import cluster


async def test_metrics_that_cannot_be_read_where_they_should_end_a_worker_before_it_enrols(tmp_path: Path) -> None:
    async with cluster(tmp_path) as it:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(PortInUseError, match=rf"127.0.0.1:{port}: .* \(--metrics-listen\)"):
                await it.join(metrics_listen=("127.0.0.1", port))
        assert not it.coordinator.cluster.state.workers
        assert not [line for line in it.lines if "enrol" in line]
