"""Processes, the real SmolLM2, two workers for each third of it. What a test breaks is mended for the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.held_ports import held_port
from benchmarks.replicated import ReplicatedCluster
from benchmarks.streams import WatchedStream
from client.api import Client
from demo.local_cluster import LocalCluster
from tests.support.forked_program import ForkedCluster
from tests.support.smollm2 import NAME, add_packed, scratch, smollm2, smollm2_reference
from tests.support.whole_cluster import Packed

__all__ = ["scratch", "smollm2", "smollm2_reference"]
RANGES = {"head": "0:10", "middle": "10:20", "tail": "20:30"}
STAGES = tuple(RANGES)
WITHIN_S = 90.0
"""For any generation, whatever is done to it: a machine with two busy cores has its time."""
PROMPT = "Here is the complete history of the lighthouse, from the first fires on the cliffs to our day:"
LONG_PROMPT = tuple(1000 + 7 * index % 9000 for index in range(800))


@dataclass(frozen=True)
class Ask:
    """A generation that is made again and again, and so always has the same answer."""

    prompt: Any
    options: dict[str, Any]


GREEDY = Ask(PROMPT, {"max_tokens": 40, "temperature": 0.0})
SAMPLED = Ask(PROMPT, {"max_tokens": 40, "temperature": 0.9, "top_p": 0.95, "seed": 11})
LONG = Ask(LONG_PROMPT, {"max_tokens": 8, "temperature": 0.0})
ENDURING = Ask(PROMPT, {"max_tokens": 200, "temperature": 0.0})
"""Long enough to still run when something has happened and been mended."""


class Faulty(ReplicatedCluster):
    """The cluster, and what its answers are when nothing is wrong."""

    def __init__(self, local: LocalCluster) -> None:
        super().__init__(local)
        self._unbroken: dict[str, tuple[tuple[int, ...], str]] = {}

    async def unbroken(self, client: Client, ask: Ask) -> tuple[tuple[int, ...], str]:
        """Token ids and text of an answer that nothing disturbs; asked once."""
        key = repr(ask)
        if key not in self._unbroken:
            result = await client.generate(NAME, ask.prompt, **ask.options)
            assert result.failovers == 0
            self._unbroken[key] = (result.token_ids, result.text)
        return self._unbroken[key]

    @asynccontextmanager
    async def streams(self, *asks: Ask) -> AsyncIterator[list[WatchedStream]]:
        """These generations at the same time. When the block is over, they end and have to be the unbroken ones."""
        async with asyncio.timeout(WITHIN_S * 2), self.client() as client:
            expected = [await self.unbroken(client, ask) for ask in asks]
            async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as tasks:
                streams = [
                    WatchedStream(client.stream(NAME, ask.prompt, on_notice=show, **ask.options), tasks)
                    for ask in asks
                ]
                yield streams
                results = [await stream.finished() for stream in streams]
        for stream, result, (token_ids, text) in zip(streams, results, expected, strict=True):
            route = [f"{stage.start}:{stage.end}" for stage in result.route]
            show(f"route {route}, failovers {result.failovers}, longest gap {stream.longest_gap_s():.2f} s")
            assert tuple(stream.token_ids) == token_ids
            assert stream.text == text
            assert result.token_ids == token_ids
            assert result.text == text


def show(figure: str) -> None:
    print(figure)  # noqa: T201 - for `pytest -s` and the report of a failure


async def all_reached(streams: list[WatchedStream], n_tokens: int) -> None:
    for stream in streams:
        await stream.reached(n_tokens)


def failovers(streams: list[WatchedStream]) -> list[int]:
    return [stream.result.failovers for stream in streams]


@pytest.fixture(scope="package")
def running_cluster(scratch: Path, smollm2: Packed) -> Iterator[Faulty]:
    """Two workers for each range, in float32."""
    with held_port() as port, ForkedCluster(scratch / "faults") as local:
        local.start_coordinator(listen=f"127.0.0.1:{port}")
        add_packed(local, smollm2)
        faulty = Faulty(local)
        for stage, blocks in RANGES.items():
            for copy in ("a", "b"):
                faulty.start(f"{stage}-{copy}", "--blocks", blocks, "--precision", "float32")
        yield faulty


@pytest.fixture
async def cluster(running_cluster: Faulty) -> Faulty:
    """The cluster with everybody there, and what it answers while nothing is broken known."""
    await running_cluster.made_whole()
    async with asyncio.timeout(WITHIN_S), running_cluster.client() as client:
        for ask in (GREEDY, SAMPLED):
            await running_cluster.unbroken(client, ask)
    return running_cluster
