"""Private sessions on workers: hidden states in, hidden states out, by a client that speaks frames."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.ids import BlockRange, SessionId
from protocol.messages import (
    STEP_CREDIT,
    AttachTail,
    CloseSession,
    Credit,
    OpenSession,
    SamplingParams,
    SessionEnded,
    SessionOpened,
    Step,
)
from protocol.tensors import bytes_from_tensor, tensor_from_bytes
from tests.support.ring import WAIT_S, Ring, Wire, running_ring
from tests.support.ring_generation import ids_payload
from tests.support.tiny_checkpoint import TinyCheckpoint
from tests.support.tiny_models import N_BLOCKS
from tests.support.waiting import eventually
from worker.ends import Ends, load_ends, ranges_of_ends

Checkpoints = Callable[[str], TinyCheckpoint]
PROMPT = [5, 9, 30, 4, 77, 12, 41, 8, 19]
CHUNK = 4
SESSION = "private"


@dataclass
class PrivateClient:
    """Runs the ends itself; one wire to the head, one to the tail (the same, if that is one worker)."""

    ring: Ring
    ends: Ends
    head: Wire
    tail: Wire
    credit: int = STEP_CREDIT
    n_uncredited: int = 0
    said: list[Any] = field(default_factory=list)

    async def open(self, **attaching: Any) -> None:
        tickets = self.ring.tickets(SESSION, is_private=True)
        await self.head.send(OpenSession(session_id=SessionId(SESSION), tickets=tuple(tickets), deadline_s=30.0))
        ticket = self.ring.attach_ticket(SESSION, gives_states=True)
        message = AttachTail(session_id=SessionId(SESSION), ticket=ticket, sampling=SamplingParams(max_tokens=1))
        await self.tail.send(message, **attaching)

    async def step(self, position: int, states: torch.Tensor, *, is_last: bool) -> None:
        precision, data = bytes_from_tensor(states)
        step = Step(
            session_id=SessionId(SESSION),
            position=position,
            n_tokens=len(states),
            dtype=precision,  # type: ignore[arg-type]
            is_last=is_last,
        )
        await self.head.send(step, bytes(data))

    async def returned(self) -> tuple[Step, torch.Tensor]:
        """The next states of the tail's; gives credit for them."""
        async with asyncio.timeout(WAIT_S):
            while True:
                frame = await self.tail.frame()
                assert not isinstance(frame.message, SessionEnded), frame.message
                if isinstance(frame.message, Step):
                    break
        self.n_uncredited += 1
        if self.n_uncredited == STEP_CREDIT // 2:
            self.n_uncredited = 0
            await self.tail.send(Credit(session_id=SessionId(SESSION), n_steps=STEP_CREDIT // 2))
        step = frame.message
        width = len(frame.payload) // (4 * step.n_tokens)
        return step, tensor_from_bytes(frame.payload, step.dtype, (step.n_tokens, width))

    async def generated(self, n_tokens: int, **sampling: Any) -> list[int]:
        params = SamplingParams(max_tokens=n_tokens, **sampling)
        self.ends.begin(1, PROMPT, len(PROMPT) + n_tokens, params)
        await self.open()
        for start in range(0, len(PROMPT), CHUNK):
            end = min(start + CHUNK, len(PROMPT))
            await self.step(start, self.ends.run_first(1, start, end - start), is_last=end == len(PROMPT))
        found: list[int] = []
        while len(found) < n_tokens:
            step, states = await self.returned()
            end = step.position + step.n_tokens
            assert step.is_last == (end >= len(PROMPT))
            sampled = self.ends.run_last(1, step.position, states, wants_token=end >= len(PROMPT))
            if sampled is not None:
                found.append(sampled.choice.token_id)
                if sampled.states is not None:
                    await self.step(end, sampled.states, is_last=True)
        return found

    async def close(self, reason: Any, **saying: Any) -> None:
        for wire in {id(wire): wire for wire in (self.head, self.tail)}.values():
            await wire.send(CloseSession(session_id=SessionId(SESSION), reason=reason, **saying))


@asynccontextmanager
async def private_client(
    checkpoint: TinyCheckpoint, folder: Path, cuts: tuple[int, ...], n_each: int = 1
) -> AsyncIterator[PrivateClient]:
    """Workers that hold the whole model between them, and run it but for the ends."""
    ranges = ranges_of_ends(N_BLOCKS, n_each)
    files = [checkpoint.request(blocks).files for blocks in ranges]
    ends = load_ends(checkpoint.request(ranges[0]).config_folder, *files, ranges, "float32")
    async with running_ring(checkpoint, folder, cuts) as ring:
        for worker in ring.workers:
            worker.blocks = BlockRange(max(worker.blocks.start, n_each), min(worker.blocks.end, N_BLOCKS - n_each))
        head = await ring.connect(ring.workers[0])
        tail = head if len(ring.workers) == 1 else await ring.connect(ring.workers[-1])
        yield PrivateClient(ring, ends, head, tail)


@pytest.mark.parametrize("cuts", [(), (2,)], ids=["one worker that holds all", "two"])
async def test_the_tokens_are_those_of_the_whole_model_and_are_counted(
    checkpoint: Checkpoints, tmp_path: Path, cuts: tuple[int, ...]
) -> None:
    llama = checkpoint("llama")
    async with private_client(llama, tmp_path, cuts) as client:
        assert await client.generated(12) == llama.greedy(PROMPT, 12)
        await client.close("finished", finish_reason="length")
        await client.ring.until_clean()
        await eventually(lambda: len(client.ring.workers[-1].reports) == 1)
        report = client.ring.workers[-1].reports[0]
        assert (report.n_prompt_tokens, report.n_completion_tokens) == (len(PROMPT), 12)
        assert report.outcome == "length"


async def test_a_client_that_gives_the_tail_no_credit_is_sent_no_more_than_that(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    async with private_client(checkpoint("llama"), tmp_path, (2,)) as client:
        await client.open()
        states = torch.randn(1, client.ends.hidden_size)
        sent = returned = 0
        async with asyncio.timeout(WAIT_S):
            for position in range(STEP_CREDIT):
                await client.step(position, states, is_last=True)
                sent += 1
            while returned < STEP_CREDIT:
                returned += isinstance((await client.tail.receive()), Step)
        tail = client.ring.workers[-1].engine
        for position in range(STEP_CREDIT, STEP_CREDIT + 2):  # the head has consumed four by now
            await client.step(position, states, is_last=True)
        await eventually(lambda: tail.stats().n_positions_run == STEP_CREDIT + 1)
        await client.tail.send(Credit(session_id=SessionId(SESSION), n_steps=2))
        assert [(await client.tail.receive(Step)).position for _ in range(2)] == [STEP_CREDIT, STEP_CREDIT + 1]
        await client.close("cancelled")
        await client.ring.until_clean()
        assert client.ring.workers[-1].reports[0].outcome == "cancelled"


async def test_guesses_of_a_client_are_refused_as_it_could_have_positions_run_again_that_count_once(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    async with private_client(checkpoint("llama"), tmp_path, (2,)) as client:
        await client.open()
        assert isinstance(await client.head.receive(), SessionOpened)
        guesses = Step(
            session_id=SessionId(SESSION), position=0, n_tokens=3, dtype="float32", is_last=True, drafts=(1, 2)
        )
        _, data = bytes_from_tensor(torch.randn(3, client.ends.hidden_size))
        for _ in range(2):
            await client.head.send(guesses, bytes(data))
        assert (await client.head.receive(SessionEnded)).error.code == "protocol_error"
        await client.ring.until_clean()
        assert client.ring.workers[0].engine.stats().n_positions_run == 0


async def test_credit_that_nobody_owes_and_token_ids_end_the_session(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    llama = checkpoint("llama")
    async with private_client(llama, tmp_path, (2,)) as client:
        await client.open()
        assert isinstance(await client.head.receive(), SessionOpened)
        await client.tail.send(Credit(session_id=SessionId(SESSION), n_steps=STEP_CREDIT))
        await client.step(0, torch.randn(1, client.ends.hidden_size), is_last=True)
        await client.tail.receive(Step)
        await client.tail.send(Credit(session_id=SessionId(SESSION), n_steps=STEP_CREDIT))
        assert (await client.tail.receive(SessionEnded)).error.code == "protocol_error"
        await client.ring.until_clean()
    async with private_client(llama, tmp_path / "ids", (2,)) as client:
        await client.open(payload=ids_payload(PROMPT))
        assert (await client.tail.receive(SessionEnded)).error.code == "invalid_request"
        await client.close("cancelled")
        await client.ring.until_clean()
