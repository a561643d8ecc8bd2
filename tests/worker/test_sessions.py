"""Who reaches which session, over real connections."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.ids import BlockRange, SessionId, WorkerId
from protocol.messages import (
    AttachTail,
    CloseSession,
    FeedToken,
    SamplingParams,
    SessionOpened,
)
from protocol.tickets import SessionToken, sign_claims
from tests.support.ring import running_ring
from tests.support.ring_generation import Generation, ids_payload, prompt_step
from tests.support.sessions import PROMPT, opened, refusal
from tests.support.tiny_checkpoint import TinyCheckpoint

Checkpoints = Callable[[str], TinyCheckpoint]


@pytest.fixture
def llama(checkpoint: Checkpoints) -> TinyCheckpoint:
    return checkpoint("llama")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"expires_at_s": 1.0}, "clock_skew"),
        ({"worker_id": WorkerId("w-someone-else")}, "unauthenticated"),
        ({"previous": WorkerId("w-someone-else")}, "forbidden"),
        ({"blocks": BlockRange(0, 9)}, "stale_epoch"),
        ({"revision": "c" * 64}, "stale_epoch"),
        ({"max_positions": 10**9}, "overloaded"),
        ({"next": WorkerId("w-someone-else")}, "invalid_request"),
    ],
)
async def test_tickets_that_arent_right_are_refused(
    llama: TinyCheckpoint, tmp_path: Path, changes: dict[str, Any], code: str
) -> None:
    async with running_ring(llama, tmp_path) as ring:
        generation = await Generation.prepared(ring, PROMPT, **changes)
        await generation.open()
        await refusal(generation.head, code)
        await ring.until_clean()


async def test_another_kind_of_token_or_another_sessions_ticket_opens_nothing(
    llama: TinyCheckpoint, tmp_path: Path
) -> None:
    async with running_ring(llama, tmp_path) as ring:
        worker = ring.workers[0]
        token = SessionToken(expires_at_s=9e9, worker_id=worker.worker_id)
        generation = await Generation.prepared(ring, PROMPT)
        for ticket in (sign_claims(token, [worker.ticket_key]), ring.tickets("another")[0], "nonsense"):
            generation.tickets = [ticket]
            await generation.open()
            await refusal(generation.head, "unauthenticated")


async def test_a_worker_of_the_cluster_without_a_ticket_gets_nowhere(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, (2,)) as ring:
        stranger = ring.authority.worker(tmp_path)
        wire = await ring.connect(ring.workers[1], as_worker=stranger)
        generation = await Generation.prepared(ring, PROMPT, head_wire=wire)
        generation.tickets = generation.tickets[1:]  # the tail's ticket is for the head to use
        await generation.open()
        await refusal(wire, "forbidden")


async def test_the_same_session_isnt_opened_twice(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path) as ring:
        generation = await opened(ring)
        await generation.open()
        await refusal(generation.head, "conflict")
        await generation.attach()
        await generation.step()
        assert len(await generation.ids()) == 40


@pytest.mark.parametrize("session", ["theirs", "unknown"])
async def test_another_connection_can_neither_step_nor_feed_nor_close(
    llama: TinyCheckpoint, tmp_path: Path, session: str
) -> None:
    async with running_ring(llama, tmp_path, (2,)) as ring:
        generation = await opened(ring, session_id="theirs")
        name = SessionId(session)
        stranger = await ring.connect(ring.workers[0])
        insider = await ring.connect(ring.workers[0], as_worker=ring.authority.worker(tmp_path))
        for wire in (stranger, insider):
            await wire.send(CloseSession(session_id=name, reason="cancelled"))
            await wire.send(prompt_step(session, PROMPT), ids_payload(PROMPT))
            first = await refusal(wire, "not_found")
            await wire.send(FeedToken(session_id=name, position=0, token_id=5))
            second = await refusal(wire, "not_found")
            assert first.error == second.error
        await generation.attach()
        await generation.step()
        assert await generation.ids() == llama.greedy(PROMPT, 40)


async def test_a_second_client_cant_attach(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, (2,)) as ring:
        generation = await Generation.prepared(ring, PROMPT, 5)
        await generation.attach()
        await generation.attach()
        await refusal(generation.tail, "conflict")
        await generation.open()
        await generation.head.receive(SessionOpened)
        await generation.attach()
        await refusal(generation.tail, "conflict")
        await generation.step()
        assert await generation.ids() == llama.greedy(PROMPT, 5)


@pytest.mark.parametrize(
    ("prompt", "payload", "code"),
    [
        ([5], b"", "invalid_request"),
        ([-1, 5], None, "invalid_request"),
        ([5] * 60, None, "context_exceeded"),
        ([5] * 61, None, "too_large"),
        ([5], b"12345", "protocol_error"),
    ],
)
async def test_attaching_with_a_bad_prompt_is_refused(
    llama: TinyCheckpoint, tmp_path: Path, prompt: list[int], payload: bytes | None, code: str
) -> None:
    async with running_ring(llama, tmp_path) as ring:
        wire = await ring.connect(ring.workers[0])
        message = AttachTail(
            session_id=SessionId("s"), ticket=ring.attach_ticket("s"), sampling=SamplingParams(max_tokens=1)
        )
        await wire.send(message, ids_payload(prompt) if payload is None else payload)
        await refusal(wire, code)


async def test_a_worker_of_the_route_cant_attach_with_the_tickets_that_it_sees(
    llama: TinyCheckpoint, tmp_path: Path
) -> None:
    async with running_ring(llama, tmp_path, (2,)) as ring:
        generation = await Generation.prepared(ring, PROMPT, 5)
        head = ring.workers[0]
        for certificate in (None, head.files):
            thief = await ring.connect(ring.workers[1], as_worker=certificate)
            for ticket in generation.tickets:
                message = AttachTail(
                    session_id=SessionId(generation.session_id), ticket=ticket, sampling=generation.sampling
                )
                await thief.send(message, ids_payload(PROMPT))
                await refusal(thief, "unauthenticated")
        await generation.begin()
        assert await generation.ids() == llama.greedy(PROMPT, 5)


async def test_an_attach_ticket_opens_no_session(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path) as ring:
        generation = await Generation.prepared(ring, PROMPT)
        generation.tickets = [generation.attach_ticket]
        await generation.open()
        await refusal(generation.head, "unauthenticated")
        await ring.until_clean()
