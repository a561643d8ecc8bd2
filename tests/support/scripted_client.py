"""A client of a scripted cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from client.api import Client
from client.config import ClientConfig
from tests.support.scripted_cluster import Script, ScriptedCluster, scripted_cluster
from tests.support.tiny_tokenizer import ids_of

IM_END = 3


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[ScriptedCluster]:
    async with scripted_cluster(tmp_path) as running:
        running.script = Script(answer=(*ids_of(" Paris."), IM_END))
        yield running


def config_of(cluster: ScriptedCluster, tmp_path: Path) -> ClientConfig:
    return ClientConfig(url=cluster.url, api_key=cluster.api_key, cache=tmp_path / "cache")


@pytest.fixture
async def client(cluster: ScriptedCluster, tmp_path: Path) -> AsyncIterator[Client]:
    async with Client(config=config_of(cluster, tmp_path)) as opened:
        yield opened


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up at the second failure in a row."""
    monkeypatch.setattr("client.failover.MAX_FRUITLESS_ATTEMPTS", 2)
