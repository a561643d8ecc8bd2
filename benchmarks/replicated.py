"""A cluster of real processes with several workers for every range of blocks, to be broken and made whole again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal

from benchmarks.held_ports import held_port
from benchmarks.relay import Relay
from client.api import Client
from client.config import ClientConfig
from demo.local_cluster import STOP_WITHIN_S, LocalCluster, smollm2_gguf
from protocol.api_key import ApiKey, api_key_from_text
from protocol.cluster_rest import ClusterStatus, WorkerInfo
from protocol.errors import BrigadeError
from protocol.ids import WorkerId
from protocol.pinned_http import pinned_session
from protocol.trust_rest import TrustInfo, TrustRequest

MODEL = "smollm2"
COPIES = ("a", "b")
READY_WITHIN_S = 120.0
POLL_S = 0.25


class ReplicatedCluster:
    """Worker processes by name, how they are started, and which of them hang."""

    def __init__(self, local: LocalCluster) -> None:
        self.local = local
        self.arguments: dict[str, tuple[str, ...]] = {}
        """How each worker is started, again and again."""
        self._paused: set[str] = set()
        self._names: dict[WorkerId, str] = {}

    def start(self, name: str, *arguments: str) -> None:
        """Start a worker that has its files already; again as the first time, if no arguments are given."""
        self.arguments[name] = arguments or self.arguments[name]
        self.local.share_files(name)
        self.local.start_worker(name, *self.arguments[name])

    def kill(self, *names: str) -> None:
        """`kill -9` of all of them at once."""
        self.local.kill(*names)
        self._paused.difference_update(names)

    def pause(self, name: str) -> None:
        """Have it hang."""
        self.local.pause(name)
        self._paused.add(name)

    def resume(self, name: str) -> None:
        """Have it go on."""
        self.local.resume(name)
        self._paused.discard(name)

    async def ban(self, name: str) -> None:
        """Ban a worker, as an operator does, and wait until its process has ended by itself.

        Raises:
            BrigadeError: the coordinator refuses, or isn't there.
            subprocess.TimeoutExpired: it goes on for 20 s.
        """
        worker_id = await asyncio.to_thread(self.local.worker_id, name)
        process = self.local.processes.pop(name)  # it ends, and that is no failure
        try:
            await self._decide(worker_id, "ban")
            await asyncio.to_thread(process.wait, STOP_WITHIN_S)
        finally:
            process.kill()
            process.wait()

    async def pardon(self, name: str) -> None:
        """Let a banned worker in again, and forget what spoke against it. It has to be started.

        Raises:
            BrigadeError: the coordinator refuses, or isn't there.
        """
        await self._decide(await asyncio.to_thread(self.local.worker_id, name), "pardon")

    def names(self, worker_ids: Sequence[WorkerId]) -> tuple[str, ...]:
        """The names of workers that have been ready once."""
        return tuple(self._names[worker_id] for worker_id in worker_ids)

    async def made_whole(self) -> None:
        """Start what isn't there, have go on what hangs, and wait until everybody is ready.

        Raises:
            TimeoutError: they aren't in two minutes; says who.
        """
        for name in tuple(self._paused):
            self.resume(name)
        if "coordinator" not in self.local.processes:
            await asyncio.to_thread(self.local.restart_coordinator)
        for name in self.arguments:
            if name not in self.local.processes:
                self.start(name)
        await self.until_ready(tuple(self.arguments))

    async def until_ready(self, names: Collection[str]) -> None:
        """Wait until these workers hold, ready, all that they were told to.

        Raises:
            TimeoutError: they don't in two minutes; says who.
            ClusterError: a process has ended that nobody stopped.
        """
        late = set(names)
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                while late:
                    await asyncio.sleep(POLL_S)
                    self.local.check_running()
                    late = set(names) - await self._ready()
        except TimeoutError as exc:
            raise TimeoutError(
                f"{', '.join(sorted(late))} not ready in {READY_WITHIN_S:g} s; logs are in {self.local.folder}"
            ) from exc

    async def workers(self) -> dict[str, WorkerInfo]:
        """What the coordinator says of the workers, by name.

        Raises:
            BrigadeError: it doesn't answer.
        """
        async with pinned_session(self.local.url, self._key("admin")) as coordinator:
            status = await coordinator.get("/admin/v1/status", ClusterStatus)
        for name in self.arguments:
            if name not in self._names.values():
                self._names[WorkerId(await asyncio.to_thread(self.local.worker_id, name))] = name
        return {self._names[info.worker_id]: info for info in status.workers if info.worker_id in self._names}

    @asynccontextmanager
    async def client(self, *, prefix_cache: bool = False) -> AsyncIterator[Client]:
        """A client with the cluster's first key; with `prefix_cache`, what workers still have isn't run again."""
        cache = self.local.folder / "client-cache"
        config = ClientConfig(url=self.local.url, api_key=self._key("client"), cache=cache)
        async with Client(config=config, prefix_cache=prefix_cache) as client:
            yield client

    def _key(self, role: Literal["admin", "client"]) -> ApiKey:
        """The cluster's first of this kind."""
        return api_key_from_text((self.local.state / f"{role}.key").read_text())

    async def _decide(self, worker_id: str, action: Literal["ban", "pardon"]) -> None:
        request = TrustRequest(action=action, reason="to see what happens")
        async with pinned_session(self.local.url, self._key("admin")) as coordinator:
            await coordinator.post(f"/admin/v1/workers/{worker_id}/trust", request, TrustInfo)

    async def _ready(self) -> set[str]:
        try:
            infos = await self.workers()
        except BrigadeError:  # a coordinator that has just begun
            return set()
        return {name for name, info in infos.items() if info.state == "ready" and _holds_all(info)}


def _holds_all(info: WorkerInfo) -> bool:
    return bool(info.spans) and all(span.state == "ready" for span in info.spans)


def added_model(local: LocalCluster) -> None:
    """`coord model add` of SmolLM2. Blocks for seconds."""
    added = local.run("coord", "model", "add", MODEL, str(smollm2_gguf()))
    if added.returncode != 0:
        raise RuntimeError(added.stderr.decode())


@asynccontextmanager
async def relayed_workers(cluster: ReplicatedCluster, ranges: Mapping[str, str]) -> AsyncIterator[dict[str, Relay]]:
    """Start two workers for each range, in float32, that are reached through relays; the relays by worker."""
    async with AsyncExitStack() as stack:
        relays: dict[str, Relay] = {}
        for stage, blocks in ranges.items():
            for name in (f"{stage}-{copy}" for copy in COPIES):
                port = stack.enter_context(held_port())
                relays[name] = await stack.enter_async_context(Relay("127.0.0.1", port))
                address = ("--listen", f"127.0.0.1:{port}", "--advertise", f"https://127.0.0.1:{relays[name].port}")
                cluster.start(name, "--blocks", blocks, "--precision", "float32", *address)
        yield relays
