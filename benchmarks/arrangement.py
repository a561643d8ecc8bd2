"""Clusters of worker processes to be measured: one coordinator, and workers that come and go by arrangement."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path

import psutil
import torch

from benchmarks.held_ports import held_port
from benchmarks.relay import Relay
from benchmarks.replicated import POLL_S
from client.api import Client
from client.config import ClientConfig
from coordinator.policy.filling import Stage, water_filled
from coordinator.policy.sizing import counted_end_in_blocks
from demo.local_cluster import READY_WITHIN_S, ClusterError, LocalCluster
from protocol.api_key import api_key_from_text
from protocol.cluster_rest import ClusterStatus
from protocol.control_messages import DeviceReport
from protocol.ids import Revision
from protocol.manifest import MAX_MANIFEST_BYTES, Manifest, decode_manifest
from protocol.pinned_http import pinned_session
from worker.device import PrecisionChoice, chosen_precision, chosen_quantization, measure_device

MODEL = "bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """Workers of one thread each that share a model's blocks so that all take as long."""

    precision: PrecisionChoice
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
    manifest = await _manifest(cluster, model.revision)
    device = await asyncio.to_thread(_device, arrangement.precision)
    blocks = split(model.n_blocks, arrangement.n_workers, counted_end_in_blocks(device, manifest))
    names = [f"{arrangement.name}-{i}" for i in range(arrangement.n_workers)]
    async with AsyncExitStack() as stack:
        relays: list[Relay] = []
        for name, own in zip(names, blocks, strict=True):
            address: tuple[str, ...] = ()
            if arrangement.has_relays:
                port = stack.enter_context(held_port())
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


async def _manifest(cluster: LocalCluster, revision: Revision) -> Manifest:
    key = api_key_from_text((cluster.state / "admin.key").read_text())
    async with pinned_session(cluster.url, key) as coordinator:
        data = await coordinator.get_bytes(f"/v1/manifests/{revision}", max_bytes=MAX_MANIFEST_BYTES)
    return decode_manifest(data, expected=revision)


@cache
def _device(precision: PrecisionChoice) -> DeviceReport:
    """What a worker of one thread would report; measured once, so that arrangements can be compared."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        profile = measure_device(torch.device("cpu"))
    finally:
        torch.set_num_threads(n_threads)
    chosen = chosen_precision(precision, profile)
    speed = profile.speeds[chosen]
    return DeviceReport(
        device="cpu",
        precision=chosen,
        n_threads=1,
        memory_bytes=profile.free_memory_bytes,
        bandwidth_bytes_per_s=speed.decode_bytes_per_s,
        flops_per_s=speed.prefill_flops_per_s,
        quantization=chosen_quantization(precision),
    )


def split(n_blocks: int, n_workers: int, end_in_blocks: float = 0.0) -> list[range]:
    """The blocks in as many ranges, as placement shares them among equal workers of which the last runs the head.

    `end_in_blocks`: what the head counts for, in blocks that take as long.
    """
    stages = [Stage(seconds_per_block=1.0, cap=n_blocks) for _ in range(n_workers - 1)]
    stages.append(Stage(seconds_per_block=1.0, cap=n_blocks, fixed_s=end_in_blocks))
    ends = accumulate(water_filled(n_blocks, stages), initial=0)
    return [range(start, end) for start, end in pairwise(ends)]
