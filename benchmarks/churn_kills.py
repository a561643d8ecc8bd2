"""How soon the next token comes after `kill -9`, without other load: with a loaded replica, and with a spare."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from benchmarks.churn_figures import Figures, Stalls, n_wrong, stalls_of
from benchmarks.replicated import MODEL, ReplicatedCluster
from benchmarks.streams import WatchedStream
from client.api import Client
from demo.local_cluster import LocalCluster

PROMPT = "Here is the complete history of the lighthouse, from the first fires on the cliffs to our day:"
N_TOKENS = 64
N_BEFORE = 12
"""Tokens that have come when the kill does."""
DEADLINE_S = 120.0
OPTIONS: dict[str, Any] = {"max_tokens": N_TOKENS, "temperature": 0.0, "timeout_s": DEADLINE_S}


async def kills_with_replica(
    cluster: ReplicatedCluster, n_kills: int, figures: Figures, say: Callable[[str], None]
) -> Stalls:
    """Kill head and tail in turn, with everybody there; from the kill to the first token of the next route."""
    waits_s: list[float] = []
    async with cluster.client() as client:
        expected = (await client.generate(MODEL, PROMPT, **OPTIONS)).token_ids
        for number in range(n_kills):
            await cluster.made_whole()
            waits_s.append(await _killed(cluster, client, expected, figures, place=-(number % 2)))
            say(f"kill {number + 1} with a replica: next token after {waits_s[-1]:.2f} s")
    return stalls_of(waits_s, n_kills)


async def _killed(
    cluster: ReplicatedCluster, client: Client, expected: tuple[int, ...], figures: Figures, *, place: int
) -> float:
    """Kill the worker at a place of the route, 0 the first, -1 the last; seconds to the next token."""

    def kill(stream: WatchedStream) -> None:
        cluster.kill(*cluster.names(stream.worker_ids[place:][:1]))

    return await _next_token_s(client, expected, figures, kill)


async def kills_with_spare(
    local: LocalCluster, n_kills: int, figures: Figures, say: Callable[[str], None]
) -> Stalls:
    """Kill all holders of a half that the spare has on its disk only. The spare is another one each time.

    One holds the first half, two the second; so a spare becomes the first half's second holder.
    """
    waits_s: list[float] = []
    cluster = ReplicatedCluster(local)
    for name, blocks in (("first", "0:15"), ("second-a", "15:30"), ("second-b", "15:30")):
        cluster.start(name, "--blocks", blocks, "--precision", "float32")
    await cluster.made_whole()

    def kill(_stream: WatchedStream) -> None:
        cluster.kill("second-a", "second-b")

    async with cluster.client() as client:
        expected = (await client.generate(MODEL, PROMPT, **OPTIONS)).token_ids
        for number in range(n_kills):
            spare = f"spare-{number}"
            cluster.start(spare, "--memory", "4GB", "--precision", "float32")
            await cluster.made_whole()
            held = [str(span.blocks) for span in (await cluster.workers())[spare].spans]
            waits_s.append(await _next_token_s(client, expected, figures, kill))
            say(f"kill {number + 1} with a spare that held {held}: next token after {waits_s[-1]:.2f} s")
            cluster.kill(spare)
            del cluster.arguments[spare]
    return stalls_of(waits_s, n_kills)


async def _next_token_s(
    client: Client, expected: tuple[int, ...], figures: Figures, kill: Callable[[WatchedStream], None]
) -> float:
    """Kill somebody in the middle of a stream; seconds from then to the first token of another route."""
    async with asyncio.TaskGroup() as tasks:
        stream = WatchedStream(client.stream(MODEL, PROMPT, **OPTIONS), tasks)
        await stream.reached(N_BEFORE)
        kill(stream)
        killed_at_s = asyncio.get_running_loop().time()
        await stream.ended()
    figures.n_generations += 1
    figures.n_tokens += len(stream.token_ids)
    figures.n_failovers += stream.result.failovers
    if stream.error is not None:
        figures.n_lost_generations += 1
        figures.lost.append(f"a kill: {stream.error}")
    elif wrong := n_wrong(stream.token_ids, expected):
        figures.n_wrong_tokens += wrong
        figures.wrong.append(f"a kill: {wrong} of {len(expected)} tokens are wrong")
    return stream.first_after_failover_s(killed_at_s) - killed_at_s
