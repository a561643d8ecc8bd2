"""One cluster for all tests of this folder: they are programs without asyncio, so it runs on a loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from client.causal_lm import BrigadeForCausalLM
from client.config import ClientConfig
from client.sync_api import SyncClient
from protocol.api_key import api_key_from_text
from tests.support.coordinators import key_of
from tests.support.gateways import packed_tiny_chat
from tests.support.whole_cluster import WholeCluster, whole_cluster

WITHIN_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Both:
    """A model of a cluster, and the same one in this process."""

    cluster: WholeCluster
    config: ClientConfig
    remote: BrigadeForCausalLM
    local: Any

    def n_sessions(self) -> int:
        return sum(member.worker.data_plane.n_sessions for member in self.cluster.members.values())


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("causal-lm")
    running: Future[tuple[WholeCluster, asyncio.AbstractEventLoop, asyncio.Event]] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(_run(folder, running)))
    thread.start()
    cluster, loop, leaving = running.result(WITHIN_S)
    config = ClientConfig(
        url=cluster.coordinator.url,
        api_key=api_key_from_text(key_of(cluster.coordinator, "client")),
        cache=folder / "client",
    )
    try:
        with SyncClient(config=config) as client:
            local = AutoModelForCausalLM.from_pretrained(folder / "tiny-chat").eval()
            yield Both(cluster=cluster, config=config, remote=BrigadeForCausalLM(client, "tiny"), local=local)
    finally:
        loop.call_soon_threadsafe(leaving.set)
        thread.join(WITHIN_S)


async def _run(
    folder: Path, running: Future[tuple[WholeCluster, asyncio.AbstractEventLoop, asyncio.Event]]
) -> None:
    leaving = asyncio.Event()
    try:
        packed = await asyncio.to_thread(packed_tiny_chat, folder)
        async with whole_cluster(folder) as cluster:
            await cluster.add_model("tiny", packed)
            await cluster.join("a", "0:2", files=packed)
            await cluster.join("b", "2:4", files=packed)
            await cluster.until_ready()
            running.set_result((cluster, asyncio.get_running_loop(), leaving))
            await leaving.wait()
    except BaseException as exc:
        if not running.done():
            running.set_exception(exc)
        raise
