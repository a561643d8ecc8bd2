"""Hops whose neighbours say what they shouldn't."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
import torch

from protocol.errors import ErrorBody
from protocol.frames import MAX_HEADER_BYTES
from protocol.ids import BlockRange, WorkerId
from protocol.messages import (
    STEP_CREDIT,
    AttachTail,
    CloseSession,
    Credit,
    FeedToken,
    OpenSession,
    SamplingParams,
    SessionEnded,
    SessionOpened,
    Step,
    Token,
)
from tests.support.fake_worker import FakeWorker, fake_worker, opened_by
from tests.support.hidden_steps import SESSION, hidden_step
from tests.support.ring import CHUNK, Ring, running_ring
from tests.support.ring_generation import Generation, generated, ids_payload
from tests.support.tiny_checkpoint import WHOLE, TinyCheckpoint
from tests.support.waiting import eventually
from worker.ending import MAX_RELAYED_CHARS

Checkpoints = Callable[[str], TinyCheckpoint]
PROMPT = [5, 9, 30, 4, 77, 12]


@pytest.fixture
async def ring(checkpoint: Checkpoints, tmp_path: Path) -> AsyncIterator[Ring]:
    async with running_ring(checkpoint("llama"), tmp_path, (2,)) as running:
        yield running


@pytest.fixture
async def fake(ring: Ring, tmp_path: Path) -> AsyncIterator[FakeWorker]:
    async with fake_worker(ring.authority, tmp_path) as running:
        yield running


async def opened_before(ring: Ring, fake: FakeWorker, **changes: object) -> Generation:
    """A session whose next hop and tail is the fake."""
    changes = {
        "next": fake.files.worker_id,
        "next_url": fake.url,
        "tail": fake.files.worker_id,
        **changes,
    }
    generation = await Generation.prepared(ring, PROMPT, session_id=SESSION, **changes)
    await generation.open()
    await fake.next_of(OpenSession)
    return generation


@pytest.mark.parametrize(
    "hidden",
    [
        torch.full((3, 32), float("nan")),
        torch.full((3, 32), float("inf")),
        torch.zeros(3, 32),
        torch.ones(3, 31),
        torch.ones(3, 33),
        torch.zeros((3, 1), dtype=torch.int32).reshape(3),
    ],
)
async def test_a_previous_worker_that_sends_nonsense_is_named(
    ring: Ring, fake: FakeWorker, hidden: torch.Tensor
) -> None:
    tail = ring.workers[1]
    wire = await opened_by(ring, fake.files, tail, SESSION, head=fake.files.worker_id, head_url=fake.url)
    await wire.receive(SessionOpened)
    client = await ring.connect(tail)
    attach = AttachTail(
        session_id=SESSION, ticket=ring.attach_ticket(SESSION), sampling=SamplingParams(max_tokens=3)
    )
    await client.send(attach, ids_payload([5, 6, 7]))
    await wire.send(*hidden_step(hidden))
    for end in (wire, client):
        ended = await end.receive(SessionEnded)
        assert (ended.worker_id, ended.noticed_by) == (fake.files.worker_id, tail.worker_id)
        assert ended.error.code == "hop_lost"
    await ring.until_clean()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
async def test_hidden_states_of_another_precision_are_taken(
    ring: Ring, fake: FakeWorker, dtype: torch.dtype
) -> None:
    tail = ring.workers[1]
    wire = await opened_by(ring, fake.files, tail, SESSION, head=fake.files.worker_id, head_url=fake.url)
    client = await ring.connect(tail)
    attach = AttachTail(
        session_id=SESSION, ticket=ring.attach_ticket(SESSION), sampling=SamplingParams(max_tokens=3)
    )
    await client.send(attach, ids_payload([5, 6, 7]))
    await wire.send(*hidden_step(torch.ones((3, 32), dtype=dtype)))
    fed = await fake.next_of(FeedToken)
    token = await client.receive(Token)
    assert fed.message == FeedToken(session_id=SESSION, position=3, token_id=token.token_id)
    await wire.send(CloseSession(session_id=SESSION, reason="failed"))
    assert (await client.receive(SessionEnded)).error.code == "hop_lost"
    await ring.until_clean()


async def test_the_head_never_runs_ahead_of_the_credit_it_has(ring: Ring, fake: FakeWorker) -> None:
    generation = await opened_before(ring, fake)
    generation.prompt = [5] * (CHUNK * (STEP_CREDIT + 2))
    await generation.step()
    for index in range(STEP_CREDIT):
        frame = await fake.next_of(Step)
        assert (frame.message.position, frame.message.is_last) == (index * CHUNK, False)  # type: ignore[union-attr]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await fake.next_of(Step)
    await fake.say(Credit(session_id=SESSION, n_steps=2))
    await fake.next_of(Step)
    assert (await fake.next_of(Step)).message.is_last  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "lie", [Credit(session_id=SESSION, n_steps=4), Token(session_id=SESSION, index=0, token_id=1)]
)
async def test_a_next_hop_that_lies_ends_the_session(ring: Ring, fake: FakeWorker, lie: Credit | Token) -> None:
    generation = await opened_before(ring, fake)
    await fake.say(SessionOpened(session_id=SESSION))
    await generation.head.receive(SessionOpened)
    await fake.say(lie)
    ended = await generation.head.receive(SessionEnded)
    assert (ended.worker_id, ended.error.code) == (fake.files.worker_id, "protocol_error")
    await fake.next_of(CloseSession)
    await ring.until_clean()


def ended_frame_of_exactly(size: int) -> bytes:
    """A `SessionEnded` whose header has `size` bytes, and more when it is encoded again: 9 is as good as 9.0."""

    def header(n_chars: int) -> bytes:
        error = {"code": "hop_lost", "message": "x" * n_chars, "retry_after_s": 9}
        said = {"type": "ended", "session_id": SESSION, "worker_id": "w-nobody", "error": error}
        return msgspec.msgpack.encode(said)

    some = size // 2  # a length in the same encoding as the final one's
    data = header(some + size - len(header(some)))
    assert len(data) == size
    return struct.pack(">2sBBIQ", b"BG", 1, 0, len(data), 0) + data


async def test_a_next_hops_last_words_of_any_size_end_the_session_alone(
    ring: Ring, fake: FakeWorker, checkpoint: Checkpoints
) -> None:
    generation = await opened_before(ring, fake)
    await fake.sockets[-1].send_bytes(ended_frame_of_exactly(MAX_HEADER_BYTES))
    ended = await generation.head.receive(SessionEnded)
    assert (ended.error.code, ended.error.message) == ("hop_lost", "x" * MAX_RELAYED_CHARS)
    assert ended.worker_id == fake.files.worker_id
    await ring.until_clean()
    assert await generated(ring, PROMPT, 3) == checkpoint("llama").greedy(PROMPT, 3)


@pytest.mark.parametrize("token_id", [-1, 10**6, 2**31, 2**63])
async def test_a_tail_that_feeds_a_token_of_no_vocabulary_is_named(
    ring: Ring, fake: FakeWorker, token_id: int
) -> None:
    generation = await opened_before(ring, fake)
    await generation.step()
    await fake.next_of(Step)
    assert (await fake.next_of(Step)).message.is_last  # type: ignore[union-attr]
    tail = await ring.connect(ring.workers[0], as_worker=fake.files)
    await tail.send(FeedToken(session_id=SESSION, position=len(PROMPT), token_id=token_id))
    ended = await generation.head.receive(SessionEnded)
    assert ended.worker_id == fake.files.worker_id
    assert ended.error.code in ("hop_lost", "protocol_error")
    await ring.until_clean()


async def test_what_goes_the_wrong_way_ends_the_connection(ring: Ring, fake: FakeWorker) -> None:
    generation = await opened_before(ring, fake)
    await fake.say(FeedToken(session_id=SESSION, position=0, token_id=1))
    assert (await generation.head.receive(SessionEnded)).error.code == "hop_lost"
    await ring.until_clean()


async def test_a_connection_cut_in_the_middle_of_a_frame_is_a_lost_hop(ring: Ring, fake: FakeWorker) -> None:
    generation = await opened_before(ring, fake)
    await generation.step()
    await fake.next_of(Step)
    await fake.cut()
    ended = await generation.head.receive(SessionEnded)
    assert (ended.worker_id, ended.error.code) == (fake.files.worker_id, "hop_lost")
    assert ended.noticed_by == ring.workers[0].worker_id
    await ring.until_clean()


async def test_a_hop_that_is_lost_while_it_is_written_to_is_named(ring: Ring, fake: FakeWorker) -> None:
    """Fails if whoever writes is blamed: it may find a connection closing before its reader does."""
    generation = await opened_before(ring, fake)
    generation.prompt = [5] * (CHUNK * (STEP_CREDIT + 1))
    await generation.step()
    (session,) = ring.workers[0].plane._sessions._sessions.values()  # type: ignore[union-attr]
    await eventually(lambda: bool(session._hop.next and session._hop._onward._credit_came._waiters))  # type: ignore[union-attr]
    session._hop.next._socket._response.connection.transport.abort()  # type: ignore[union-attr]
    session.take_backward(Credit(session_id=SESSION, n_steps=1))  # the last step is sent in the loop's next turn
    ended = await generation.head.receive(SessionEnded)
    assert (ended.worker_id, ended.error.code) == (fake.files.worker_id, "hop_lost")
    await ring.until_clean()


async def test_what_a_later_hop_noticed_is_passed_on_as_that(ring: Ring, fake: FakeWorker) -> None:
    generation = await opened_before(ring, fake)
    lost, error = WorkerId("w-" + "c" * 26), ErrorBody(code="hop_lost", message="gone")
    said = SessionEnded(session_id=SESSION, worker_id=lost, error=error, noticed_by=fake.files.worker_id)
    await fake.say(said)
    assert await generation.head.receive(SessionEnded) == said
    await ring.until_clean()


async def test_a_next_hop_nobody_answers_for_is_named(ring: Ring, fake: FakeWorker) -> None:
    for url in ("https://127.0.0.1:1", fake.url, "nonsense://x"):
        generation = await Generation.prepared(
            ring, PROMPT, next=ring.workers[1].worker_id, next_url=url
        )  # behind the fake's address is not the worker that is dialled
        await generation.open()
        ended = await generation.head.receive(SessionEnded)
        assert (ended.worker_id, ended.error.code) == (ring.workers[1].worker_id, "hop_lost")
        await ring.until_clean()


async def test_only_the_tickets_tail_feeds_the_head(ring: Ring, fake: FakeWorker, tmp_path: Path) -> None:
    generation = await opened_before(ring, fake)
    await generation.step()
    await fake.next_of(Step)
    assert (await fake.next_of(Step)).message.is_last  # type: ignore[union-attr]
    stranger = await ring.connect(ring.workers[0], as_worker=ring.authority.worker(tmp_path))
    await stranger.send(FeedToken(session_id=SESSION, position=6, token_id=1))
    assert (await stranger.receive()).error.code == "not_found"
    tail = await ring.connect(ring.workers[0], as_worker=fake.files)
    await tail.send(FeedToken(session_id=SESSION, position=6, token_id=1))
    assert (await fake.next_of(Step)).message.position == 6  # type: ignore[union-attr]
    await tail.send(FeedToken(session_id=SESSION, position=6, token_id=1))
    ended = await generation.head.receive(SessionEnded)
    assert (ended.worker_id, ended.error.code) == (fake.files.worker_id, "stale_epoch")
    await ring.until_clean()


async def test_a_tail_that_ends_a_session_by_the_ring_has_nobody_else_blamed(ring: Ring, fake: FakeWorker) -> None:
    generation = await opened_before(ring, fake)
    tail = await ring.connect(ring.workers[0], as_worker=fake.files)
    await tail.send(CloseSession(session_id=SESSION, reason="failed"))
    ended = await generation.head.receive(SessionEnded)
    assert (ended.worker_id, ended.error.code) == (fake.files.worker_id, "hop_lost")
    await ring.until_clean()


async def test_a_wider_range_than_the_worker_holds_is_stale(ring: Ring) -> None:
    generation = await Generation.prepared(ring, PROMPT, blocks=WHOLE)
    await generation.open()
    assert (await generation.head.receive(SessionEnded)).error.code == "stale_epoch"
    assert BlockRange(0, 2) == ring.workers[0].blocks


@pytest.mark.parametrize("is_named", [True, False])
async def test_a_route_that_failed_further_up_is_told_with_the_worker_to_blame(
    ring: Ring, fake: FakeWorker, is_named: bool
) -> None:
    tail = ring.workers[1]
    wire = await opened_by(ring, fake.files, tail, SESSION, head=fake.files.worker_id, head_url=fake.url)
    await wire.receive(SessionOpened)
    client = await ring.connect(tail)
    attach = AttachTail(
        session_id=SESSION, ticket=ring.attach_ticket(SESSION), sampling=SamplingParams(max_tokens=3)
    )
    await client.send(attach, ids_payload([5, 6, 7]))
    await wire.send(*hidden_step(torch.ones(2, 32), is_last=False))
    to_blame = ring.workers[0].worker_id if is_named else fake.files.worker_id
    closing = CloseSession(session_id=SESSION, reason="lost", worker_id=to_blame if is_named else None)
    await eventually(lambda: tail.engine.stats().n_positions_run == 2)
    await wire.send(closing)
    ended = await client.receive(SessionEnded)
    assert (ended.worker_id, ended.error.code) == (to_blame, "hop_lost")
    await ring.until_clean()


async def test_a_head_takes_no_hidden_states(ring: Ring) -> None:
    generation = await Generation.prepared(ring, PROMPT, session_id=SESSION)
    await generation.open()
    await generation.head.send(*hidden_step(torch.ones(6, 32)))
    assert (await generation.head.receive(SessionEnded)).error.code == "protocol_error"
    await ring.until_clean()
