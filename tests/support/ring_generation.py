"""A generation over a test ring, by a client that speaks frames: begun, read, cancelled as a test says."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from protocol.ids import SessionId
from protocol.messages import (
    AttachTail,
    CloseSession,
    OpenSession,
    SamplingParams,
    SessionEnded,
    Step,
    Token,
)
from protocol.tensors import bytes_from_tensor
from tests.support.ring import Ring, Wire


def ids_payload(ids: Sequence[int]) -> bytes:
    return bytes(bytes_from_tensor(torch.tensor(ids, dtype=torch.int32))[1])


def prompt_step(session_id: str, ids: Sequence[int], position: int = 0, *, is_last: bool = True) -> Step:
    return Step(
        session_id=SessionId(session_id), position=position, n_tokens=len(ids), dtype="int32", is_last=is_last
    )


@dataclass
class Generation:
    """A generation under way: one wire to the head, one to the tail."""

    ring: Ring
    session_id: str
    head: Wire
    tail: Wire
    prompt: list[int]
    sampling: SamplingParams
    tickets: list[str]
    attach_ticket: str
    n_prompt: int = 0
    """As in `OpenSession`."""

    @classmethod
    async def prepared(cls, ring: Ring, prompt: list[int], max_tokens: int = 8, **changes: Any) -> Self:
        session_id = changes.pop("session_id", None) or secrets.token_hex(8)
        sampling = SamplingParams(max_tokens=max_tokens, **changes.pop("sampling", {}))
        head = changes.pop("head_wire", None) or await ring.connect(ring.workers[0])
        tail = changes.pop("tail_wire", None) or (
            head if len(ring.workers) == 1 else await ring.connect(ring.workers[-1])
        )
        limit = {"max_positions": changes["max_positions"]} if "max_positions" in changes else {}
        n_prompt = changes.pop("n_prompt", 0)
        tickets = ring.tickets(session_id, **changes)
        attach_ticket = ring.attach_ticket(session_id, **limit)
        return cls(ring, session_id, head, tail, prompt, sampling, tickets, attach_ticket, n_prompt)

    async def open(self, deadline_s: float = 30.0) -> None:
        message = OpenSession(
            session_id=SessionId(self.session_id),
            tickets=tuple(self.tickets),
            deadline_s=deadline_s,
            n_prompt=self.n_prompt,
        )
        await self.head.send(message)

    async def attach(self, prompt: list[int] | None = None) -> None:
        message = AttachTail(
            session_id=SessionId(self.session_id), ticket=self.attach_ticket, sampling=self.sampling
        )
        await self.tail.send(message, ids_payload(self.prompt if prompt is None else prompt))

    async def step(self) -> None:
        await self.head.send(prompt_step(self.session_id, self.prompt), ids_payload(self.prompt))

    async def begin(self) -> None:
        await self.open()
        await self.attach()
        await self.step()

    async def tokens(self) -> list[Token]:
        """Tokens to the end; fails on a `SessionEnded`."""
        found: list[Token] = []
        while not found or found[-1].finish_reason is None:
            message = await self.tail.receive((Token, SessionEnded))
            assert isinstance(message, Token), message
            assert message.session_id == self.session_id
            assert message.index == len(found)
            found.append(message)
        return found

    async def ids(self) -> list[int]:
        return [token.token_id for token in await self.tokens()]

    async def cancel(self, wire: Wire) -> None:
        await wire.send(CloseSession(session_id=SessionId(self.session_id), reason="cancelled"))


async def generated(ring: Ring, prompt: list[int], max_tokens: int = 8, **changes: Any) -> list[int]:
    """The answer to a prompt."""
    generation = await Generation.prepared(ring, prompt, max_tokens, **changes)
    await generation.begin()
    return await generation.ids()
