"""Two offices that each hold the whole model: a client that knows the far one goes to the other when that comes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.held_ports import held_port
from benchmarks.relay import Relay
from client.api import Client
from client.results import Generation
from protocol.ids import WorkerId
from tests.support.whole_cluster import WholeCluster, packed_tiny, whole_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
FAR_S = 0.2
"""One way: more than a busy machine makes blocks slower by."""
ASK: dict[str, Any] = {"temperature": 0.0, "max_tokens": 4}
PROMPT = [5, 9, 30, 4]


class Offices:
    """A cluster whose workers stand behind relays."""

    def __init__(self, folder: Path, cluster: WholeCluster, relays: AsyncExitStack) -> None:
        self._packed, _ = packed_tiny(folder, "llama", eos_token_id=None)
        self._relays = relays
        self.ways: list[Relay] = []
        """To each, in the order in which they were opened."""
        self.cluster = cluster

    async def open(self, name: str, *, delay_s: float = 0.0) -> WorkerId:
        """Wait for a worker that is so far from clients and holds the whole model."""
        if not self.cluster.members:
            await self.cluster.add_model("tiny", self._packed)
        port = self._relays.enter_context(held_port())
        relay = await self._relays.enter_async_context(Relay("127.0.0.1", port))
        relay.delay_s = delay_s
        self.ways.append(relay)
        url = f"https://127.0.0.1:{relay.port}"
        listening = {"listen_host": "127.0.0.1", "listen_port": port, "advertise_url": url}
        member = await self.cluster.join(name, "0:4", files=self._packed, **listening)
        await self.cluster.until_ready()
        return member.worker.worker_id


@asynccontextmanager
async def no_offices_yet(folder: Path) -> AsyncIterator[Offices]:
    async with whole_cluster(folder) as cluster, AsyncExitStack() as relays:
        yield Offices(folder, cluster, relays)


def ends(generation: Generation) -> set[WorkerId]:
    """The workers that the client was connected to."""
    return {generation.route[0].worker_id, generation.route[-1].worker_id}


async def asked(client: Client, n_times: int, **options: Any) -> list[set[WorkerId]]:
    return [ends(await client.generate("tiny", PROMPT, **ASK, **options)) for _ in range(n_times)]


@pytest.mark.parametrize("private", [False, True])
async def test_who_knows_the_far_office_is_served_by_the_near_one_as_soon_as_that_is_there(
    tmp_path: Path, *, private: bool
) -> None:
    async with no_offices_yet(tmp_path) as offices, offices.cluster.client() as client:
        far = await offices.open("far", delay_s=FAR_S)
        assert await asked(client, 1, private=private) == [{far}]
        near = await offices.open("near")
        assert await asked(client, 4, private=private) == [{near}] * 4


async def test_who_moves_from_one_office_to_the_other_is_served_by_that_one(tmp_path: Path) -> None:
    async with no_offices_yet(tmp_path) as offices, offices.cluster.client() as client:
        there = await offices.open("there", delay_s=FAR_S)
        assert await asked(client, 1) == [{there}]
        here = await offices.open("here")
        assert await asked(client, 2) == [{here}] * 2
        for way, delay_s in zip(offices.ways, (0.0, FAR_S), strict=True):
            way.delay_s = delay_s
            way.cut()  # connections don't outlive a change of network
        served_by = await asked(client, 6)
        assert served_by[0] == {here}, "nothing says yet that the client has moved"
        assert served_by[-2:] == [{there}] * 2
