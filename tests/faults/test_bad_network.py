"""Bad networks between client and workers and between workers: late, cut, half-open, falsified, out of order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from benchmarks.relay import Relay
from benchmarks.relayed_connection import Direction, RelayedConnection
from benchmarks.streams import WatchedStream
from tests.faults.conftest import show
from tests.support.relayed_cluster import RelayedCluster, relayed_cluster
from tests.support.waiting import eventually
from tests.support.whole_cluster import greedy_ids

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]
PROMPT = [5, 9, 30, 4, 77, 12]
N_TOKENS = 250
"""Seconds of work, even for a tiny model."""
N_BEFORE = 20
WITHIN_S = 100.0
STAGES = ("head", "tail")
ASK: dict[str, Any] = {"max_tokens": N_TOKENS, "temperature": 0.8, "seed": 3}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relayed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RelayedCluster]:
    async with relayed_cluster(tmp_path_factory.mktemp("relayed")) as relayed:
        relayed.unbroken = (await relayed.cluster.generate("tiny", PROMPT, **ASK)).token_ids
        yield relayed


@asynccontextmanager
async def broken(relayed: RelayedCluster) -> AsyncIterator[WatchedStream]:
    """A sampled stream that is under way; at the end it has to be as if nothing had been done to it."""
    async with asyncio.timeout(WITHIN_S), relayed.cluster.client() as client, asyncio.TaskGroup() as tasks:
        stream = WatchedStream(client.stream("tiny", PROMPT, **ASK), tasks)
        await stream.reached(N_BEFORE)
        yield stream
        found = await stream.finished()
    show(f"failovers {found.failovers}, longest gap {stream.longest_gap_s():.2f} s")
    assert found.completion_tokens == N_TOKENS
    assert found.token_ids == relayed.unbroken
    assert tuple(stream.token_ids) == relayed.unbroken


async def cut_now(relay: Relay) -> None:
    relay.cut()


async def cut_in_mid_frame(relay: Relay) -> None:
    relay.cut_after(7, "forward", await in_use(relay, "forward"))


async def cut_answers_in_mid_frame(relay: Relay) -> None:
    relay.cut_after(7, "backward", await in_use(relay, "backward"))


async def flip_a_bit(relay: Relay) -> None:
    relay.flip_at(30, "forward", await in_use(relay, "forward"))


async def flip_a_bit_of_an_answer(relay: Relay) -> None:
    relay.flip_at(30, "backward", await in_use(relay, "backward"))


async def in_use(relay: Relay, direction: Direction) -> RelayedConnection:
    """The connection that the tokens, or the steps, of the one stream there is go over; others carry pings."""
    return await relay.busy(direction, 2_000)


BREAKS = (
    ("head", cut_now),
    ("head", cut_in_mid_frame),
    ("head", flip_a_bit),
    ("tail", cut_now),
    ("tail", cut_in_mid_frame),
    ("tail", flip_a_bit),
    # the head has nothing to answer while tokens come
    ("tail", cut_answers_in_mid_frame),
    ("tail", flip_a_bit_of_an_answer),
)


@pytest.mark.parametrize(("stage", "damage"), BREAKS, ids=lambda value: getattr(value, "__name__", value))
async def test_a_broken_connection_costs_no_token(
    relayed: RelayedCluster, stage: str, damage: Callable[[Relay], Awaitable[None]]
) -> None:
    async with broken(relayed) as stream:
        await damage(relayed.relays_of(stream.result)[STAGES.index(stage)])
    assert 1 <= stream.result.failovers <= 3


@pytest.mark.parametrize("stage", STAGES)
async def test_a_half_open_connection_is_noticed(relayed: RelayedCluster, stage: str) -> None:
    async with broken(relayed) as stream:
        relay = relayed.relays_of(stream.result)[STAGES.index(stage)]
        relay.hold()
        await eventually(lambda: stream.result.failovers, 60.0)
        await stream.reached(len(stream.token_ids) + 5)
        relay.release()  # all that was held back comes now
    assert 1 <= stream.result.failovers <= 3


async def test_connections_that_come_through_in_another_order(relayed: RelayedCluster) -> None:
    async with broken(relayed) as stream:
        tail = relayed.relays_of(stream.result)[-1]
        for name in ("tail-a", "tail-b"):
            relayed.relays[name].reorder(2)  # the client's and the head's
        tail.cut()
    assert 1 <= stream.result.failovers <= 3


async def test_half_a_second_of_delay_is_no_failure(relayed: RelayedCluster) -> None:
    async with relayed.delayed(0.5, *relayed.relays.values()), relayed.cluster.client() as client:
        async with asyncio.timeout(WITHIN_S):
            found = await client.generate("tiny", PROMPT, max_tokens=4, temperature=0.0)
    assert list(found.token_ids) == greedy_ids(relayed.whole, PROMPT, 4)
    assert found.failovers == 0


@pytest.mark.parametrize("stage", STAGES)
async def test_two_seconds_of_delay_before_a_worker_that_last_cost_no_token(
    relayed: RelayedCluster, stage: str
) -> None:
    """There and back it is more than a ping may take: somebody notices, or the client, as tokens come slowly."""
    async with broken(relayed) as stream:
        relay = relayed.relays_of(stream.result)[STAGES.index(stage)]
        async with relayed.delayed(2.0, relay):
            await stream.ended()
    assert 1 <= stream.result.failovers <= 3


async def test_a_link_between_workers_that_becomes_slow_is_left_though_every_ping_is_answered_in_time(
    relayed: RelayedCluster,
) -> None:
    async with broken(relayed) as stream:
        left = stream.worker_ids
        tail = relayed.relays_of(stream.result)[1]
        (await in_use(tail, "forward")).delay_s = 0.9
        await stream.ended()
    assert stream.result.failovers == 1
    assert stream.worker_ids != left
