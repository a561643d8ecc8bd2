"""A whole cluster whose workers are reached through relays only: by the client as well as by each other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from benchmarks.held_ports import held_port
from benchmarks.relay import Relay
from client.results import Generation
from tests.support.whole_cluster import WholeCluster, packed_tiny, whole_cluster

RANGES = {"head": "0:2", "tail": "2:4"}


@dataclass(slots=True, kw_only=True)
class RelayedCluster:
    """`relays` are by the workers' names: head-a, head-b, tail-a, tail-b."""

    cluster: WholeCluster
    whole: PreTrainedModel
    relays: dict[str, Relay]
    unbroken: tuple[int, ...] = ()
    """For a test to keep an answer that nothing disturbed."""

    def relays_of(self, generation: Generation) -> list[Relay]:
        """The relays before the workers of a route, in order."""
        names = {member.worker.worker_id: name for name, member in self.cluster.members.items()}
        return [self.relays[names[stage.worker_id]] for stage in generation.route]

    @asynccontextmanager
    async def delayed(self, delay_s: float, *relays: Relay) -> AsyncIterator[None]:
        """Have every byte come so much later, there and back, while the context is open."""
        for relay in relays:
            relay.delay_s = delay_s
        try:
            yield
        finally:
            for relay in relays:
                relay.delay_s = 0.0


@asynccontextmanager
async def relayed_cluster(folder: Path) -> AsyncIterator[RelayedCluster]:
    """Two workers for each half of a tiny model."""
    packed, whole = packed_tiny(folder, "llama", max_position_embeddings=4096, eos_token_id=None)
    async with whole_cluster(folder) as cluster, AsyncExitStack() as stack:
        await cluster.add_model("tiny", packed)
        relays: dict[str, Relay] = {}
        for stage, blocks in RANGES.items():
            for name in (f"{stage}-a", f"{stage}-b"):
                port = stack.enter_context(held_port())
                relays[name] = await stack.enter_async_context(Relay("127.0.0.1", port))
                url = f"https://127.0.0.1:{relays[name].port}"
                listening = {"listen_host": "127.0.0.1", "listen_port": port, "advertise_url": url}
                await cluster.join(name, blocks, files=packed, **listening)
        await cluster.until_ready()
        yield RelayedCluster(cluster=cluster, whole=whole, relays=relays)
