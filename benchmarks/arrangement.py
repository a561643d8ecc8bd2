"""Clusters of worker processes to be measured: one coordinator, and workers that come and go by arrangement."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil

from benchmarks.relay import Relay
from benchmarks.replicated import POLL_S, free_port
from client.api import Client
from client.config import ClientConfig
from demo.local_cluster import READY_WITHIN_S, ClusterError, LocalCluster
from protocol.api_key import api_key_from_text
from protocol.pinned_http import pinned_session
from protocol.rest import ClusterStatus

MODEL = "bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """Workers of one thread each that share a model's blocks evenly."""

    precision: str
    n_workers: int = 2
    has_relays: bool = False
    """Whether workers are reached, by each other and by clients, through relays only."""
    compiles: bool = False
    """Whether torch compiles the step of one token (`--compile`)."""
    is_unquantized: bool = False
    """Whether they get the model in float32, whatever its file holds: codes of fewer bits stay what they are."""

    @property
    def name(self) -> str:
        """For people, and for folders."""
        how = f"{'-compiled' if self.compiles else ''}{'-relayed' if self.has_relays else ''}"
        return f"{self.precision}-{self.n_workers}{how}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arranged:
    """An arrangement that is ready."""

    client: Client
    relays: tuple[Relay, ...]
    """Before each worker, in the order of their blocks; none if there are no relays."""
    worker_rss_bytes: tuple[int, ...]
    """Before any session."""
    blocks: tuple[range, ...]


@contextmanager
def coordinator_with(source: Path, folder: Path, *, tree: Path | None = None) -> Iterator[LocalCluster]:
    """A coordinator that serves the model of `source`; workers are arranged one after the other.

    `tree`: where the programs are taken from, if not from here.
    """
    with LocalCluster(folder) as cluster:
        if tree is not None:
            cluster.environment["PYTHONPATH"] = str(tree)
        cluster.start_coordinator()
        added = cluster.run("coord", "model", "add", MODEL, str(source))
        if added.returncode:
            raise ClusterError(added.stderr.decode())
        yield cluster


@asynccontextmanager
async def arranged(cluster: LocalCluster, arrangement: Arrangement) -> AsyncIterator[Arranged]:
    """Start the workers and wait until all are ready; they are ended with the context."""
    (model,) = (await _status(cluster)).models
    blocks = split(model.n_blocks, arrangement.n_workers)
    names = [f"{arrangement.name}-{i}" for i in range(arrangement.n_workers)]
    async with AsyncExitStack() as stack:
        relays: list[Relay] = []
        for name, own in zip(names, blocks, strict=True):
            address: tuple[str, ...] = ()
            if arrangement.has_relays:
                port = free_port()
                relay = await stack.enter_async_context(Relay("127.0.0.1", port))
                address = ("--listen", f"127.0.0.1:{port}", "--advertise", f"https://127.0.0.1:{relay.port}")
                relays.append(relay)
            await asyncio.to_thread(cluster.share_files, name)
            pinned = ("--blocks", f"{own.start}:{own.stop}", "--precision", arrangement.precision)
            compiling = ("--compile",) if arrangement.compiles else ()
            cluster.start_worker(name, *pinned, *address, *compiling)
            stack.push_async_callback(asyncio.to_thread, cluster.stop, name)
        await _until_ready(cluster)
        rss = tuple(psutil.Process(cluster.processes[name].pid).memory_info().rss for name in names)
        key = api_key_from_text((cluster.state / "client.key").read_text())
        config = ClientConfig(url=cluster.url, api_key=key, cache=cluster.folder / "client-cache")
        client = await stack.enter_async_context(Client(config=config))
        yield Arranged(client=client, relays=tuple(relays), worker_rss_bytes=rss, blocks=tuple(blocks))


async def _until_ready(cluster: LocalCluster) -> None:
    async with asyncio.timeout(READY_WITHIN_S):
        while True:
            cluster.check_running()
            status = await _status(cluster)
            states = {worker.state for worker in status.workers} - {"gone"}
            if states == {"ready"} and status.models[0].state == "ready":
                return
            await asyncio.sleep(POLL_S)


async def _status(cluster: LocalCluster) -> ClusterStatus:
    key = api_key_from_text((cluster.state / "admin.key").read_text())
    async with pinned_session(cluster.url, key) as coordinator:
        return await coordinator.get("/admin/v1/status", ClusterStatus)


def split(n_blocks: int, n_workers: int) -> list[range]:
    """The blocks in as many ranges, as even as they can be."""
    ends = [n_blocks * i // n_workers for i in range(n_workers + 1)]
    return [range(start, end) for start, end in pairwise(ends)]
