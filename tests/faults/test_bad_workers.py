"""A worker that is let in and then sends nonsense: it is found out and routed around, and no token is wrong."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from transformers import PreTrainedModel

from protocol.ids import WorkerId
from protocol.messages import DataMessage, FeedToken, Step
from tests.faults.conftest import show
from tests.support.whole_cluster import Member, WholeCluster, greedy_ids, packed_tiny, whole_cluster
from worker.connections import Connection

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]
PROMPT = [5, 9, 30, 4, 77, 12]
N_TOKENS = 60
N_GOOD = 20
WITHIN_S = 120.0
Send = Callable[[DataMessage, bytes], Awaitable[None]]
Deed = Callable[[Connection, Send, Any, bytes], Awaitable[None]]


async def nan(_connection: Connection, send: Send, message: Step, payload: bytes) -> None:
    await send(message, struct.pack("<f", float("nan")) * (len(payload) // 4))


async def infinity(_connection: Connection, send: Send, message: Step, payload: bytes) -> None:
    await send(message, payload[:-4] + struct.pack("<f", float("inf")))


async def zeros(_connection: Connection, send: Send, message: Step, payload: bytes) -> None:
    await send(message, bytes(len(payload)))


async def half_the_width(_connection: Connection, send: Send, message: Step, payload: bytes) -> None:
    await send(message, payload[: len(payload) // 2])


async def a_byte_too_few(_connection: Connection, send: Send, message: Step, payload: bytes) -> None:
    await send(message, payload[:-1])


async def garbage(connection: Connection, _send: Send, _message: Step, payload: bytes) -> None:
    await connection._socket.send_bytes(b"\xff" * 7 + payload)


async def an_old_position(_connection: Connection, send: Send, message: Any, payload: bytes) -> None:
    await send(msgspec.structs.replace(message, position=message.position - 1), payload)


async def twice(_connection: Connection, send: Send, message: Any, payload: bytes) -> None:
    await send(message, payload)
    await send(message, payload)


async def never(_connection: Connection, _send: Send, _message: Any, _payload: bytes) -> None:
    """Nothing is said, everything else works: pings, heartbeats, other messages."""


DEEDS = (nan, infinity, zeros, half_the_width, a_byte_too_few, garbage, an_old_position, twice, never)


class Mischief:
    """Gets between some workers and what they say; the first to have said enough of a kind is bad from then on."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Have everybody behave."""
        self._deed: Deed | None = None
        self._kind: type[Step] | type[FeedToken] = Step
        self._n_sent: dict[WorkerId, int] = {}
        self.culprit: WorkerId | None = None

    def begin(self, deed: Deed, kind: type[Step] | type[FeedToken], n_good: int) -> None:
        """Wait for somebody to say `n_good` messages of the kind."""
        self.clear()
        self._deed, self._kind, self._n_good = deed, kind, n_good

    def tempt(self, member: Member) -> None:
        """Get between a worker and all that it says to the next one, or to the head."""
        worker_id = member.worker.worker_id
        peers = member.worker.data_plane._peers
        assert peers is not None
        connected = peers.connection
        seen: set[Connection] = set()

        async def connection(*arguments: Any, **named: Any) -> Connection:
            made = await connected(*arguments, **named)
            if made not in seen:
                seen.add(made)
                made.send = self._sending(worker_id, made, made.send)  # type: ignore[method-assign]
            return made

        peers.connection = connection  # type: ignore[method-assign]

    def _sending(self, worker_id: WorkerId, connection: Connection, send: Any) -> Any:
        async def sent(message: DataMessage, payload: bytes | memoryview = b"") -> None:
            if self._deed is None or not isinstance(message, self._kind):
                await send(message, payload)
                return
            self._n_sent[worker_id] = self._n_sent.get(worker_id, 0) + 1
            if self.culprit is None and self._n_sent[worker_id] > self._n_good:
                self.culprit = worker_id
            if self.culprit == worker_id:
                await self._deed(connection, send, message, bytes(payload))
            else:
                await send(message, payload)

        return sent


@dataclass
class Tempted:
    """A head, and two workers each for the middle and the tail, who can be had to misbehave."""

    cluster: WholeCluster
    whole: PreTrainedModel
    mischief: Mischief


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tempted(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tempted]:
    folder = tmp_path_factory.mktemp("tempted")
    packed, whole = packed_tiny(folder, "llama", max_position_embeddings=1024, eos_token_id=None)
    mischief = Mischief()
    async with whole_cluster(folder) as cluster:
        await cluster.add_model("tiny", packed)
        await cluster.join("head", "0:1", files=packed)
        for name, blocks in (("middle-a", "1:3"), ("middle-b", "1:3"), ("tail-a", "3:4"), ("tail-b", "3:4")):
            mischief.tempt(await cluster.join(name, blocks, files=packed))
        await cluster.until_ready()
        yield Tempted(cluster, whole, mischief)


async def check(tempted: Tempted, deed: Deed, kind: type[Step] | type[FeedToken], **options: Any) -> None:
    ask = {"max_tokens": N_TOKENS} | options
    async with asyncio.timeout(WITHIN_S), tempted.cluster.client() as client:
        unbroken = await client.generate("tiny", PROMPT, **ask)
        try:
            tempted.mischief.begin(deed, kind, N_GOOD)
            found = await client.generate("tiny", PROMPT, **ask)
            show(f"{deed.__name__}: failovers {found.failovers}")
            assert found.token_ids == unbroken.token_ids
            assert 1 <= found.failovers <= 3
            assert tempted.mischief.culprit is not None
            assert tempted.mischief.culprit not in {stage.worker_id for stage in found.route}
        finally:
            tempted.mischief.clear()


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__)
async def test_hidden_states_that_are_nonsense(tempted: Tempted, deed: Deed) -> None:
    """Plausible numbers that are wrong aren't found out here: that takes audits. Zeros are: no block makes them."""
    await check(tempted, deed, Step, temperature=0.0)


@pytest.mark.parametrize("deed", [an_old_position, twice, never], ids=lambda deed: deed.__name__)
async def test_tokens_that_are_fed_wrongly(tempted: Tempted, deed: Deed) -> None:
    await check(tempted, deed, FeedToken, temperature=0.8, seed=3)


async def test_the_tempted_behave_when_nothing_is_asked_of_them(tempted: Tempted) -> None:
    got = await tempted.cluster.ids("tiny", PROMPT, max_tokens=N_TOKENS)
    assert got == greedy_ids(tempted.whole, PROMPT, N_TOKENS)
